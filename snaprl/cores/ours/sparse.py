"""Cells whose units each read as many others as every other unit does: constant fan-in.

The recurrent weights are kept as values `[K, N]`, those of one unit in a column. Which unit a
value comes from follows from the seed, and is the same for every gate: with K inputs per unit an
influence of order 2 has about K + 1 units per weight.

`OnlineRNN` writes the values out into flax's dense kernel once per segment and runs flax's cell
with a mask: at order 2 and more its influence is compressed, at order 1 it has the dense kernel's
shape. A single step, as an actor takes, goes through the fan-in instead where that is faster.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, Initializer

from snaprl.cores.cells import unitwise
from snaprl.cores.masks import Mask
from snaprl.cores.ours import layers
from snaprl.cores.stand_in import StandIn, register
from snaprl.cores.types import Array, Params, PyTree

# On a CPU, up to so many streams, or so small a share of the units, going through the fan-in beats
# writing the kernel out for one product; elsewhere it was not measured. On two cores, in float32, a
# step of a GRU with 10 of 1024 takes 68 us for one stream (831 written out), 0.28 ms for 16 (1.5)
# and 5.4 ms for 256 (10.7); with 61 of 1024, 0.14 ms (1.4), 1.3 ms (2.6), and 9 ms either way.
_FEW_STREAMS = 16
_SMALL_SHARE = 1 / 50


class SparseSimpleCell(nn.RNNCellBase):
    """flax's `SimpleCell` with `fan_in` recurrent weights per unit.

        h_t = act(A x_t + b + W h_tm1)        with K weights in every row of W

    Parameters: layer `i` as in flax's, and `h` with `values [K, N]`. The carry is h, `[B, N]`.

    Attributes:
      features: N.
      fan_in: K, how many units a unit reads.
      seed: from which follows which ones: those of `sparsity.fixed_fan_in(K)((N, N), seed)`.
      residual: as in flax's.
      activation_fn: act.
      kernel_init: for the input layer.
      recurrent_kernel_init: for the values, as a kernel with K inputs.
      bias_init: for the bias.
      carry_init: for the carry.
      dtype: of the linear maps; None for what inputs and parameters promote to.
      param_dtype: of the parameters and the carry.
    """

    features: int
    fan_in: int
    seed: int = 0
    residual: bool = False
    activation_fn: Callable[..., Any] = nn.tanh
    kernel_init: Initializer = nn.initializers.lecun_normal()
    recurrent_kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    carry_init: Initializer = nn.initializers.zeros_init()
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:
        """One step: `[B, N]` and `[B, M]` to the new carry and the outputs `[B, N]`."""
        return _call(self, carry, inputs)

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Array:
        """The state of streams that have seen nothing; `input_shape` is `(B, M)`."""
        return _dense(self).initialize_carry(rng, input_shape)

    @property
    def num_feature_axes(self) -> int:
        """Inputs are vectors."""
        return 1


class SparseGRUCell(nn.RNNCellBase):
    """flax's `GRUCell` with `fan_in` recurrent weights per unit and gate.

    Parameters: layers `ir`, `iz`, `in` as in flax's, and `hr`, `hz`, `hn` with `values [K, N]` in
    the place of a kernel. The carry is h, `[B, N]`.

    Attributes: those of `SparseSimpleCell` without `residual`, and
      gate_fn: of r and z.
    """

    features: int
    fan_in: int
    seed: int = 0
    gate_fn: Callable[..., Any] = nn.sigmoid
    activation_fn: Callable[..., Any] = nn.tanh
    kernel_init: Initializer = nn.initializers.lecun_normal()
    recurrent_kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    carry_init: Initializer = nn.initializers.zeros_init()
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:
        """One step: `[B, N]` and `[B, M]` to the new carry and the outputs `[B, N]`."""
        return _call(self, carry, inputs)

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Array:
        """The state of streams that have seen nothing; `input_shape` is `(B, M)`."""
        return _dense(self).initialize_carry(rng, input_shape)

    @property
    def num_feature_axes(self) -> int:
        """Inputs are vectors."""
        return 1


class SparseLSTMCell(nn.RNNCellBase):
    """flax's `LSTMCell` with `fan_in` recurrent weights per unit and gate.

    Parameters: layers `ii`, `if`, `ig`, `io` as in flax's, and `hi`, `hf`, `hg`, `ho` with `values
    [K, N]` in the place of a kernel. The carry is (c, h), `[B, N]` each.

    Attributes: those of `SparseGRUCell`.
    """

    features: int
    fan_in: int
    seed: int = 0
    gate_fn: Callable[..., Any] = nn.sigmoid
    activation_fn: Callable[..., Any] = nn.tanh
    kernel_init: Initializer = nn.initializers.lecun_normal()
    recurrent_kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros_init()
    carry_init: Initializer = nn.initializers.zeros_init()
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, carry: PyTree, inputs: Array) -> tuple[PyTree, Array]:
        """One step: the carry and `[B, M]` to the new carry and the outputs `[B, N]`."""
        return _call(self, carry, inputs)

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> PyTree:
        """The state of streams that have seen nothing; `input_shape` is `(B, M)`."""
        return _dense(self).initialize_carry(rng, input_shape)

    @property
    def num_feature_axes(self) -> int:
        """Inputs are vectors."""
        return 1


SparseCell = SparseSimpleCell | SparseGRUCell | SparseLSTMCell

# flax's cells, what a sparse one tells them beyond what it tells all, and the layers with a bias
_KIN: dict[type, tuple[Callable[..., nn.RNNCellBase], tuple[str, ...], tuple[str, ...]]] = {
    SparseSimpleCell: (nn.SimpleCell, ("residual",), ("i",)),
    SparseGRUCell: (nn.GRUCell, ("gate_fn",), ("ir", "iz", "in", "hn")),
    SparseLSTMCell: (nn.LSTMCell, ("gate_fn",), ("hi", "hf", "hg", "ho")),
}


class SparseDense(nn.Module):
    """A dense layer from N inputs to as many units, of which a unit has `fan_in` weights."""

    features: int
    fan_in: int
    seed: int
    use_bias: bool
    kernel_init: Initializer
    bias_init: Initializer
    dtype: Dtype | None
    param_dtype: Dtype

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """`[..., N]` to `[..., N]`."""
        shape = (self.fan_in, self.features)
        values = self.param("values", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        inputs, values, bias = promote_dtype(inputs, values, bias, dtype=self.dtype)
        index = connections(self.features, self.fan_in, self.seed)
        few = inputs.size <= _FEW_STREAMS * self.features
        few |= self.fan_in <= _SMALL_SHARE * self.features
        if few and jax.default_backend() == "cpu":
            y = gathered(inputs, values, index)
        else:
            y = inputs @ written_out(values, index)
        return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


def gathered(inputs: Array, values: Array, index: np.ndarray) -> Array:
    """The product by going through the fan-in: `[..., N]` to `[..., N]`."""

    def add(y: Array, weight: tuple[Array, Array]) -> tuple[Array, None]:
        value, source = weight  # [N] each
        return y + inputs[..., source] * value.reshape((1,) * (inputs.ndim - 1) + (-1,)), None

    return jax.lax.scan(add, jnp.zeros_like(inputs), (values, jnp.asarray(index)))[0]


def written_out(values: Array, index: np.ndarray) -> Array:
    """The kernel `[N, N]` with `values [K, N]` where they belong, 0 elsewhere."""
    size = values.shape[-1]
    return jnp.zeros((size, size), values.dtype).at[index, np.arange(size)].set(values)


@functools.lru_cache(maxsize=32)
def connections(features: int, fan_in: int, seed: int) -> np.ndarray:
    """Which units a unit reads, `[K, N]`, in rising order.

    Raises:
      ValueError: `fan_in` is no positive integer, or there are fewer units than that.
    """
    from snaprl.cores.sparsity.patterns import fixed_fan_in  # with optax: not for who needs none

    pattern = fixed_fan_in(fan_in)((features, features), seed)
    index = np.nonzero(pattern.T)[1].reshape(features, fan_in).T
    index = np.ascontiguousarray(index, np.int32)
    index.setflags(write=False)
    return index


def _dense(cell: SparseCell) -> nn.RNNCellBase:
    """The flax cell of which this one has few weights."""
    kind, options, _ = _KIN[type(cell)]
    names = ("features", "activation_fn", "carry_init", "dtype", "param_dtype", *options)
    return kind(parent=None, **{name: getattr(cell, name) for name in names})


def _call(cell: SparseCell, carry: PyTree, x_t: Array) -> tuple[PyTree, Array]:
    recurrent = functools.partial(SparseDense, fan_in=cell.fan_in, seed=cell.seed)
    biased = _KIN[type(cell)][2]
    view = unitwise(_dense(cell))
    return layers.call(cell, view, carry, x_t, biased=biased, recurrent=recurrent)


def _stand_in(cell: SparseCell) -> StandIn:
    index = connections(cell.features, cell.fan_in, cell.seed)
    dense = _dense(cell)
    names = unitwise(dense).recurrent
    kernel = np.zeros((cell.features, cell.features), bool)
    kernel[index, np.arange(cell.features)] = True

    def params(own: Params) -> dict[str, Any]:
        spread = {}
        for name in names:
            layer = dict(own[name])
            spread[name] = {"kernel": written_out(layer.pop("values"), index), **layer}
        return {**own, **spread}

    return StandIn(dense, Mask({name: {"kernel": kernel} for name in names}), params)


for _kind in _KIN:
    register(_kind, _stand_in)
