"""Masks: a weight that is masked away is not there, whatever was loaded and whoever asks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import probe, twin
from contract.registry import CELLS, DETERMINED, METHODS, B, Pattern, pairs

from snaprl.cores import OnlineRNN

pytestmark = pytest.mark.usefixtures("x64")

METHOD = pytest.mark.parametrize("method", METHODS)
T = 3


def loaded_with(variables, value):
    """The variables with `value` wherever the mask is 0."""
    params = jax.tree.map(
        lambda p, m: jnp.where(m, p, value),
        variables["params"]["cell"],
        variables["sparsity"]["cell"],
    )
    return variables | {"params": {"cell": params}}


@pairs()
def test_masked_weights_count_as_zero_whatever_was_loaded(method, cell):
    variables = probe.draw_variables(cell, 51, density=0.5)
    carry = probe.fresh(method, cell)
    for segment in (probe.draw_segment(51, T, reset_rate=0.2), probe.draw_segment(52, 1)):
        found, expected = (
            probe.program(method, cell)(loaded_with(variables, value), carry, segment)
            for value in (1e6, 0.0)
        )
        probe.assert_close(found, expected, 0.0)
        carry = found.carry


@pairs(DETERMINED)
def test_masked_weights_have_no_gradient_and_no_influence(method, cell):
    variables = probe.draw_variables(cell, 53, density=0.5)
    gone = ~twin.flat(variables["sparsity"]["cell"])
    segments = probe.draw_segment(53, T + 1).cut(T, 1)
    for outcome in probe.run_through(method, cell, variables, probe.fresh(method, cell), segments):
        gradient = twin.flat(outcome.params["cell"])
        assert not gradient[gone].any()
        assert gradient[~gone].any() == METHODS[method].learns
        J = twin.stand(method, cell, outcome.carry, variables).influence
        assert not J[..., gone].any()
        assert J[..., ~gone].any() == (METHODS[method].influence is not Pattern.NONE)


@METHOD
def test_a_pattern_may_change_without_compiling(method):
    """The program reads the collection `sparsity`; the mask of the module only starts it."""
    cell = "gru"
    params = {"cell": probe.draw_params(cell, 54)}
    segment, run = probe.draw_segment(54, T), probe.program(method, cell)
    carry = probe.fresh(method, cell)
    first = run(probe.draw_variables(cell, 54, 0.5) | {"params": params}, carry, segment)
    compiled = run._cache_size()
    second = run(probe.draw_variables(cell, 55, 0.5) | {"params": params}, carry, segment)
    assert run._cache_size() == compiled
    assert np.abs(np.asarray(first.ys - second.ys)).max() > 1e-3


@METHOD
def test_init_puts_the_mask_into_its_collection(method):
    """Under the parameters' own names; and the module's mask serves where the collection lacks."""
    cell = "lstm"
    mask = {"hi": {"kernel": np.eye(3)}, "ig": {"kernel": np.array([[1, 0, 1], [0, 1, 0]])}}
    rnn = OnlineRNN(CELLS[cell], METHODS[method].method, mask=mask)
    carry = rnn.initialize_carry(jax.random.key(0), (B, 2))
    segment = probe.draw_segment(56, T)
    variables = jax.jit(rnn.init)(jax.random.key(1), carry, segment.xs)
    kept = variables["sparsity"]["cell"]
    probe.assert_close(kept, jax.tree.map(jnp.asarray, mask), 0.0)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype(bool)}

    @jax.jit
    def gradient(variables):
        def loss(params):
            after, ys = rnn.apply(variables | {"params": params}, carry, segment.xs)
            return jnp.vdot(segment.weights, ys), (after, ys)

        return jax.grad(loss, has_aux=True)(variables["params"])

    found = gradient(variables)
    probe.assert_close(gradient({"params": variables["params"]}), found)
    # leaves that the mask does not name are dense
    full = probe.dense_mask(cell)
    for layer, leaves in mask.items():
        full[layer] |= {name: np.asarray(leaf, bool) for name, leaf in leaves.items()}
    whole = variables | {"sparsity": {"cell": jax.tree.map(jnp.asarray, full)}}
    expected = probe.program(method, cell)(whole, probe.fresh(method, cell), segment)
    gradient, (after, ys) = found
    probe.assert_close((gradient, ys), (expected.params, expected.ys))
    if "pattern" not in variables["sparsity"]:  # patterns of two masks have two shapes
        probe.assert_close(after, expected.carry)


def test_a_mask_inside_a_parent_lies_beside_its_parameters():
    class Parent(nn.Module):
        def setup(self):
            self.memory = OnlineRNN(nn.GRUCell(3), mask={"hr": {"kernel": np.eye(3)}})

        def __call__(self, carry, xs):
            return self.memory(carry, xs)

    carry = OnlineRNN(nn.GRUCell(3)).initialize_carry(jax.random.key(0), (B, 2))
    xs = jnp.ones((T, B, 2), jnp.float32)
    variables = jax.jit(Parent().init)(jax.random.key(1), carry, xs)
    assert set(variables["params"]["memory"]["cell"]) > {"hr"}
    assert jax.tree.map(jnp.shape, variables["sparsity"]) == {
        "memory": {"cell": {"hr": {"kernel": (3, 3)}}}
    }
    jax.jit(Parent().apply)(variables, carry, xs)


@METHOD
def test_acting_reads_the_mask(method):
    cell = "gru"
    variables = probe.draw_variables(cell, 57, density=0.4)
    segment, carry = probe.draw_segment(57, 1), probe.fresh(method, cell)
    expected = probe.program(method, cell)(variables, carry, segment)
    _, y = probe.core(method, cell).apply(
        loaded_with(variables, 1e6), carry, segment.xs[0], method="step"
    )
    probe.assert_close(y, expected.ys[0])
