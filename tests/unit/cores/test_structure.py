"""Patterns read off jaxprs, where the value says less than the derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract.spikes import spike

from snaprl.cores.structure import dependencies

N = 3


@jax.custom_vjp
def rounded(x, scale):
    return jnp.round(x * scale)


rounded.defvjp(lambda x, scale: (rounded(x, scale), scale), lambda scale, ct: (ct * scale, 0 * ct))


@jax.custom_vjp
def normed(x):
    return jnp.sign(x)


normed.defvjp(lambda x: (normed(x), x), lambda x, ct: ((ct - x * (x * ct).sum()),))

EACH, ALL = np.eye(N, dtype=bool), np.ones((N, N), bool)


def pattern(function, *there):
    (found,) = dependencies(function, [jnp.ones(N)] * max(1, len(there)), there or None)
    return found.toarray()


@pytest.mark.parametrize(
    "function",
    [
        spike,
        jax.jit(jax.checkpoint(spike)),
        lambda x: rounded(x, jnp.ones(N)),
        jax.nn.relu,
        jax.nn.relu6,
        jax.nn.silu,
        jax.nn.softplus,
        jax.nn.gelu,
        jax.nn.elu,
        jax.nn.hard_tanh,
        jax.nn.log_sigmoid,
    ],
)
def test_an_elementwise_derivative_stays_elementwise(function):
    np.testing.assert_array_equal(pattern(function), EACH)


@pytest.mark.parametrize("function", [normed, jax.nn.softmax, jax.nn.logsumexp])
def test_a_derivative_that_mixes_is_seen(function):
    np.testing.assert_array_equal(
        pattern(function), ALL[: 1 if function(jnp.ones(N)).ndim == 0 else N]
    )


def test_what_is_flat_and_has_no_derivative_of_its_own_reads_nothing():
    assert not pattern(lambda x: (x > 0) * 1.0).any()
    assert not pattern(lambda x: jax.nn.relu((x > 0) * 1.0)).any()


def test_a_derivative_is_followed_to_what_went_in():
    """Through a shift, and not through what is zero by structure."""
    shifted = pattern(lambda x: spike(jnp.roll(x, 1)))
    np.testing.assert_array_equal(shifted, np.roll(EACH, 1, axis=0))
    there = np.array([True, False, True]), np.ones(N, bool)
    both = pattern(lambda x, y: spike(x * y), *there)
    np.testing.assert_array_equal(both, np.hstack([EACH * there[0]] * 2))


def test_an_argument_that_is_told_to_hear_nothing_may_still_be_followed():
    """Too much is remembered, never too little: zeros of a backward pass are zeros of values."""
    found = pattern(rounded, np.ones(N, bool), np.ones(N, bool))
    np.testing.assert_array_equal(found[:, :N], EACH)
