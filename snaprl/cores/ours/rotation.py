"""LRU and RTU: units of two state variables that a step turns and shrinks.

    lambda = exp(-exp(nu) + i exp(theta)) = g + i k     (A)    g = r cos(phase), k = r sin(phase)
    re_t = act(g re_tm1 - k im_tm1 + gamma a_t[0])      (B)    the real part of lambda h_tm1 + ...
    im_t = act(k re_tm1 + g im_tm1 + gamma a_t[1])      (C)    the imaginary part

With r = exp(-exp(nu)) below 1 the recurrence is stable whatever is learnt.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from snaprl.cores.cells import Activation, register
from snaprl.cores.ours import layers
from snaprl.cores.types import Array
from snaprl.cores.unitwise import (
    Block,
    Derivatives,
    Entries,
    UnitwiseCell,
    Vector,
    times,
    total,
)

Pair = tuple[Array, Array]


class LRUCell(nn.RNNCellBase):
    """The recurrence of a linear recurrent unit: a complex diagonal matrix.

        h_t = lambda * h_tm1 + exp(gamma) * (B x_t),    lambda = exp(-exp(nu) + i exp(theta))

    The outputs are the real parts and, beside them, the imaginary ones, `[B, 2 N]`. What the paper
    puts behind the recurrence, Re(C h_t) + D x_t, is a dense layer of the outputs and one of the
    inputs. Units know of each other through the inputs only: SnAp of order 1 is exact.

    Reference: Orvieto, Smith, Gu, Fernando, Gulcehre, Pascanu and De, "Resurrecting Recurrent
    Neural Networks for Long Sequences", ICML 2023 (arXiv 2303.06349). As there, eigenvalues start
    uniformly on a ring, and exp(gamma) as sqrt(1 - |lambda|^2), from where it is learnt.

    Parameters: layers `re` and `im` (B) without biases, and `nu`, `theta`, `gamma`, `[N]` each. The
    carry is (re, im), `[B, N]` each.

    Attributes:
      features: N, the number of complex units.
      r_min: no eigenvalue starts with a smaller modulus.
      r_max: nor with a larger one.
      max_phase: their phases start in [0, max_phase).
      kernel_init: for the parts of B; None for a normal with variance 1 / (2 M).
      carry_init: for the carry.
      dtype: of the linear maps; None for what inputs and parameters promote to.
      param_dtype: of the parameters and the carry.
    """

    features: int
    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = math.tau
    kernel_init: Initializer = nn.initializers.variance_scaling(0.5, "fan_in", "normal")
    carry_init: Initializer = nn.initializers.zeros_init()
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, carry: Pair, inputs: Array) -> tuple[Pair, Array]:
        """One step: the carry and `[B, M]` to the new carry and the outputs `[B, 2 N]`."""

        def gamma(key: Array, shape: tuple[int, ...], dtype: Dtype) -> Array:
            del key, shape, dtype
            return jnp.log(_norm(self.get_variable("params", "nu")))

        local = _ring(self.r_min, self.r_max, self.max_phase) | {"gamma": gamma}
        return layers.call(self, _lru(self), carry, inputs, local=local)

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Pair:
        """The state of streams that have seen nothing; `input_shape` is `(B, M)`."""
        return layers.initial_carry(self, rng, input_shape, states=2)

    @property
    def num_feature_axes(self) -> int:
        """Inputs are vectors."""
        return 1


class RTUCell(nn.RNNCellBase):
    """Recurrent trace units: complex diagonal recurrence, and an activation.

    Linear, as by default:

        h_t = lambda * h_tm1 + sqrt(1 - |lambda|^2) * (B x_t),    y_t = act(re h_t), act(im h_t)

    and with `nonlinear=True` the activation is part of the recurrence:

        h_t = act(re u_t) + i act(im u_t),   u_t = lambda * h_tm1 + sqrt(1 - |lambda|^2) * (B x_t)

    with lambda = exp(-exp(nu) + i exp(theta)) and outputs `[B, 2 N]`. They differ from `LRUCell` in
    the activation, and in that the scale of the inputs follows from lambda. Units know of each
    other through the inputs only: SnAp of order 1 is exact.

    Reference: Elelimy, White, Bowling and White, "Real-Time Recurrent Learning using Trace Units in
    Reinforcement Learning", NeurIPS 2024 (arXiv 2409.01449).

    Parameters: layers `re` and `im` (B) without biases, and `nu` and `theta`, `[N]` each. The carry
    is (re, im), `[B, N]` each.

    Attributes:
      features: N, the number of complex units.
      nonlinear: whether the activation is inside the recurrence.
      activation_fn: act.
      r_min: no eigenvalue starts with a smaller modulus.
      r_max: nor with a larger one.
      max_phase: their phases start in [0, max_phase).
      kernel_init: for the parts of B.
      carry_init: for the carry.
      dtype: of the linear maps; None for what inputs and parameters promote to.
      param_dtype: of the parameters and the carry.
    """

    features: int
    nonlinear: bool = False
    activation_fn: Callable[..., Any] = nn.relu
    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = math.tau
    kernel_init: Initializer = nn.initializers.lecun_normal()
    carry_init: Initializer = nn.initializers.zeros_init()
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, carry: Pair, inputs: Array) -> tuple[Pair, Array]:
        """One step: the carry and `[B, M]` to the new carry and the outputs `[B, 2 N]`."""
        local = _ring(self.r_min, self.r_max, self.max_phase)
        return layers.call(self, _rtu(self), carry, inputs, local=local)

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Pair:
        """The state of streams that have seen nothing; `input_shape` is `(B, M)`."""
        return layers.initial_carry(self, rng, input_shape, states=2)

    @property
    def num_feature_axes(self) -> int:
        """Inputs are vectors."""
        return 1


def _norm(nu: Array) -> Array:
    """`sqrt(1 - |lambda|^2)`, without cancellation where |lambda| is close to 1."""
    return jnp.sqrt(-jnp.expm1(-2 * jnp.exp(nu)))


def _ring(r_min: float, r_max: float, max_phase: float) -> dict[str, Initializer]:
    """Eigenvalues uniform on a ring: r^2 and the phase are, as the area is."""
    if not 0 <= r_min < r_max <= 1:
        raise ValueError(
            f"r_min is {r_min} and r_max is {r_max}; it must be 0 <= r_min < r_max <= 1"
        )

    def uniform(key: Array, shape: Any, dtype: Any) -> Array:
        tiny = float(jnp.finfo(dtype).eps)  # neither 0 nor 1: their logarithms would be no numbers
        return jax.random.uniform(key, shape, dtype, minval=tiny, maxval=1 - tiny)

    def nu(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        squared = r_min**2 + (r_max**2 - r_min**2) * uniform(key, shape, dtype)
        return jnp.log(-jnp.log(squared) / 2)

    def theta(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        return jnp.log(max_phase * uniform(key, shape, dtype))

    return {"nu": nu, "theta": theta}


# what B x_t is multiplied by, from the local parameters, and its derivatives with respect to them
Gain = Callable[[Vector], tuple[Array, Entries]]


def _lru(cell: LRUCell) -> UnitwiseCell:
    def gain(w: Vector) -> tuple[Array, Entries]:
        value = jnp.exp(w[2])
        return value, (None, None, value)

    return _rotating(cell, ("nu", "theta", "gamma"), gain, None)


def _rtu(cell: RTUCell) -> UnitwiseCell:
    def gain(w: Vector) -> tuple[Array, Entries]:
        value, e = _norm(w[0]), jnp.exp(w[0])
        return value, (e * jnp.exp(-2 * e) / value, None)

    activation = Activation(cell.activation_fn)
    view = _rotating(cell, ("nu", "theta"), gain, activation if cell.nonlinear else None)
    return view if cell.nonlinear else view._replace(readout=cell.activation_fn)


def _rotating(
    cell: LRUCell | RTUCell, local: tuple[str, ...], gain: Gain, activation: Activation | None
) -> UnitwiseCell:
    """(A), (B) and (C), with `local` parameters of which nu and theta come first."""

    def phi(a: Vector, s: Vector, h: Vector, w: Vector) -> tuple[Vector, tuple]:
        del s
        by, _ = gain(w)
        u = tuple(x + by * a_t for x, a_t in zip(_turned(h, w), a, strict=True))  # (B), (C)
        if activation is None:
            return u, (a, ())
        values, slopes = zip(*(activation(x) for x in u), strict=True)
        return values, (a, (values, slopes))

    def derivatives(saved: tuple, h_tm1: Vector, w: Vector) -> Derivatives:
        a, activated = saved
        g, k = (jnp.broadcast_to(x, h_tm1[0].shape) for x in _eigenvalue(w))
        by, by_local = gain(w)
        over = jnp.broadcast_to(by, h_tm1[0].shape)
        re, im = _turned(h_tm1, w)
        rate, phase = jnp.exp(w[0]), jnp.exp(w[1])
        # d lambda = lambda (-exp(nu) d nu + i exp(theta) d theta)
        own = ((-rate * re, -phase * im), (-rate * im, phase * re))
        rows = [
            tuple(
                total((entry, times(b, a_t)))
                for entry, b in zip((*row, *(None,) * (len(w) - 2)), by_local, strict=True)
            )
            for row, a_t in zip(own, a, strict=True)
        ]
        blocks = ((over, None), (None, over)), ((), ()), ((g, -k), (k, g)), tuple(rows)
        if activation is None:
            return Derivatives(*blocks)
        slopes = [activation.slope(y, dy) for y, dy in zip(*activated, strict=True)]
        return Derivatives(*(_scaled(slopes, block) for block in blocks))

    return UnitwiseCell(
        cell.features,
        ("re", "im"),
        (),
        2,
        cell.dtype,
        0,
        phi,
        derivatives,
        outputs=(0, 1),
        local=local,
    )


def _eigenvalue(w: Vector) -> Pair:
    """g and k of (A)."""
    r, phase = jnp.exp(-jnp.exp(w[0])), jnp.exp(w[1])
    return r * jnp.cos(phase), r * jnp.sin(phase)


def _turned(h: Vector, w: Vector) -> Pair:
    """`lambda * h`."""
    g, k = _eigenvalue(w)
    return g * h[0] - k * h[1], k * h[0] + g * h[1]


def _scaled(slopes: list[Array], block: Block) -> Block:
    """Every row of a block times its state variable's slope."""
    return tuple(
        tuple(times(slope, entry) for entry in row)
        for slope, row in zip(slopes, block, strict=True)
    )


register(LRUCell, _lru)
register(RTUCell, _rtu)
