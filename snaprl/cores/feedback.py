"""A readout whose feedback is random: what the core learns from is not the readout's own weights.

Reference: Lillicrap, Cownden, Tweed and Akerman, "Random synaptic feedback weights support error
backpropagation for deep learning", Nature Communications 2016. RFLO and e-prop use it so that no
weight has to be known in two places.
"""

import flax.linen as nn
import jax

from snaprl.cores.types import Array


class FeedbackDense(nn.Module):
    """`nn.Dense`, whose inputs receive `dL/dy B^T`, B fixed.

    The parameters are those of an `nn.Dense`, one level down: under `Dense_0`. B is drawn once, in
    the variable collection `feedback`, which no optimiser touches.

    Example:
      >>> readout = FeedbackDense(5)
      >>> variables = readout.init(jax.random.key(0), jax.numpy.zeros((4, 16, 64)))
      >>> sorted(variables)
      ['feedback', 'params']
      >>> sorted(variables["params"]["Dense_0"])
      ['bias', 'kernel']

    Attributes:
      features: outputs.
      use_bias: whether a bias is added.
    """

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps `x [..., K]` to `[..., features]`."""
        layer = nn.Dense(self.features, use_bias=self.use_bias)
        y = layer(jax.lax.stop_gradient(x))
        init = nn.initializers.lecun_normal()
        shape = (x.shape[-1], self.features)
        feedback = self.variable(
            "feedback", "kernel", lambda: init(self.make_rng("params"), shape, y.dtype)
        )
        # 0, whose derivative with respect to x is B
        through = (x - jax.lax.stop_gradient(x)) @ jax.lax.stop_gradient(feedback.value)
        return y + through.astype(y.dtype)
