"""The learner: whose state goes where, what a gap does, and that any loss will do."""

import itertools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from snaprl.cores import CoreState, OnlineRNN, SnAp
from snaprl.training.learner import make_learner

S = 4  # streams of the bank


class Piece(NamedTuple):
    """The least that a learner asks of a segment, and one number for the loss below."""

    hidden: Any
    stream: jax.Array
    number: jax.Array
    add: jax.Array  # [B]


def adding(variables, state, piece):
    """Adds to the state what the segment says, so that its way can be followed by eye."""
    state = jax.tree.map(lambda x: x + piece.add[:, None], state)
    loss = jnp.sum((variables["params"]["w"] - piece.add.sum()) ** 2)
    return loss, (state, {"read": jax.tree.leaves(state)[0].sum()})


def bank() -> CoreState:
    rows = jnp.arange(S, dtype=jnp.float32)[:, None]
    return CoreState(hidden=(10 * rows, 10 * rows + 1), influence={"w": 100 * rows + 7})


def piece(streams, numbers, add, hidden=-1.0) -> Piece:
    b = len(streams)
    actors = (jnp.full((b, 1), hidden), jnp.full((b, 1), hidden + 0.5))
    return Piece(actors, jnp.array(streams), jnp.array(numbers), jnp.array(add, jnp.float32))


@pytest.fixture(scope="module")
def learner():
    made = make_learner(adding, optax.sgd(0.1))
    return made._replace(update=jax.jit(made.update))


@pytest.fixture
def state(learner):
    """Three segments of every stream have been consumed."""
    fresh = learner.init({"params": {"w": jnp.zeros(1)}, "other": jnp.ones(2)}, bank())
    return fresh._replace(number=jnp.full(S, 3, jnp.int32))


def rows_of(state) -> np.ndarray:
    """`[S, 3]`: both parts of the hidden state, and the influence."""
    return np.concatenate([np.asarray(x) for x in jax.tree.leaves(state.bank)], axis=1)


def test_streams_in_any_order_find_their_own_state(learner, state):
    before = rows_of(state)
    state, metrics = learner.update(state, piece([2, 0], [3, 3], [5.0, 0.25]))
    added = np.array([0.25, 0.0, 5.0, 0.0], np.float32)
    np.testing.assert_array_equal(rows_of(state), before + added[:, None])
    np.testing.assert_array_equal(state.number, [4, 3, 4, 3])
    assert metrics["gaps"] == 0


@pytest.mark.parametrize("number", [4, 9, 2, 0], ids=["one lost", "many", "twice", "restarted"])
def test_a_gap_zeroes_the_influence_takes_the_actors_hidden_state_and_is_counted(
    learner, state, number
):
    before = rows_of(state)
    state, metrics = learner.update(state, piece([1, 3], [number, 3], [2.0, 4.0], hidden=-6.0))
    wanted = before.copy()
    wanted[1] = [-6.0 + 2, -5.5 + 2, 0.0 + 2]
    wanted[3] += 4.0
    np.testing.assert_array_equal(rows_of(state), wanted)
    np.testing.assert_array_equal(state.number, [3, number + 1, 3, 4])
    assert metrics["gaps"] == 1


def test_after_a_gap_the_stream_goes_on(learner, state):
    state, _ = learner.update(state, piece([1], [7], [2.0], hidden=-6.0))
    state, metrics = learner.update(state, piece([1], [8], [1.0], hidden=99.0))
    np.testing.assert_array_equal(rows_of(state)[1], [-3.0, -2.5, 3.0])
    assert metrics["gaps"] == 0


def test_a_first_segment_is_no_gap_and_starts_where_the_actor_did(learner, state):
    state = state._replace(number=jnp.zeros(S, jnp.int32))
    state, metrics = learner.update(state, piece([3], [0], [1.0], hidden=0.5))
    np.testing.assert_array_equal(rows_of(state)[3], [1.5, 2.0, 1.0])
    assert metrics["gaps"] == 0


def test_only_params_are_learned(learner, state):
    after, metrics = learner.update(state, piece([0, 1], [3, 3], [1.0, 1.5]))
    # loss (w - 2.5)^2 at w = 0: gradient -5, and 0.1 of it is the step
    np.testing.assert_allclose(after.variables["params"]["w"], [0.5])
    np.testing.assert_array_equal(after.variables["other"], state.variables["other"])
    np.testing.assert_allclose([metrics["loss"], metrics["grad_norm"]], [6.25, 5.0])
    assert "read" in metrics
    assert (state.updates, after.updates) == (0, 1)


# ---- with a core -----------------------------------------------------------------------------

T, B, M, N = 3, 4, 2, 5


class Batch(NamedTuple):
    """A supervised segment."""

    inputs: jax.Array  # [T, B, M]
    targets: jax.Array  # [T, B]
    first: jax.Array  # [T, B]
    hidden: Any
    stream: jax.Array
    number: jax.Array


class Reader(nn.Module):
    """A core and a linear head."""

    def setup(self):
        self.core = OnlineRNN(nn.GRUCell(N), SnAp(order=1))
        self.head = nn.Dense(1)

    def __call__(self, state, xs, first):
        state, ys = self.core(state, xs, first)
        return state, self.head(ys)[..., 0]


def squared_error(variables, state, batch):
    state, y = Reader().apply(variables, state, batch.inputs, batch.first)
    return jnp.mean((y - batch.targets) ** 2), (state, {"mean": y.mean()})


@pytest.fixture(scope="module")
def stream():
    """Inputs `[12 T, B, M]`: noise, and a sign in the first of every 6 steps; targets: the sign."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(12 * T, B, M)).astype(np.float32)
    signs = rng.choice([-1.0, 1.0], (2 * T, B)).astype(np.float32)
    first = np.zeros((12 * T, B), bool)
    first[::6] = True
    inputs[..., 0] = 0.0
    inputs[::6, :, 0] = signs
    return inputs, np.repeat(signs, 6, axis=0), first


@pytest.fixture(scope="module")
def start():
    state = OnlineRNN(nn.GRUCell(N), SnAp(order=1)).initialize_carry(jax.random.key(0), (B, M))
    args = jnp.zeros((T, B, M)), jnp.zeros((T, B), bool)
    return Reader().init(jax.random.key(1), state, *args), state


def batches(stream, actors_hidden):
    inputs, targets, first = stream
    for k in range(len(inputs) // T):
        part = slice(k * T, (k + 1) * T)
        number = jnp.full(B, k, jnp.int32)
        cut = inputs[part], targets[part], first[part]
        yield Batch(*cut, actors_hidden, jnp.arange(B), number)


def test_pieces_of_a_stream_come_to_the_state_of_the_whole(stream, start):
    variables, state = start
    learner = make_learner(squared_error, optax.sgd(0.0))
    update, learned = jax.jit(learner.update), learner.init(variables, state)
    for k, batch in enumerate(batches(stream, state.hidden)):
        # what an actor says counts for a first segment only
        garbage = jax.tree.map(lambda h: h + 1e3, state.hidden) if k else state.hidden
        learned, _ = update(learned, batch._replace(hidden=garbage))
    inputs, _, first = stream
    whole, _ = jax.jit(Reader().apply)(variables, state, inputs, first)
    for ours, theirs in zip(*map(jax.tree.leaves, (learned.bank, whole)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole.influence)) > 0.1


def test_a_whole_bank_is_the_same_without_looking(stream, start):
    variables, state = start
    ends = []
    for promise in ({"whole_bank": True}, {}):
        learner = make_learner(squared_error, optax.adam(0.01), **promise)
        update, learned = jax.jit(learner.update), learner.init(variables, state)
        history = []
        for batch in batches(stream, state.hidden):
            learned, metrics = update(learned, batch)
            history.append(metrics)
        ends.append((learned, history))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *ends)


def test_streams_in_order_are_looked_at_and_not_looked_up(stream, start):
    """The second of three segments is lost for the stream 1."""
    variables, state = start
    ends = []
    for in_order in (True, False):
        learner = make_learner(squared_error, optax.adam(0.01), in_order=in_order)
        update, learned = jax.jit(learner.update), learner.init(variables, state)
        gaps = []
        for k, batch in enumerate(itertools.islice(batches(stream, state.hidden), 3)):
            lost = (jnp.arange(B) == 1) & (k > 0)
            learned, metrics = update(learned, batch._replace(number=batch.number + lost))
            gaps.append(int(metrics["gaps"]))
        assert gaps == [0, 1, 0]
        ends.append(learned)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *ends)


def test_a_supervised_task_is_learned(stream, start):
    variables, state = start
    learner = make_learner(squared_error, optax.adam(0.03), whole_bank=True)
    update, learned = jax.jit(learner.update), learner.init(variables, state)
    losses = []
    for _ in range(25):
        for batch in batches(stream, state.hidden):
            learned, metrics = update(learned, batch)
            losses.append(float(metrics["loss"]))
    # in every other segment the sign was shown in the one before: the variance there is 1
    assert np.mean(losses[1:12:2]) > 0.7
    assert np.mean(losses[-11::2]) < 0.1


# ---- several passes --------------------------------------------------------------------------


@pytest.fixture
def middle(stream, start):
    """A learner's state after a batch, and the next: it goes on in the middle of an episode."""
    variables, state = start
    learner = make_learner(squared_error, optax.sgd(0.1))
    update, learned = jax.jit(learner.update), learner.init(variables, state)
    before, batch, *_ = batches(stream, state.hidden)
    assert not batch.first[0].any()
    return update(learned, before)[0], batch


def made(epochs=1, minibatches=1, **options):
    learner = make_learner(
        squared_error, optax.sgd(0.1), epochs=epochs, minibatches=minibatches, **options
    )
    return jax.jit(learner.update)


def assert_close(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, theirs)


def test_what_is_carried_on_is_the_end_of_the_first_pass(middle):
    state, batch = middle
    once, _ = made()(state, batch)
    often, _ = made(epochs=3)(state, batch)
    jax.tree.map(np.testing.assert_array_equal, once.bank, often.bank)
    np.testing.assert_array_equal(once.number, often.number)
    assert (once.updates, often.updates) == (state.updates + 1, state.updates + 1)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), once.variables, often.variables)
    assert all(jax.tree.leaves(moved["params"]))


def test_every_pass_starts_from_the_state_that_was_carried(middle):
    """Three passes are three updates, with the bank put back in between."""
    state, batch = middle
    often, metrics = made(epochs=3)(state, batch)
    update, by_hand, told = made(), state, []
    for _ in range(3):
        by_hand = by_hand._replace(bank=state.bank, number=state.number)
        by_hand, m = update(by_hand, batch)
        told.append(m)
    assert_close(often.variables, by_hand.variables)
    for name in ("loss", "grad_norm", "mean"):
        np.testing.assert_allclose(metrics[name], np.mean([m[name] for m in told]), rtol=1e-5)
    # a pass that went on from the one before would have come elsewhere
    on = state
    for _ in range(3):
        on, _ = update(on._replace(number=state.number), batch)
    gap = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), often.variables, on.variables)
    assert max(jax.tree.leaves(gap)) > 1e-4


@pytest.mark.parametrize("whole_bank", [True, False])
def test_minibatches_part_the_streams(middle, whole_bank):
    """With a learning rate of 0 their gradients are, on average, the whole one."""
    state, batch = middle
    still = {"loss": squared_error, "optimizer": optax.sgd(0.0), "whole_bank": whole_bank}
    wanted, whole = jax.jit(make_learner(**still).update)(state, batch)
    found, parts = jax.jit(make_learner(**still, minibatches=2).update)(state, batch)
    assert_close(found.bank, wanted.bank)
    np.testing.assert_allclose(parts["loss"], whole["loss"], rtol=1e-5)
    assert parts["grad_norm"] > whole["grad_norm"]


def test_every_minibatch_is_a_step_and_their_order_changes(middle):
    state, batch = middle
    update = made(minibatches=B)
    ends = [update(state._replace(updates=jnp.int32(k)), batch)[0].variables for k in range(4)]
    seen = {float(jax.tree.leaves(v["params"])[0].ravel()[0]) for v in ends}
    assert len(seen) > 1
    again = update(state._replace(updates=jnp.int32(0)), batch)[0].variables
    jax.tree.map(np.testing.assert_array_equal, ends[0], again)
    # by hand: some order of single streams
    one = jax.jit(make_learner(squared_error, optax.sgd(0.1)).update)
    by_order = []
    for order in itertools.permutations(range(B)):
        by_hand = state
        for b in order:
            rows = {n: getattr(batch, n)[:, b : b + 1] for n in ("inputs", "targets", "first")}
            rows |= {n: getattr(batch, n)[b : b + 1] for n in ("stream", "number")}
            by_hand, _ = one(by_hand, batch._replace(hidden=batch.hidden[b : b + 1], **rows))
        by_order.append(by_hand.variables)
    gaps = [
        max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), ends[0], v)))
        for v in by_order
    ]
    assert min(gaps) < 1e-6 < sorted(gaps)[1]


def test_minibatches_that_do_not_come_out_even_are_refused(middle):
    state, batch = middle
    with pytest.raises(ValueError, match="4 streams cannot be shared out evenly among 3"):
        made(minibatches=3)(state, batch)


def test_what_is_prepared_holds_for_every_pass(middle):
    """Targets are fixed, and what `prepare` makes of the variables is learned on."""
    state, batch = middle

    def prepare(variables, carry, batch):
        assert jax.tree.structure(carry) == jax.tree.structure(state.bank)
        params = jax.tree.map(lambda x: 2 * x, variables["params"])
        return {**variables, "params": params}, batch._replace(targets=batch.targets + 1)

    found, _ = made(epochs=2, prepare=prepare)(state, batch)
    ready = prepare(state.variables, state.bank, batch)
    wanted, _ = made(epochs=2)(state._replace(variables=ready[0]), ready[1])
    assert_close(found, wanted)
