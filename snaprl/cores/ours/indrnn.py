"""IndRNN: a layer of units that each hear themselves and nobody else."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from snaprl.cores.cells import Activation, register
from snaprl.cores.ours import layers
from snaprl.cores.types import Array
from snaprl.cores.unitwise import Derivatives, UnitwiseCell, Vector


class IndRNNCell(nn.RNNCellBase):
    """An independently recurrent cell.

        h_t = act(A x_t + b + u * h_tm1)        (* elementwise)

    Units know of each other through the inputs only: SnAp of order 1 is exact.

    Reference: Li, Li, Cook, Zhu and Gao, "Independently Recurrent Neural Network (IndRNN): Building
    A Longer and Deeper RNN", CVPR 2018 (arXiv 1803.04831). Their bounds on `|u|` are left to the
    training.

    Parameters: layer `i` (A, b), and `u [N]`. The carry is h, `[B, N]`.

    Attributes:
      features: N.
      activation_fn: act.
      kernel_init: for A.
      recurrent_init: for u; uniform in [0, 1) by default.
      bias_init: for b.
      carry_init: for the carry.
      dtype: of the linear map; None for what inputs and parameters promote to.
      param_dtype: of the parameters and the carry.
    """

    features: int
    activation_fn: Callable[..., Any] = nn.relu
    kernel_init: Initializer = nn.initializers.lecun_normal()
    recurrent_init: Initializer = nn.initializers.uniform(1.0)
    bias_init: Initializer = nn.initializers.zeros_init()
    carry_init: Initializer = nn.initializers.zeros_init()
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:
        """One step: `[B, N]` and `[B, M]` to the new carry and the outputs `[B, N]`."""
        local = {"u": self.recurrent_init}
        return layers.call(self, _view(self), carry, inputs, biased=("i",), local=local)

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Array:
        """The state of streams that have seen nothing; `input_shape` is `(B, M)`."""
        return layers.initial_carry(self, rng, input_shape, states=1)

    @property
    def num_feature_axes(self) -> int:
        """Inputs are vectors."""
        return 1


def _view(cell: IndRNNCell) -> UnitwiseCell:
    activation = Activation(cell.activation_fn)

    def phi(a: Vector, s: Vector, h: Vector, w: Vector) -> tuple[Vector, tuple]:
        del s
        value, slope = activation(a[0] + w[0] * h[0])
        return (value,), (value, slope)

    def derivatives(saved: tuple, h_tm1: Vector, w: Vector) -> Derivatives:
        slope = activation.slope(*saved)
        return Derivatives(((slope,),), ((),), ((slope * w[0],),), ((slope * h_tm1[0],),))

    return UnitwiseCell(cell.features, ("i",), (), 1, cell.dtype, 0, phi, derivatives, local=("u",))


register(IndRNNCell, _view)
