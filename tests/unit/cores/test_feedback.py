"""A readout that gives random feedback."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from snaprl.cores.feedback import FeedbackDense


def test_forward_and_its_own_gradient_are_those_of_a_dense_layer():
    x, weights = (
        np.random.default_rng(s).normal(size=(4, n)).astype("f") for s, n in ((0, 3), (1, 2))
    )
    readout, dense = FeedbackDense(2), nn.Dense(2)
    variables = readout.init(jax.random.key(0), x)
    plain = {"params": variables["params"]["Dense_0"]}
    np.testing.assert_array_equal(readout.apply(variables, x), dense.apply(plain, x))

    def loss(params, x):
        return jnp.vdot(weights, readout.apply({**variables, "params": params}, x))

    grads, dx = jax.grad(loss, (0, 1))(variables["params"], x)
    expected = jax.grad(lambda p: jnp.vdot(weights, dense.apply({"params": p}, x)))(plain["params"])
    jax.tree.map(np.testing.assert_allclose, grads["Dense_0"], expected)
    feedback = variables["feedback"]["kernel"]
    np.testing.assert_allclose(dx, weights @ feedback.T, rtol=1e-5)
    assert np.abs(feedback - variables["params"]["Dense_0"]["kernel"]).max() > 0.1


def test_an_error_finds_its_way_by_feedback_that_is_not_the_readouts():
    """Learning aligns the readout with its feedback, so that both layers learn."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 8)).astype("f")
    target = x @ rng.normal(size=(8, 3)).astype("f")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return FeedbackDense(3)(nn.Dense(16)(x))

    net = Net()
    variables = net.init(jax.random.key(0), x)
    params, feedback = variables["params"], variables["feedback"]

    @jax.jit
    def step(params):
        def loss(params):
            return jnp.mean((net.apply({"params": params, "feedback": feedback}, x) - target) ** 2)

        value, grads = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.02 * g, params, grads), value

    first = step(params)[1]
    for _ in range(600):
        params, last = step(params)
    assert last < 0.02 * first
