"""nnx's cells that are not known by name: a user's own, and known ones that were changed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import probe
from contract.nnx_probe import TRACED, act, draw, fresh, make_cell, run
from contract.registry import B, M, N
from flax import nnx

from snaprl.cores import BPTT, RTRL, CoreState, Mask, SnAp
from snaprl.cores.nnx import OnlineRNN

T = 3
SEEN = ((0, 1), (1, 1))  # a reset in the middle of a segment


class GRUCell(nnx.GRUCell):
    """The same cell, which nobody can know."""


class OwnCell(nnx.RNNCellBase):
    """Layers in a list, a norm that mixes units, and a carry of two arrays."""

    in_features = M

    def __init__(self, seed: int):
        rngs = nnx.Rngs(seed)
        kind = {"param_dtype": jnp.float64, "rngs": rngs}
        self.layers = nnx.List([nnx.Linear(M, N, **kind), nnx.Linear(N, N, **kind)])
        self.norm = nnx.LayerNorm(N, **kind)
        self.decay = nnx.Param(jnp.linspace(0.2, 0.9, N))
        self.scale = jnp.linspace(0.5, 1.0, N)  # a constant
        self.frozen = nnx.Variable(jnp.linspace(1.0, 2.0, N))  # another

    def __call__(self, carry, inputs):
        h, trace = carry
        h = nnx.tanh(self.norm(self.layers[0](inputs) + self.layers[1](h)) + trace)
        h = self.scale[None] * self.frozen[...][None] * h
        return (h, self.decay[None] * trace + h), h

    def initialize_carry(self, input_shape, rngs=None):
        zeros = jnp.full((*input_shape[:-1], N), 0.1)
        return zeros, zeros


def changed() -> nnx.GRUCell:
    """A GRU with a layer of another kind."""
    cell, rngs = make_cell("gru"), nnx.Rngs(1)
    cell.dense_h = nnx.LoRALinear(
        N,
        3 * N,
        lora_rank=2,
        use_bias=False,
        param_dtype=jnp.float64,
        lora_param_dtype=jnp.float64,
        rngs=rngs,
    )
    cell.dense_h.lora.lora_b[...] = jax.random.normal(jax.random.key(2), (2, 3 * N))
    return cell


def with_slopes() -> nnx.GRUCell:
    """A GRU whose activation has a parameter of its own."""
    slopes = nnx.PReLU(param_dtype=jnp.float64)
    return nnx.GRUCell(M, N, activation_fn=slopes, param_dtype=jnp.float64, rngs=nnx.Rngs(1))


def with_frozen_weights() -> nnx.GRUCell:
    cell = make_cell("gru")
    cell.dense_h.kernel = nnx.BatchStat(cell.dense_h.kernel[...])
    return cell


MAKE = {
    "own": lambda: OwnCell(3),
    "changed": changed,
    "with slopes": with_slopes,
    "with frozen weights": with_frozen_weights,
}


@nnx.jit
def by_nnx(cell, segment: probe.Segment) -> tuple:
    """Forward values of whole streams, and the gradients that autodiff gives."""

    def loss(cell):
        start = cell.initialize_carry((B, M), nnx.Rngs(0))
        carry, ys = start, []
        for x, reset in zip(segment.xs, segment.resets, strict=True):
            anew = functools.partial(jnp.where, reset[:, None])
            carry = jax.tree.map(anew, start, carry)
            carry, y = cell(carry, x)
            ys.append(y)
        return jnp.vdot(segment.weights, jnp.stack(ys)), (carry, jnp.stack(ys))

    grads, (carry, ys) = nnx.grad(loss, has_aux=True)(cell)
    return nnx.to_pure_dict(grads), carry, ys


@pytest.mark.parametrize("cell", MAKE)
def test_forward_and_exact_gradients_are_those_of_nnx(cell, x64):
    """Over two segments: the second has a history."""
    rnn, whole = OnlineRNN(MAKE[cell](), RTRL()), probe.draw_segment(70, 2 * T)
    for at in SEEN:
        whole.resets[at] = True
    carry, grads, ys = fresh(rnn), [], []
    for segment in whole.cut(T, T):
        out = run(rnn, carry, segment)
        carry, grads, ys = out.carry, [*grads, out.params], [*ys, out.ys]
    expected_grads, expected_carry, expected = by_nnx(rnn.cell, whole)
    probe.assert_close(jnp.concatenate(ys), expected)
    probe.assert_close(carry.hidden, expected_carry)
    probe.assert_close(jax.tree.map(jnp.add, *grads), expected_grads)


@pytest.mark.parametrize("method", [SnAp(order=1), SnAp(order=2), BPTT()], ids=repr)
def test_a_cell_that_is_not_known_learns_as_the_one_that_is(method, x64):
    segments = probe.draw_segment(71, 2 * T, reset_rate=0.2).cut(T, T)
    outcomes = []
    for cell in (make_cell("gru"), GRUCell(M, N, param_dtype=jnp.float64, rngs=nnx.Rngs(0))):
        nnx.update(cell, draw("gru", 71))
        rnn = OnlineRNN(cell, method)
        first = run(rnn, fresh(rnn), segments[0])
        second = run(rnn, first.carry, segments[1])
        outcomes.append((second.params, second.ys, second.carry.hidden))
    probe.assert_close(*outcomes)


def test_masks_find_layers_in_lists(x64):
    keep = np.random.default_rng(72).random((2, N, N)) < 0.5
    whole = probe.draw_segment(72, T)
    rnn = OnlineRNN(OwnCell(3), RTRL(), mask={"layers": {1: {"kernel": np.ones((N, N))}}})
    roomy = Mask({"layers": {1: {"kernel": np.ones((N, N))}}}, room=1.5)
    assert OnlineRNN(OwnCell(3), RTRL(), roomy).mask.keys() == rnn.mask.keys()
    for kept in keep:
        carry = rnn.rewire({"layers": {1: {"kernel": kept}}})
        out = run(rnn, fresh(rnn), whole)
        cell = OwnCell(3)
        cell.layers[1].kernel[...] *= kept
        expected, _, ys = by_nnx(cell, whole)
        expected["layers"][1]["kernel"] *= kept
        probe.assert_close((out.params, out.ys), (expected, ys))
        assert carry is None


def test_acting_is_the_forward_pass(x64):
    rnn, segment = OnlineRNN(OwnCell(3)), probe.draw_segment(73, T)
    expected = run(rnn, fresh(rnn), segment)
    carry = CoreState(fresh(rnn).hidden, ())
    for x, reset, y in zip(segment.xs, segment.resets, expected.ys, strict=True):
        carry, found = act(rnn, carry, x, reset)
        probe.assert_close(found, y)
    probe.assert_close(carry.hidden, expected.carry.hidden)


def test_cells_of_one_kind_share_a_program(x64):
    """What is compiled for one serves another, whose values differ."""
    segment, ys = probe.draw_segment(74, T), []
    for seed in (3, 4):
        rnn, traced = OnlineRNN(OwnCell(seed)), len(TRACED)
        ys.append(run(rnn, fresh(rnn), segment).ys)
    assert len(TRACED) == traced
    assert not np.allclose(*ys)


def test_a_fresh_carry_may_be_donated(x64):
    """Both of its arrays are one in the cell."""
    rnn, segment = OnlineRNN(OwnCell(3)), probe.draw_segment(75, T)
    graph, state = nnx.split(rnn)
    carry = fresh(rnn)

    @functools.partial(jax.jit, donate_argnums=1)
    def forward(state, carry, xs):
        return nnx.merge(graph, state)(carry, xs)

    forward(state, carry, segment.xs)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(carry))
