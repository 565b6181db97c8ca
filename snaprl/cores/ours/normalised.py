"""GRU and LSTM whose gates are normalised over the units.

    norm_g(p) = gain_g * (p - mean(p)) / sqrt(var(p) + epsilon) + bias_g          (A)

p is what a gate's nonlinearity is applied to, the sum of what arrives at it; mean and variance are
over the units, for each gate and stream. This is the place that the reference gives the
normalisation in a plain recurrent network, its equation (4); for the LSTM it normalises the inputs,
the recurrent sums and the cell one by one instead.

Through mean and variance every unit hears of every other within a step, so one weight no longer
reaches one unit only. To the influence they are constants: that keeps it as large as a plain GRU's,
and leaves out how a weight moves the statistics. `constant_statistics=True` makes them constants to
every gradient, and the cell unit-wise without exception.

Reference: Ba, Kiros and Hinton, "Layer Normalization", 2016 (arXiv 1607.06450).
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from snaprl.cores.cells import Activation, register
from snaprl.cores.ours import layers
from snaprl.cores.types import Array, PyTree
from snaprl.cores.unitwise import Derivatives, UnitwiseCell, Vector, times


class LayerNormGRUCell(nn.RNNCellBase):
    """A GRU with normalised gates.

        r = gate(norm_r(A_r x_t + W_r h_tm1))        z = gate(norm_z(A_z x_t + W_z h_tm1))
        n = act(norm_n(A_n x_t + r * W_n h_tm1))     h_t = (1 - z) * n + z * h_tm1

    with norm as in (A) of this file. Methods that carry an influence treat the statistics as
    constants; backpropagation does not, unless `constant_statistics`.

    Reference: Ba, Kiros and Hinton, "Layer Normalization", 2016 (arXiv 1607.06450).

    Parameters: layers `ir`, `iz`, `in` and `hr`, `hz`, `hn` without biases, and `gain_r`, `bias_r`
    and so on, `[N]` each. The carry is h, `[B, N]`.

    Attributes:
      features: N.
      constant_statistics: whether mean and variance are constants to every gradient.
      epsilon: in (A).
      gate_fn: gate.
      activation_fn: act.
      kernel_init: for the input layers.
      recurrent_kernel_init: for the recurrent layers.
      gain_init: for the gains.
      bias_init: for the biases.
      carry_init: for the carry.
      dtype: of the linear maps; None for what inputs and parameters promote to.
      param_dtype: of the parameters and the carry.
    """

    features: int
    constant_statistics: bool = False
    epsilon: float = 1e-6
    gate_fn: Callable[..., Any] = nn.sigmoid
    activation_fn: Callable[..., Any] = nn.tanh
    kernel_init: Initializer = nn.initializers.lecun_normal()
    recurrent_kernel_init: Initializer = nn.initializers.orthogonal()
    gain_init: Initializer = nn.initializers.ones_init()
    bias_init: Initializer = nn.initializers.zeros_init()
    carry_init: Initializer = nn.initializers.zeros_init()
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:
        """One step: `[B, N]` and `[B, M]` to the new carry and the outputs `[B, N]`."""
        view = _gru(self, held=self.constant_statistics)
        return layers.call(self, view, carry, inputs, local=_local(self, view))

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Array:
        """The state of streams that have seen nothing; `input_shape` is `(B, M)`."""
        return layers.initial_carry(self, rng, input_shape, states=1)

    @property
    def num_feature_axes(self) -> int:
        """Inputs are vectors."""
        return 1


class LayerNormLSTMCell(nn.RNNCellBase):
    """An LSTM with normalised gates.

        i, f, o = gate(norm_k(A_k x_t + W_k h_tm1)) for k = i, f, o
        g = act(norm_g(A_g x_t + W_g h_tm1))
        c_t = f * c_tm1 + i * g                      h_t = o * act(c_t)

    with norm as in (A) of this file; the cell itself is not normalised. Methods that carry an
    influence treat the statistics as constants; backpropagation does not, unless
    `constant_statistics`.

    Reference: Ba, Kiros and Hinton, "Layer Normalization", 2016 (arXiv 1607.06450).

    Parameters: layers `ii`, `if`, `ig`, `io` and `hi`, `hf`, `hg`, `ho` without biases, and
    `gain_i`, `bias_i` and so on, `[N]` each. The carry is (c, h), `[B, N]` each.

    Attributes: those of `LayerNormGRUCell`.
    """

    features: int
    constant_statistics: bool = False
    epsilon: float = 1e-6
    gate_fn: Callable[..., Any] = nn.sigmoid
    activation_fn: Callable[..., Any] = nn.tanh
    kernel_init: Initializer = nn.initializers.lecun_normal()
    recurrent_kernel_init: Initializer = nn.initializers.orthogonal()
    gain_init: Initializer = nn.initializers.ones_init()
    bias_init: Initializer = nn.initializers.zeros_init()
    carry_init: Initializer = nn.initializers.zeros_init()
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, carry: PyTree, inputs: Array) -> tuple[PyTree, Array]:
        """One step: the carry and `[B, M]` to the new carry and the outputs `[B, N]`."""
        view = _lstm(self, held=self.constant_statistics)
        return layers.call(self, view, carry, inputs, local=_local(self, view))

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> PyTree:
        """The state of streams that have seen nothing; `input_shape` is `(B, M)`."""
        return layers.initial_carry(self, rng, input_shape, states=2)

    @property
    def num_feature_axes(self) -> int:
        """Inputs are vectors."""
        return 1


Cell = LayerNormGRUCell | LayerNormLSTMCell


def _local(cell: Cell, view: UnitwiseCell) -> dict[str, Initializer]:
    """How gains and biases start, in the view's order."""
    return {n: cell.gain_init if n.startswith("gain") else cell.bias_init for n in view.local}


def _normalised(p: Array, epsilon: float, held: bool) -> tuple[Array, Array]:
    """Returns p with mean 0 and variance 1 over the units, and what it was multiplied by."""
    mean, variance = p.mean(-1, keepdims=True), p.var(-1, keepdims=True)
    if held:
        mean, variance = jax.lax.stop_gradient((mean, variance))
    scale = jax.lax.rsqrt(variance + epsilon)
    return (p - mean) * scale, scale


def _pairs(w: Vector) -> list[tuple[Array, Array]]:
    """The gain and the bias of each gate."""
    return list(zip(w[::2], w[1::2], strict=True))


def _gru(cell: LayerNormGRUCell, *, held: bool) -> UnitwiseCell:
    gate, activation = Activation(cell.gate_fn), Activation(cell.activation_fn)

    def phi(a: Vector, s: Vector, h: Vector, w: Vector) -> tuple[Vector, tuple]:
        (gain_r, bias_r), (gain_z, bias_z), (gain_n, bias_n) = _pairs(w)
        norm_r, scale_r = _normalised(a[0] + s[0], cell.epsilon, held)
        norm_z, scale_z = _normalised(a[1] + s[1], cell.epsilon, held)
        r, dr = gate(gain_r * norm_r + bias_r)
        z, dz = gate(gain_z * norm_z + bias_z)
        norm_n, scale_n = _normalised(a[2] + r * s[2], cell.epsilon, held)
        n, dn = activation(gain_n * norm_n + bias_n)
        norms = (norm_r, norm_z, norm_n), (scale_r, scale_z, scale_n)
        return ((1 - z) * n + z * h[0],), (r, dr, z, dz, n, dn, s[2], *norms)

    def derivatives(saved: tuple, h_tm1: Vector, w: Vector) -> Derivatives:
        r, dr, z, dz, n, dn, s_n, norms, scales = saved
        (gain_r, _), (gain_z, _), (gain_n, _) = _pairs(w)
        # of h_t with respect to what norm gives (n, z, r), and with respect to what it takes (p)
        n_bias = (1 - z) * activation.slope(n, dn)
        n_p = n_bias * gain_n * scales[2]
        z_bias = (h_tm1[0] - n) * gate.slope(z, dz)
        z_p = z_bias * gain_z * scales[1]
        r_bias = n_p * s_n * gate.slope(r, dr)
        r_p = r_bias * gain_r * scales[0]
        biases = (r_bias, z_bias, n_bias)
        own = tuple(
            x for bias, norm in zip(biases, norms, strict=True) for x in (bias * norm, bias)
        )
        return Derivatives(((r_p, z_p, n_p),), ((r_p, z_p, n_p * r),), ((z,),), (own,))

    return UnitwiseCell(
        cell.features,
        ("ir", "iz", "in"),
        ("hr", "hz", "hn"),
        1,
        cell.dtype,
        0,
        phi,
        derivatives,
        local=_names("rzn"),
        exact=cell.constant_statistics,
    )


def _lstm(cell: LayerNormLSTMCell, *, held: bool) -> UnitwiseCell:
    gate, activation = Activation(cell.gate_fn), Activation(cell.activation_fn)

    def phi(a: Vector, s: Vector, h: Vector, w: Vector) -> tuple[Vector, tuple]:
        norms, scales = zip(
            *(_normalised(x + y, cell.epsilon, held) for x, y in zip(a, s, strict=True)),
            strict=True,
        )
        p = [g * x + b for (g, b), x in zip(_pairs(w), norms, strict=True)]
        (i, di), (f, df), (g, dg), (o, do) = gate(p[0]), gate(p[1]), activation(p[2]), gate(p[3])
        c = f * h[0] + i * g
        squashed, dsquashed = activation(c)
        values = (i, di, f, df, g, dg, o, do, squashed, dsquashed)
        return (c, o * squashed), (values, norms, scales)

    def derivatives(saved: tuple, h_tm1: Vector, w: Vector) -> Derivatives:
        (i, di, f, df, g, dg, o, do, squashed, dsquashed), norms, scales = saved
        to_c = (g * gate.slope(i, di), h_tm1[0] * gate.slope(f, df), i * activation.slope(g, dg))
        c_to_h = o * activation.slope(squashed, dsquashed)
        # with respect to what norm gives, which is with respect to the biases
        rows = (*to_c, None), (*(c_to_h * entry for entry in to_c), squashed * gate.slope(o, do))
        through = [gain * scale for (gain, _), scale in zip(_pairs(w), scales, strict=True)]
        gates = tuple(
            tuple(times(entry, x) for entry, x in zip(row, through, strict=True)) for row in rows
        )
        own = tuple(
            tuple(
                x
                for entry, norm in zip(row, norms, strict=True)
                for x in (times(entry, norm), entry)
            )
            for row in rows
        )
        return Derivatives(gates, gates, ((f, None), (c_to_h * f, None)), own)

    return UnitwiseCell(
        cell.features,
        ("ii", "if", "ig", "io"),
        ("hi", "hf", "hg", "ho"),
        2,
        cell.dtype,
        1,
        phi,
        derivatives,
        outputs=(1,),
        local=_names("ifgo"),
        exact=cell.constant_statistics,
    )


def _names(gates: str) -> tuple[str, ...]:
    return tuple(f"{kind}_{gate}" for gate in gates for kind in ("gain", "bias"))


# To the engine the statistics are constants in any case.
register(LayerNormGRUCell, lambda cell: _gru(cell, held=True))
register(LayerNormLSTMCell, lambda cell: _lstm(cell, held=True))
