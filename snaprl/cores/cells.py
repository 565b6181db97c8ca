"""flax's recurrent cells as unit-wise cells: their gates, phi, and its derivatives in closed form.

A cell of flax sums an input layer and a recurrent layer per gate, and the parameters keep flax's
own names. The derivatives are written out: a vjp of phi costs about twice the time.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from snaprl.cores.structure import dependencies
from snaprl.cores.types import Array
from snaprl.cores.unitwise import Derivatives, UnitwiseCell, Vector

Cell = TypeVar("Cell", bound=nn.RNNCellBase)


class Activation(NamedTuple):
    """An elementwise function whose slope is had from its value where a closed form is known."""

    function: Callable[[Array], Array]

    def __call__(self, x: Array) -> tuple[Array, Array | None]:
        """Returns the value and, where `slope` cannot do without it, the derivative."""
        if self.function in _SLOPE_FROM_VALUE:
            return self.function(x), None
        # backward, as jax itself goes: a function may have a rule for that direction alone
        y, pull = jax.vjp(self.function, x)
        return y, pull(jnp.ones_like(y))[0]

    def slope(self, y: Array, saved: Array | None) -> Array:
        """Returns the derivative at the point where the value is `y`."""
        return _SLOPE_FROM_VALUE[self.function](y) if saved is None else saved


_SLOPE_FROM_VALUE: dict[Callable, Callable[[Array], Array]] = {
    nn.sigmoid: lambda y: y * (1 - y),  # flax's and jax's are one function
    nn.tanh: lambda y: 1 - y * y,
}


def is_unitwise(cell: nn.RNNCellBase) -> bool:
    """Whether `cell` is known to be unit-wise; of a subclass that is not known.

    An activation that mixes units, such as softmax, makes any cell one that is not.
    """
    return type(cell) in _VIEWS and _mixing(cell) is None


def unitwise(cell: nn.RNNCellBase) -> UnitwiseCell:
    """Returns `cell` as a `UnitwiseCell`.

    Raises:
      TypeError: `cell` is none of the cells that are known to be unit-wise.
    """
    if is_unitwise(cell):
        return _VIEWS[type(cell)](cell)
    if type(cell) in _VIEWS:
        raise TypeError(
            f"{_mixing(cell)} of {type(cell).__name__} is not known to be elementwise, as this "
            "method needs it; use SnAp, RTRL or BPTT, which take any cell, or another function"
        )
    known = ", ".join(kind.__name__ for kind in _VIEWS)
    raise TypeError(
        f"{type(cell).__name__} is not known to be unit-wise, as this method needs it; use SnAp, "
        f"RTRL or BPTT, which take any cell, or one of {known}"
    )


def _mixing(cell: nn.RNNCellBase) -> str | None:
    """Which of the cell's functions is not known to be elementwise."""
    for name in ("gate_fn", "activation_fn"):
        function = getattr(cell, name, None)
        if function and not _is_elementwise(function, getattr(cell, "features", 1)):
            return name
    return None


@functools.lru_cache(maxsize=256)
def _is_elementwise(function: Callable[[Array], Array], features: int) -> bool:
    """Whether each of `[1, N]` depends on its own argument alone: by structure."""
    if function in _SLOPE_FROM_VALUE:
        return True
    row = jax.ShapeDtypeStruct((1, features), jnp.float32)
    patterns = dependencies(function, [row])
    return [p.shape for p in patterns] == [(features, features)] and all(
        np.array_equal(*pattern.nonzero()) for pattern in patterns
    )


def register(kind: type[Cell], view: Callable[[Cell], UnitwiseCell]) -> None:
    """Makes `kind`, and none of its subclasses, a cell that `unitwise` knows."""
    _VIEWS[kind] = view


def _simple(cell: nn.SimpleCell) -> UnitwiseCell:
    activation = Activation(cell.activation_fn)

    def phi(a: Vector, s: Vector, h: Vector, w: Vector) -> tuple[Vector, tuple]:
        del w
        pre = a[0] + s[0]
        if cell.residual:
            pre = pre + h[0]
        value, slope = activation(pre)
        return (value,), (value, slope)

    def derivatives(saved: tuple, h_tm1: Vector, w: Vector) -> Derivatives:
        del h_tm1, w
        slope = activation.slope(*saved)
        return Derivatives(((slope,),), ((slope,),), ((slope if cell.residual else None,),))

    return UnitwiseCell(cell.features, ("i",), ("h",), 1, cell.dtype, 0, phi, derivatives)


def _gru(cell: nn.GRUCell) -> UnitwiseCell:
    gate, activation = Activation(cell.gate_fn), Activation(cell.activation_fn)

    def phi(a: Vector, s: Vector, h: Vector, w: Vector) -> tuple[Vector, tuple]:
        del w
        r, dr = gate(a[0] + s[0])
        z, dz = gate(a[1] + s[1])
        n, dn = activation(a[2] + r * s[2])
        return ((1 - z) * n + z * h[0],), (r, dr, z, dz, n, dn, s[2])

    def derivatives(saved: tuple, h_tm1: Vector, w: Vector) -> Derivatives:
        del w
        r, dr, z, dz, n, dn, s_n = saved
        n_pre = (1 - z) * activation.slope(n, dn)
        r_pre = n_pre * s_n * gate.slope(r, dr)
        z_pre = (h_tm1[0] - n) * gate.slope(z, dz)
        # the reset gate multiplies the recurrent layer's output: s reaches n through r
        return Derivatives(((r_pre, z_pre, n_pre),), ((r_pre, z_pre, n_pre * r),), ((z,),))

    return UnitwiseCell(
        cell.features, ("ir", "iz", "in"), ("hr", "hz", "hn"), 1, cell.dtype, 0, phi, derivatives
    )


def _mgu(cell: nn.MGUCell) -> UnitwiseCell:
    gate, activation = Activation(cell.gate_fn), Activation(cell.activation_fn)

    def phi(a: Vector, s: Vector, h: Vector, w: Vector) -> tuple[Vector, tuple]:
        del w
        f, df = gate(a[0] + s[0])
        n, dn = activation(a[1] + (f * s[1] if cell.reset_gate else s[1]))
        return ((1 - f) * n + f * h[0],), (f, df, n, dn, s[1])

    def derivatives(saved: tuple, h_tm1: Vector, w: Vector) -> Derivatives:
        del w
        f, df, n, dn, s_n = saved
        n_pre = (1 - f) * activation.slope(n, dn)
        through_n = n_pre * s_n if cell.reset_gate else 0
        f_pre = (h_tm1[0] - n + through_n) * gate.slope(f, df)
        n_recurrent = n_pre * f if cell.reset_gate else n_pre
        return Derivatives(((f_pre, n_pre),), ((f_pre, n_recurrent),), ((f,),))

    return UnitwiseCell(
        cell.features, ("if", "in"), ("hf", "hn"), 1, cell.dtype, 0, phi, derivatives
    )


def _lstm(cell: nn.LSTMCell | nn.OptimizedLSTMCell) -> UnitwiseCell:
    gate, activation = Activation(cell.gate_fn), Activation(cell.activation_fn)

    def phi(a: Vector, s: Vector, h: Vector, w: Vector) -> tuple[Vector, tuple]:
        del w
        i, di = gate(a[0] + s[0])
        f, df = gate(a[1] + s[1])
        g, dg = activation(a[2] + s[2])
        o, do = gate(a[3] + s[3])
        c = f * h[0] + i * g
        squashed, dsquashed = activation(c)
        return (c, o * squashed), (i, di, f, df, g, dg, o, do, squashed, dsquashed)

    def derivatives(saved: tuple, h_tm1: Vector, w: Vector) -> Derivatives:
        del w
        i, di, f, df, g, dg, o, do, squashed, dsquashed = saved
        to_c = (g * gate.slope(i, di), h_tm1[0] * gate.slope(f, df), i * activation.slope(g, dg))
        c_to_h = o * activation.slope(squashed, dsquashed)
        to_h = (*(c_to_h * entry for entry in to_c), squashed * gate.slope(o, do))
        gates = ((*to_c, None), to_h)
        return Derivatives(gates, gates, ((f, None), (c_to_h * f, None)))

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
    )


_VIEWS: dict[type[nn.RNNCellBase], Callable] = {
    nn.SimpleCell: _simple,
    nn.GRUCell: _gru,
    nn.MGUCell: _mgu,
    nn.LSTMCell: _lstm,
    nn.OptimizedLSTMCell: _lstm,
}
