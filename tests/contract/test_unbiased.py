"""Law 5: methods that draw at random are right in the mean, within their own standard error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import probe
from contract.registry import CELLS, METHODS

from snaprl.cores import OnlineRNN
from snaprl.cores.kronecker import _unbiased_root

pytestmark = pytest.mark.usefixtures("x64")

DRAWN = [name for name, row in METHODS.items() if row.drawn]
RUNS, T, CUT = 400, 5, 3  # of two segments: a tail estimates what lies before its segment


def gradients(method, cell, segment, variables):
    """Every stream's own gradient, `[streams, P]`: all see the same, none draws alike."""
    rnn = OnlineRNN(CELLS[cell], METHODS[method].method)

    def gradient(xs, weights):
        streams = xs.shape[1]
        carry = rnn.initialize_carry(jax.random.key(7), xs.shape[1:])

        def loss(noise):
            # the same weights for every stream, and a place where each stream's gradient is seen
            def one(carry, xs, weights, params):
                carry, xs = jax.tree.map(lambda x: x[None], carry), xs[:, None]
                carry, early = rnn.apply({"params": {"cell": params}}, carry, xs[:CUT])
                _, late = rnn.apply({"params": {"cell": params}}, carry, xs[CUT:])
                return jnp.vdot(weights[:, None], jnp.concatenate([early, late]))

            return jax.vmap(one, in_axes=(0, 1, 1, 0))(carry, xs, weights, noise).sum()

        each = jax.tree.map(
            lambda p: jnp.broadcast_to(p, (streams, *p.shape)), variables["params"]["cell"]
        )
        grads = jax.grad(loss)(each)
        return jnp.concatenate([g.reshape(streams, -1) for g in jax.tree.leaves(grads)], axis=1)

    return np.asarray(jax.jit(gradient)(segment.xs, segment.weights))


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("method", DRAWN)
def test_the_mean_is_the_exact_gradient(method, cell):
    """Every entry within 5 standard errors, and the errors as large as chance has them."""
    one = probe.draw_segment(61, T, streams=1)
    many = probe.Segment(*(np.repeat(x, RUNS, axis=1) for x in (one.xs, one.resets, one.weights)))
    variables = probe.draw_variables(cell, 61)
    exact = gradients("rtrl", cell, one, variables)[0]
    found = gradients(method, cell, many, variables)
    error = found.std(0, ddof=1) / np.sqrt(RUNS)
    assert error.max() > 1e-3 * np.abs(exact).max()  # it is an estimate
    z = (found.mean(0) - exact) / np.maximum(error, 1e-12)
    noisy = error > 1e-10
    assert np.abs(z[noisy]).max() < 5
    assert 0.5 < np.sqrt((z[noisy] ** 2).mean()) < 1.6
    # the bias that a method would show which looked at the unit itself alone
    snap = gradients("snap1", cell, one, variables)[0]
    assert np.abs((snap - exact)[noisy] / error[noisy]).max() > 8


@pytest.mark.parametrize("values", [[3.0, 2, 1], [5, 0.1, 0], [1, 1, 1, 1], [4, 0, 0], [0, 0, 0]])
def test_a_diagonal_matrix_is_kept_in_the_mean(values):
    """Theorem 1 of Benzing et al.: `E[X X^T]` is the matrix, of one column less."""
    values = jnp.asarray(values, float)
    keys = jax.random.split(jax.random.key(3), 4000)
    roots = jax.vmap(lambda key: _unbiased_root(values, key))(keys)
    assert roots.shape == (4000, len(values), len(values) - 1)
    products = np.einsum("kir,kjr->kij", roots, roots)
    error = products.std(0) / np.sqrt(len(keys))
    assert (np.abs(products.mean(0) - np.diag(values)) <= 5 * error + 1e-12).all()


def test_large_values_are_kept_as_they_are():
    """The variance is the least: what a column of its own can hold is not mixed."""
    values = jnp.asarray([9.0, 8.0, 0.2, 0.1])
    for seed in range(5):
        root = np.asarray(_unbiased_root(values, jax.random.key(seed)))
        product = root @ root.T
        np.testing.assert_allclose(product[:2, :2], np.diag([9.0, 8.0]), atol=1e-12)
        np.testing.assert_allclose(product[:2, 2:], 0, atol=1e-12)
