"""nnx's cells under `snaprl.cores.nnx.OnlineRNN`: forward as nnx, gradients as with linen."""

import pickle
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from contract import probe
from contract.nnx_probe import (
    CELL,
    TRACED,
    act,
    as_linen,
    draw,
    draw_mask,
    forward,
    fresh,
    make_cell,
    module,
    pairs,
    run,
    run_nnx,
)
from contract.registry import METHODS, B, Law, M, N
from flax import nnx

from snaprl.cores import RTRL, CoreState, SnAp, rewire
from snaprl.cores.nnx import OnlineRNN, Wiring

T = 3


# ---- forward ---------------------------------------------------------------------------------


@pairs()
def test_forward_values_are_those_of_nnx(method, cell, x64):
    rnn, segment = module(method, cell, 61), probe.draw_segment(61, T)
    found, expected = run(rnn, fresh(rnn), segment), run_nnx(nnx.RNN(rnn.cell), segment)
    probe.assert_close(found.ys, expected.ys)
    probe.assert_close(found.carry.hidden, expected.carry.hidden)


# bfloat16 is that of the linear maps, of which SimpleCell has nothing else
@pytest.mark.parametrize(
    ("cell", "dtype"),
    [("gru", None), ("gru", jnp.bfloat16), ("lstm", jnp.bfloat16), ("optimized-lstm", None)],
)
def test_forward_values_are_those_of_nnx_in_short_floats(cell, dtype):
    plain = make_cell(cell, param_dtype=jnp.float32, dtype=dtype)
    xs = jnp.asarray(np.random.default_rng(62).normal(size=(T, B, M)), jnp.float32)
    rnn = OnlineRNN(plain)
    carry, ys = forward(rnn, fresh(rnn), xs)
    expected_carry, expected = nnx.jit(nnx.RNN.__call__)(
        nnx.RNN(plain, time_major=True, return_carry=True), xs
    )
    probe.assert_close(ys, expected, 1e-6)
    probe.assert_close(carry.hidden, expected_carry, 1e-6)
    assert {leaf.dtype for leaf in jax.tree.leaves((carry, ys))} == {jnp.dtype(jnp.float32)}


# ---- gradients -------------------------------------------------------------------------------


@pairs()
def test_gradients_and_carries_are_those_of_linen(method, cell, x64):
    """With resets and a mask, over two segments: the second starts from an influence."""
    rnn = module(method, cell, 64, density=0.7)
    variables = {
        "params": {"cell": as_linen(cell, draw(cell, 64))},
        "sparsity": {"cell": as_linen(cell, draw_mask(cell, 65, 0.7))},
    }
    segments = probe.draw_segment(64, 2 * T, reset_rate=0.2).cut(T, T)
    segments[1].resets[1] = [True, False]
    carry = linen_carry = probe.fresh(
        method, cell
    )  # whose keys come from another stream than nnx's
    probe.assert_close(probe.floats(fresh(rnn)), probe.floats(carry), 0.0)
    for segment in segments:
        found = run(rnn, carry, segment)
        expected = probe.program(method, cell)(variables, linen_carry, segment)
        gradient = as_linen(cell, found.params)
        probe.assert_close(gradient, expected.params["cell"])
        for part in ("carry", "ys", "xs", "old_carry"):
            probe.assert_close(getattr(found, part), getattr(expected, part))
        learns = METHODS[method].learns
        assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient)) == learns
        carry, linen_carry = found.carry, expected.carry


@pairs(["bptt", "tail-snap1", "rtrl"])
def test_backpropagation_gives_what_nnx_gives(method, cell, x64):
    """And so every leaf of the gradient lies where nnx has it, whatever linen does."""
    rnn, segment = module(method, cell, 66), probe.draw_segment(66, T)
    found, expected = run(rnn, fresh(rnn), segment), run_nnx(nnx.RNN(rnn.cell), segment)
    probe.assert_close(found.params, expected.params)
    probe.assert_close(found.xs, expected.xs)


@pairs([name for name, row in METHODS.items() if Law.EXACT in row.laws])
def test_exact_methods_give_the_gradient_of_the_whole_history(method, cell, x64):
    rnn, segment = module(method, cell, 67), probe.draw_segment(67, 2 * T)
    carry, gradients = fresh(rnn), []
    for part in segment.cut(T, T):
        outcome = run(rnn, carry, part)
        carry, gradients = outcome.carry, [*gradients, outcome.params]
    found, expected = jax.tree.map(jnp.add, *gradients), run_nnx(nnx.RNN(rnn.cell), segment)
    probe.assert_close(found, expected.params)


# ---- parameters and carries ------------------------------------------------------------------


@CELL
def test_parameters_lie_where_nnx_has_them_and_move_either_way(cell, x64):
    online, plain = OnlineRNN(make_cell(cell)), nnx.RNN(make_cell(cell), time_major=True)
    assert set(nnx.state(online)) == {"cell"}
    assert jax.tree.structure(nnx.state(online)["cell"]) == jax.tree.structure(
        nnx.state(plain)["cell"]
    )
    for source, target in ((online, plain), (plain, online)):
        nnx.update(source.cell, draw(cell, 68))
        nnx.update(target.cell, jax.tree.map(jnp.zeros_like, nnx.state(target.cell)))
        nnx.update(target.cell, nnx.state(source.cell))
        probe.assert_close(nnx.to_pure_dict(nnx.state(target)["cell"]), draw(cell, 68), 0.0)
    assert OnlineRNN(plain.cell).cell is plain.cell


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_carry_is_drawn_as_nnx_draws_it(cell, x64):
    rnn = OnlineRNN(make_cell(cell, carry_init=nnx.initializers.normal(1.0)))
    expected = rnn.cell.initialize_carry((B, M), nnx.Rngs(carry=7))
    for rngs in (nnx.Rngs(carry=7), nnx.Rngs(7), nnx.Rngs(carry=7).carry, jax.random.key(7)):
        probe.assert_close(rnn.initialize_carry((B, M), rngs).hidden, expected, 0.0)
    rngs = nnx.Rngs(7)
    first, second = (rnn.initialize_carry((B, M), rngs).hidden for _ in range(2))
    assert not np.array_equal(jax.tree.leaves(first)[0], jax.tree.leaves(second)[0])


def test_pickle_and_orbax_keep_a_carry(tmp_path, x64):
    rnn = module("snap1", "optimized-lstm", 69, density=0.7)
    before, segment = probe.draw_segment(69, 2 * T).cut(T, T)
    carry = run(rnn, fresh(rnn), before).carry
    graph, state = nnx.split(rnn)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", {"state": state, "carry": carry})
        checkpointer.wait_until_finished()
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            {"state": state, "carry": carry},
        )
        restored = checkpointer.restore(tmp_path / "saved", abstract)
    expected = run(rnn, carry, segment)
    again = nnx.merge(graph, restored["state"])
    for kept in (restored["carry"], pickle.loads(pickle.dumps(carry))):
        assert isinstance(kept, CoreState)
        probe.assert_close(run(again, kept, segment), expected, 0.0)


# ---- masks -----------------------------------------------------------------------------------


@pairs()
def test_masked_weights_are_not_there_whatever_was_loaded(method, cell, x64):
    """Their gradient is 0; a step sees them no more than a segment does."""
    rnn, segment = module(method, cell, 71, density=0.5), probe.draw_segment(71, T)
    mask = nnx.to_pure_dict(nnx.state(rnn, Wiring))["mask"]
    expected = run(rnn, fresh(rnn), segment)
    gone = jax.tree.map(lambda g, keep: np.where(keep, 0.0, g), expected.params, mask)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gone))
    params = nnx.to_pure_dict(nnx.state(rnn.cell, nnx.Param))
    nnx.update(rnn.cell, jax.tree.map(lambda p, keep: jnp.where(keep, p, jnp.nan), params, mask))
    probe.assert_close(run(rnn, fresh(rnn), segment), expected, 0.0)
    _, y = act(rnn, fresh(rnn)._replace(influence=()), segment.xs[0])
    probe.assert_close(y, expected.ys[0])


@pairs()
def test_a_pattern_may_change_without_compiling(method, cell, x64):
    rnn, segment = module(method, cell, 72, density=0.5), probe.draw_segment(72, T)
    first = run(rnn, fresh(rnn), segment)
    traced = len(TRACED)
    carry = rnn.rewire(draw_mask(cell, 74, 0.5), first.carry)
    second = run(rnn, fresh(rnn), segment)
    run(rnn, carry, segment)
    assert len(TRACED) == traced > 0
    assert np.abs(np.asarray(first.ys - second.ys)).max() > 1e-3


@pairs()
def test_rewiring_does_to_a_carry_what_it_does_with_linen(method, cell, x64):
    rnn, segment = module(method, cell, 75, density=0.5), probe.draw_segment(75, T)
    linen, masks = probe.core(method, cell), [draw_mask(cell, seed, 0.5) for seed in (76, 77)]
    variables = {
        "params": {"cell": as_linen(cell, draw(cell, 75))},
        "sparsity": {"cell": as_linen(cell, masks[0])},
    }
    variables = probe.with_pattern(linen, variables)
    carry = run(rnn, fresh(rnn), segment).carry
    _, expected = rewire(linen, variables, as_linen(cell, masks[1]), (B, M), carry)
    probe.assert_close(rnn.rewire(masks[1], carry), expected, 0.0)
    probe.assert_close(nnx.to_pure_dict(nnx.state(rnn, Wiring))["mask"], masks[1], 0.0)


def test_leaves_that_a_mask_leaves_out_are_dense(x64):
    part = {"dense_h": {"kernel": np.eye(N)}}
    rnn, full = OnlineRNN(make_cell("residual"), mask=part), module("snap1", "residual", 73)
    nnx.update(rnn.cell, draw("residual", 73))
    full.rewire(jax.tree.map(np.ones_like, draw_mask("residual", 0, 1.0)) | part)
    described = jax.tree.map(np.shape, nnx.to_pure_dict(nnx.state(rnn, Wiring))["mask"])
    assert described == {"dense_h": {"kernel": (N, N)}}
    segment = probe.draw_segment(73, T)
    probe.assert_close(run(rnn, fresh(rnn), segment), run(full, fresh(full), segment), 0.0)


# ---- acting, transforms ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "influence"), [("residual", True), ("gru-custom", False), ("optimized-lstm", False)]
)
def test_acting_is_the_forward_pass_and_leaves_influence_alone(cell, influence, x64):
    rnn = module("snap1", cell, 74, density=0.7)
    before, segment = probe.draw_segment(74, 2 * T).cut(T, T)
    segment.resets[1] = [True, False]
    carry = run(rnn, fresh(rnn), before).carry
    expected = run(rnn, carry, segment)
    acting = carry if influence else carry._replace(influence=())
    ys = []
    for x_t, reset_t in zip(segment.xs, segment.resets, strict=True):
        acting, y_t = act(rnn, acting, x_t, reset_t)
        ys.append(y_t)
    probe.assert_close(jnp.stack(ys), expected.ys)
    probe.assert_close(acting.hidden, expected.carry.hidden)
    probe.assert_close(acting.influence, carry.influence if influence else (), 0.0)


def test_batch_major_is_the_same_with_two_axes_exchanged(x64):
    rnn, segment = module("snap1", "gru", 75), probe.draw_segment(75, T, reset_rate=0.3)
    expected = run(rnn, fresh(rnn), segment)
    turned = OnlineRNN(rnn.cell, rnn.method, time_major=False)
    xs, resets = (jnp.swapaxes(x, 0, 1) for x in (segment.xs, segment.resets))
    carry, ys = forward(turned, fresh(turned), xs, resets)
    probe.assert_close(ys, jnp.swapaxes(expected.ys, 0, 1))
    probe.assert_close(carry, expected.carry)


@pytest.mark.parametrize("method", ["snap1", pytest.param("tail-rtrl", marks=pytest.mark.slow)])
def test_jax_transforms_a_split_module(method, x64):
    """jit with donation, checkpoint and grad; and what comes back has the types that went in."""
    rnn, segment = module(method, "optimized-lstm", 76, density=0.7), probe.draw_segment(76, T)
    expected = run(rnn, fresh(rnn), segment)
    graph, params, rest = nnx.split(rnn, nnx.Param, ...)

    def learn(params, carry, rest, segment):
        @jax.checkpoint
        def loss(params):
            after, ys = nnx.merge(graph, params, rest)(carry, segment.xs, segment.resets)
            return jnp.vdot(segment.weights, ys), after

        grads, carry = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), carry

    learn = jax.jit(learn, donate_argnums=(0, 1))
    types = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), fresh(rnn))
    old = nnx.to_pure_dict(jax.tree.map(np.array, params))["cell"]
    params, carry = learn(params, fresh(rnn), rest, segment)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), carry) == types
    probe.assert_close(carry, expected.carry)
    updated = jax.tree.map(lambda p, g: p - 0.1 * g, old, expected.params)
    probe.assert_close(nnx.to_pure_dict(params)["cell"], updated)
    learn(params, carry, rest, segment)
    assert learn._cache_size() == 1


@pytest.mark.parametrize("method", [SnAp(), RTRL()])
def test_a_module_may_be_made_under_jit(method):
    def make():
        cell = nnx.GRUCell(M, N, rngs=nnx.Rngs(0))
        return OnlineRNN(cell, method, mask={"dense_h": {"kernel": np.tile(np.eye(N), 3)}})

    made, expected = nnx.jit(make)(), make()
    assert nnx.graphdef(made) == nnx.graphdef(expected)
    assert nnx.graphdef(nnx.eval_shape(make)) == nnx.graphdef(expected)
    probe.assert_close(nnx.state(made), nnx.state(expected), 1e-6)


def test_the_documentation_learns(capsys):
    text = (Path(__file__).parents[2] / "docs" / "nnx.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/nnx.md", "exec"), names)
    error = float(re.search(r"squared error ([\d.]+)", capsys.readouterr().out)[1])
    assert error < 0.02
