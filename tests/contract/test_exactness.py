"""Laws 1 and 4: against `jax.grad` of a Python loop over flax's own cell, resets included."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import pytest
from contract import probe
from contract.registry import CELLS, DIAGONAL, METHODS, B, Law, M, Pattern, keeping, pairs

pytestmark = pytest.mark.usefixtures("x64")


def flax_loop(cell, params, segment):
    """The loss of a segment from fresh streams, one call of flax's cell per step."""
    initial = cell.initialize_carry(jax.random.key(0), (B, M))
    carry, loss = initial, 0.0
    for x_t, reset_t, weight_t in zip(*segment, strict=True):
        carry = jax.tree.map(lambda i, c, r=reset_t: jnp.where(r[:, None], i, c), initial, carry)
        carry, y_t = cell.apply({"params": params}, carry, x_t)
        loss += jnp.vdot(probe.widened(weight_t, y_t), y_t)
    return loss


@lru_cache
def flax_gradient(cell):
    """`(params, segment)` to the gradients of the parameters and of the inputs."""

    def loss(params, xs, segment):
        return flax_loop(CELLS[cell], params, segment._replace(xs=xs))

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return lambda params, segment: gradient(params, segment.xs, segment)


def masked(params, mask):
    return jax.tree.map(lambda p, m: p * m, params, mask)


@pairs(keeping(Law.EXACT))
@pytest.mark.parametrize("density", [1.0, 0.6])
def test_exact_methods_give_the_gradient_of_the_whole_history(method, cell, density):
    variables = probe.draw_variables(cell, 11, density)
    params, mask = variables["params"]["cell"], variables["sparsity"]["cell"]
    segment = probe.draw_segment(11, 4, reset_rate=0.2)
    segment.resets[2] = [True, False]
    expected, _ = flax_gradient(cell)(masked(params, mask), segment)
    for split in [(1, 3), (3, 1), (1, 1, 1, 1)]:
        outcomes = probe.run_through(
            method, cell, variables, probe.fresh(method, cell), segment.cut(*split)
        )
        probe.assert_close(probe.added(outcomes)["cell"], masked(expected, mask))


@pytest.mark.parametrize("cell", DIAGONAL)
@pytest.mark.parametrize("method", ["snap1", "snap2", "tail-snap1"])
def test_order_1_is_exact_where_the_recurrence_is_diagonal(method, cell):
    """Over any split, resets and masks included."""
    variables = probe.draw_variables(cell, 16, density=0.8)
    params, mask = variables["params"]["cell"], variables["sparsity"]["cell"]
    segment = probe.draw_segment(16, 7, reset_rate=0.15)
    expected, _ = flax_gradient(cell)(masked(params, mask), segment)
    for split in [(1,) * 7, (3, 1, 3), (3, 3, 1)]:
        outcomes = probe.run_through(
            method, cell, variables, probe.fresh(method, cell), segment.cut(*split)
        )
        probe.assert_close(probe.added(outcomes)["cell"], masked(expected, mask))


@pairs([name for name, row in METHODS.items() if row.adjoint is Pattern.ALL and row.learns])
def test_backpropagation_gives_the_gradient_of_its_segment(method, cell):
    """From fresh streams every method with the whole adjoint is exact, for `xs` too."""
    variables = probe.draw_variables(cell, 12)
    segment = probe.draw_segment(12, 3, reset_rate=0.3)
    found = probe.program(method, cell)(variables, probe.fresh(method, cell), segment)
    params, xs = flax_gradient(cell)(variables["params"]["cell"], segment)
    probe.assert_close(found.params["cell"], params)
    probe.assert_close(found.xs, xs)


@pairs(keeping(Law.ONE_STEP))
@pytest.mark.parametrize("reset", [False, True])
def test_one_step_from_a_fresh_state_is_the_gradient(method, cell, reset):
    """Fresh by birth, or by a reset that leaves nothing of what was there."""
    variables = probe.draw_variables(cell, 13)
    segment = probe.draw_segment(13, 1)
    carry = probe.fresh(method, cell)
    if reset:
        segment.resets[:] = True
        carry = jax.tree.map(lambda x: x + jnp.asarray(0.7).astype(x.dtype), carry)
    found = probe.program(method, cell)(variables, carry, segment)
    params, xs = flax_gradient(cell)(variables["params"]["cell"], segment)
    probe.assert_close(found.params["cell"], params)
    probe.assert_close(found.xs, xs)


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if not row.learns])
def test_a_frozen_core_has_no_gradient_and_passes_its_own_on(method):
    variables = probe.draw_variables("gru", 14)
    segment = probe.draw_segment(14, 3, reset_rate=0.3)
    found = probe.program(method, "gru")(variables, probe.fresh(method, "gru"), segment)
    _, xs = flax_gradient("gru")(variables["params"]["cell"], segment)
    probe.assert_close(found.params, jax.tree.map(jnp.zeros_like, variables["params"]))
    probe.assert_close(found.xs, xs)


def test_any_function_of_the_outputs_may_be_the_loss():
    """A head with weights of its own, and a loss that is not linear."""
    cell, method = "gru", "tail-rtrl"
    rnn, segment = probe.core("tail-rtrl", cell), probe.draw_segment(15, 3)
    variables = probe.with_pattern(rnn, probe.draw_variables(cell, 15))
    carry = probe.fresh(method, cell)
    head = jnp.asarray(segment.weights[0].T)  # [N, B]

    def loss(ys, head):
        return jnp.sum(jnp.tanh(ys @ head) ** 2)

    def online(params, head):
        _, ys = rnn.apply(variables | {"params": {"cell": params}}, carry, segment.xs)
        return loss(ys, head)

    def looped(params, head):
        h, ys = CELLS[cell].initialize_carry(jax.random.key(0), (B, M)), []
        for x_t in segment.xs:
            h, y_t = CELLS[cell].apply({"params": params}, h, x_t)
            ys.append(y_t)
        return loss(jnp.stack(ys), head)

    params = variables["params"]["cell"]
    found, expected = (jax.jit(jax.grad(f, (0, 1)))(params, head) for f in (online, looped))
    probe.assert_close(found, expected)
