"""Cells that are not unit-wise: a user's own, and flax's ConvLSTMCell, on the path that takes any.

The pattern's twin is jax's Jacobian at a few points drawn at random, of cells without flat places:
an entry that is zero at all of them is zero by structure.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.probe import assert_close
from jax.flatten_util import ravel_pytree

from snaprl.cores import BPTT, RFLO, RTRL, UORO, OnlineRNN, SnAp, rewire
from snaprl.cores.structure import dependencies

pytestmark = pytest.mark.usefixtures("x64")

B, T = 2, 4


class Deep(nn.RNNCellBase):
    """Two layers between one state and the next, in blocks that do not know of each other."""

    features: int = 4

    @nn.compact
    def __call__(self, carry, x):
        h, kept = carry["h"], carry["kept"]
        dense = {"param_dtype": jnp.float64, "dtype": jnp.float64}
        left, right = jnp.split(h, 2, axis=-1)
        middle = nn.tanh(nn.Dense(3, name="left", **dense)(left) + nn.Dense(3, **dense)(x))
        parts = [nn.Dense(2, name="up", **dense)(middle), nn.Dense(2, name="own", **dense)(right)]
        new = nn.tanh(jnp.concatenate(parts, axis=-1) + 0.3 * kept)
        return {"h": new, "kept": 0.5 * kept + 0.2 * h}, new

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        zeros = jnp.zeros((*input_shape[:-1], self.features), jnp.float64)
        return {"h": zeros, "kept": zeros}

    @property
    def num_feature_axes(self) -> int:
        return 1


CELLS = {
    "deep": (Deep(), (3,)),
    "conv": (nn.ConvLSTMCell(2, (3,), param_dtype=jnp.float64), (4, 1)),
    "lstm": (nn.LSTMCell(3, param_dtype=jnp.float64), (2,)),
}
CELL = pytest.mark.parametrize("name", CELLS)


def slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


def drawn(name, method, seed=0, mask=None, steps=T):
    """`(rnn, variables, carry, xs, resets, weights)`."""
    cell, inputs = CELLS[name]
    rnn = OnlineRNN(cell, method, mask=mask)
    rng = np.random.default_rng(seed)
    carry = rnn.initialize_carry(jax.random.key(0), (B, *inputs))
    xs = rng.normal(size=(steps, B, *inputs))
    variables = rnn.init(jax.random.key(1), carry, xs)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.7, p.shape)), variables["params"])
    ys = jax.eval_shape(rnn.apply, variables, carry, xs)[1]
    resets = rng.random((steps, B)) < 0.2
    return rnn, {**variables, "params": params}, carry, xs, resets, rng.normal(size=ys.shape)


def gradients(rnn, variables, carry, xs, resets, weights, split):
    """Summed over the pieces: `(params, xs, carry at the end)`."""

    @jax.jit
    def piece(params, carry, xs, resets, weights):
        def loss(params, xs):
            after, ys = rnn.apply({**variables, "params": params}, carry, xs, resets)
            return jnp.vdot(weights, ys), after

        return jax.grad(loss, (0, 1), has_aux=True)(params, xs)

    total, through, start = None, [], 0
    for length in split:
        cut = slice(start, start + length)
        (found, dxs), carry = piece(variables["params"], carry, xs[cut], resets[cut], weights[cut])
        total = found if total is None else jax.tree.map(jnp.add, total, found)
        through.append(dxs)
        start += length
    return total, jnp.concatenate(through), carry


def loop(name, params, xs, resets, weights):
    cell, inputs = CELLS[name]
    initial = cell.initialize_carry(jax.random.key(0), (B, *inputs))
    carry, total = initial, 0.0
    for x, reset, weight in zip(xs, resets, weights, strict=True):
        carry = jax.tree.map(
            lambda i, c, r=reset: jnp.where(r.reshape(-1, *(1,) * (c.ndim - 1)), i, c),
            initial,
            carry,
        )
        carry, y = cell.apply({"params": params["cell"]}, carry, x)
        total += jnp.vdot(weight, y)
    return total


@CELL
@pytest.mark.parametrize("method", [RTRL(), slow(BPTT(tail=RTRL())), BPTT(tail=RTRL(), pieces=2)])
def test_exact_methods_give_the_gradient_of_the_whole_history(name, method):
    rnn, variables, carry, *segment = drawn(name, method)
    expected = jax.grad(lambda p: loop(name, p, *segment))(variables["params"])
    for split in [(1, 3), (3, 1)]:
        assert_close(gradients(rnn, variables, carry, *segment, split)[0], expected)


@CELL
@pytest.mark.parametrize("pieces", [1, 2])
def test_a_tail_of_order_0_is_no_tail(name, pieces):
    found = []
    for tail in (None, SnAp(order=0)):
        rnn, variables, carry, *segment = drawn(name, BPTT(tail=tail, pieces=pieces))
        found.append(gradients(rnn, variables, carry, *segment, (1, 3))[0])
    assert_close(*found)


@CELL
@pytest.mark.parametrize("tail, pieces", [(SnAp(), 1), (SnAp(), 2), (RTRL(), 2)])
def test_a_stream_that_starts_anew_forgets_a_tail_that_is_nan(name, tail, pieces):
    rnn, variables, carry, xs, resets, weights = drawn(name, BPTT(tail=tail, pieces=pieces))
    resets[0, 0] = True
    sick = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), carry.influence)
    found, expected = (
        gradients(rnn, variables, start, xs, resets, weights, (T,))
        for start in (carry._replace(influence=sick), carry)
    )
    assert_close(found, expected, 0.0)


@CELL
@pytest.mark.parametrize("pieces", [1, 2, 3, 9])
def test_backpropagation_is_exact_inside_its_segment(name, pieces):
    rnn, variables, carry, *segment = drawn(name, BPTT(pieces=pieces), steps=5)
    expected = jax.grad(lambda p, xs: loop(name, p, xs, *segment[1:]), (0, 1))(
        variables["params"], segment[0]
    )
    assert_close(gradients(rnn, variables, carry, *segment, (5,))[:2], expected)


def jacobian_pattern(name):
    """`(D, I)` as bool, `[S, S]` and `[S, P]`, from values, at points without accidents."""
    cell, _ = CELLS[name]
    _, variables, carry, xs, _, _ = drawn(name, BPTT())
    theta, to_params = ravel_pytree(variables["params"]["cell"])
    h, to_carry = ravel_pytree(jax.tree.map(lambda x: x[:1], carry.hidden))
    x = xs[0, :1]

    def step(h, theta):
        return ravel_pytree(cell.apply({"params": to_params(theta)}, to_carry(h), x)[0])[0]

    jacobian = jax.jit(jax.jacobian(step, (0, 1)))
    D, immediate = 0, 0
    rng = np.random.default_rng(5)
    for _ in range(3):
        d, i = jacobian(rng.normal(size=h.shape), rng.normal(size=theta.shape))
        D, immediate = D + np.abs(d), immediate + np.abs(i)
    return np.asarray(D) > 0, np.asarray(immediate) > 0


@CELL
@pytest.mark.parametrize("order", [0, 1, 2, slow(3)])
def test_snap_is_its_definition_entry_by_entry(name, order):
    """(3) with (4) and (5), dense and masked, on jax's Jacobians; one-hot inputs included."""
    method = SnAp(order=order, entries=True)
    rnn, variables, carry, xs, resets, weights = drawn(name, method)
    xs = np.where(np.arange(xs.size).reshape(xs.shape) % 2, xs, 0.0)
    D, S_1 = jacobian_pattern(name)
    S = S_1
    for _ in range(order - 1):
        S = S_1 | (D.astype(int) @ S.astype(int) > 0)

    cell, _ = CELLS[name]
    theta, to_params = ravel_pytree(variables["params"]["cell"])
    initial = jax.tree.map(lambda x: x[:1], carry.hidden)
    h_0, to_carry = ravel_pytree(initial)

    @jax.jit
    def linearise(h, x):
        def step(h, t):
            after, _ = cell.apply({"params": to_params(t)}, to_carry(h), x[None])
            return ravel_pytree(after)[0]

        return step(h, theta), *jax.jacobian(step, (0, 1))(h, theta)

    expected = np.zeros(theta.shape)
    readout = jax.jacobian(lambda h: output(name, to_carry(h)))(h_0)
    for b in range(B):
        h, J = h_0, np.zeros(S.shape)
        for t in range(T):
            if resets[t, b]:
                h, J = h_0, np.zeros(S.shape)
            h, D_t, I_t = linearise(h, xs[t, b])
            ct = np.tensordot(weights[t, b], readout, weights[t, b].ndim)
            J = S * (np.asarray(I_t) + np.asarray(D_t) @ J) if order else np.zeros(S.shape)
            expected += ct @ (J if order else np.asarray(I_t))
    for split in [(4,), (1, 1, 2)]:
        found, _, after = gradients(rnn, variables, carry, xs, resets, weights, split)
        np.testing.assert_allclose(ravel_pytree(found)[0], expected, rtol=1e-12, atol=1e-12)
    if order:
        assert after.influence.shape == (B, S.sum())


def output(name, carry):
    """What the cell gives out, of one stream."""
    return (carry["h"] if name == "deep" else carry[1])[0]


@pytest.mark.parametrize("around", [lambda method: method, slow(lambda method: BPTT(tail=method))])
@pytest.mark.parametrize("density", [None, 0.4])
@pytest.mark.parametrize("order", [1, 2])
def test_on_cells_of_one_variable_both_paths_are_one(order, density, around):
    """The general path knows nothing of units, and gives what the fast one gives."""
    cell = nn.GRUCell(4, param_dtype=jnp.float64)
    mask = None
    if density:
        keep = np.random.default_rng(3).random((4, 4)) < density
        mask = {f"h{g}": {"kernel": keep} for g in "rzn"}
    found = []
    for entries in (False, True):
        CELLS["gru"] = (cell, (2,))
        try:
            method = around(SnAp(order, entries))
            rnn, variables, carry, *segment = drawn("gru", method, mask=mask)
        finally:
            del CELLS["gru"]
        found.append(gradients(rnn, variables, carry, *segment, (1, 3))[0])
    assert_close(found[0], found[1])
    assert np.abs(ravel_pytree(found[0])[0]).max() > 0.1


@CELL
def test_acting_is_the_cell_itself(name):
    rnn, variables, carry, xs, _, _ = drawn(name, SnAp())
    cell, _ = CELLS[name]
    after, y = rnn.apply(variables, carry, xs[0], method="step")
    expected, y_flax = cell.apply({"params": variables["params"]["cell"]}, carry.hidden, xs[0])
    assert_close((after.hidden, y), (expected, y_flax))
    assert after.influence is carry.influence


def test_what_is_not_known_reads_everything():
    """A primitive without a rule remembers too much, and loses nothing."""
    pattern = dependencies(lambda x: jnp.cumsum(x) * jnp.arange(3.0), [jnp.ones(3)])[0]
    assert pattern.toarray().all()


def test_a_zero_by_structure_hides_what_it_multiplies():
    there = [np.array([True, False]), np.array([True, True])]
    (pattern,) = dependencies(lambda x, y: x * y, [jnp.ones(2)] * 2, there)
    assert pattern.toarray().tolist() == [[True, False, True, False], [False, False, False, False]]


class Wrong(Deep):
    @nn.compact
    def __call__(self, carry, x):
        return carry, nn.Dense(2)(carry["h"])


def test_an_output_that_is_no_state_is_refused():
    rnn = OnlineRNN(Wrong(), SnAp())
    with pytest.raises(ValueError, match="is not a function of its new carry alone"):
        rnn.initialize_carry(jax.random.key(0), (B, 3))


@pytest.mark.parametrize("method", [RFLO(), UORO()])
def test_methods_for_unit_wise_cells_say_so(method):
    with pytest.raises(TypeError, match="Deep is not known to be unit-wise"):
        OnlineRNN(Deep(), method).initialize_carry(jax.random.key(0), (B, 3))


def test_the_shape_of_inputs_is_the_cells():
    cell, _ = CELLS["conv"]
    rnn = OnlineRNN(cell, SnAp())
    with pytest.raises(ValueError, match=r"must be \(streams, inputs, inputs\)"):
        rnn.initialize_carry(jax.random.key(0), (B, 4))


METHOD = pytest.mark.parametrize("method", [SnAp(), SnAp(2), RTRL(), BPTT(tail=SnAp(2))])


@CELL
@METHOD
def test_streams_know_nothing_of_each_other(name, method):
    """Law 6: a batch is its streams one by one, and a stream's NaN stays in it."""
    rnn, variables, carry, xs, resets, weights = drawn(name, method)

    @jax.jit
    def learn(carry, xs, resets, weights):
        def loss(params, xs):
            after, ys = rnn.apply({**variables, "params": params}, carry, xs, resets)
            return jnp.vdot(weights, ys), after

        return jax.grad(loss, (0, 1), has_aux=True)(variables["params"], xs)

    (grads, through), after = learn(carry, xs, resets, weights)
    apart = [
        learn(
            jax.tree.map(lambda x, b=b: x[b : b + 1], carry),
            *(x[:, b : b + 1] for x in (xs, resets, weights)),
        )
        for b in range(B)
    ]
    assert_close(grads, jax.tree.map(lambda *g: sum(g), *(found[0][0] for found in apart)))
    assert_close(through, jnp.concatenate([found[0][1] for found in apart], axis=1))
    joined = jax.tree.map(lambda *x: jnp.concatenate(x), *(found[1] for found in apart))
    assert_close(after, joined)
    sick = learn(carry, _sick(xs), resets, weights)
    well = jax.tree.map(lambda x: x[1:], sick[1])
    assert_close(well, jax.tree.map(lambda x: x[1:], after))
    assert_close(sick[0][1][:, 1:], through[:, 1:])


def _sick(xs):
    xs = xs.copy()
    xs[1, 0] = np.nan
    return xs


@CELL
@METHOD
def test_nothing_compiles_twice(name, method):
    rnn, variables, carry, xs, resets, _ = drawn(name, method)
    run = jax.jit(rnn.apply)
    for _ in range(3):
        carry, _ = run(variables, carry, xs, resets)
    assert run._cache_size() == 1


@pytest.mark.parametrize("method", [SnAp(1, entries=True), SnAp(2, entries=True), RTRL()])
def test_a_mask_that_changes_keeps_the_influence_of_what_stays(method):
    name = "gru" if method != RTRL() else "deep"
    leaf = ("hr", (4, 4)) if name == "gru" else ("left", (2, 3))
    CELLS["gru"] = (nn.GRUCell(4, param_dtype=jnp.float64), (2,))
    rng = np.random.default_rng(0)

    def mask(density):
        return {leaf[0]: {"kernel": rng.random(leaf[1]) < density}}

    try:
        rnn, variables, carry, xs, resets, weights = drawn(name, method, mask=mask(1.1))
        _, _, carry = gradients(rnn, variables, carry, xs, resets, weights, (4,))
        run = jax.jit(rnn.apply)
        run(variables, carry, xs, resets)
        old = _dense(variables, carry)
        for density in (0.3, 0.6):
            new = mask(density)
            variables, carry = rewire(rnn, variables, new, (B, *CELLS[name][1]), carry)
            found, anew = _dense(variables, carry), drawn(name, method, mask=new)
            reached = _dense(anew[1], anew[2]._replace(influence=np.ones_like(anew[2].influence)))
            np.testing.assert_array_equal(found, np.where(reached == 1, old, 0))
            assert found.any()
            # and learning goes on as in a core that was made with this mask
            fresh = {**anew[1], "params": variables["params"]}
            start = anew[2]
            for way in (variables, fresh):
                state = (
                    start
                    if way is fresh
                    else start._replace(influence=jnp.zeros_like(carry.influence))
                )
                total, _, end = gradients(rnn, way, state, xs, resets, weights, (2, 2))
                way["found"] = ravel_pytree(total)[0], _dense(way, end)
            for a, b in zip(variables.pop("found"), fresh.pop("found"), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
            old = found
        carry, _ = run(variables, carry, xs, resets)
        assert run._cache_size() == 1
    finally:
        del CELLS["gru"]


def _dense(variables, carry):
    """The influence `[B, S, P]`."""
    row, column = map(np.asarray, variables["sparsity"]["pattern"])
    size = ravel_pytree(variables["params"]["cell"])[0].size
    states = sum(x[0].size for x in jax.tree.leaves(carry.hidden))
    whole = np.zeros((B, states, size + 1))
    whole[:, row, column] = carry.influence
    return whole[..., :-1]


def test_a_pattern_of_entries_without_room_is_refused():
    keep = np.zeros((2, 3), bool)
    rnn, variables, *_ = drawn("deep", RTRL(), mask={"left": {"kernel": keep}})
    with pytest.raises(ValueError, match="the new pattern does not fit where the old one was"):
        rewire(rnn, variables, {"left": {"kernel": ~keep}}, (B, 3))
