"""How a cell of ours becomes a flax module: its layers are those that its view names."""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
from flax.typing import Initializer

from snaprl.cores.segment import outputs, pack, unpack
from snaprl.cores.types import Array, PyTree
from snaprl.cores.unitwise import UnitwiseCell, over_units


def call(
    cell: Any,
    view: UnitwiseCell,
    carry: PyTree,
    x_t: Array,
    *,
    biased: Collection[str] = (),
    local: Mapping[str, Initializer] = MappingProxyType({}),
    recurrent: Callable[..., nn.Module] = nn.Dense,
) -> tuple[PyTree, Array]:
    """Runs one step inside the compact `__call__` of `cell`, whose parameters it makes.

    Args:
      cell: the bound module, with flax's attributes: `features`, `kernel_init`, `dtype`, ...
      view: what the cell computes.
      carry: the state, `[..., N]` or a tuple of them.
      x_t: `[..., M]`.
      biased: the layers that have a bias.
      local: how the parameters `[N]` start that a unit keeps for itself, in the view's order.
      recurrent: what makes a recurrent layer, called as `nn.Dense` is.

    Returns:
      `(carry, y_t)`, as flax's cells do.
    """

    def run(make: Any, name: str, kernel_init: Initializer, source: Array) -> Array:
        layer = make(
            features=cell.features,
            use_bias=name in biased,
            dtype=cell.dtype,
            param_dtype=cell.param_dtype,
            kernel_init=kernel_init,
            bias_init=cell.bias_init if name in biased else nn.initializers.zeros_init(),
            name=name,
        )
        return layer(source)

    h_tm1 = pack(carry)
    read = h_tm1[view.read]
    a = tuple(run(nn.Dense, name, cell.kernel_init, x_t) for name in view.inputs)
    s = tuple(run(recurrent, name, cell.recurrent_kernel_init, read) for name in view.recurrent)
    w = tuple(
        over_units(cell.param(name, init, (cell.features,), cell.param_dtype), read)
        for name, init in local.items()
    )
    h_t, _ = view.phi(a, s, h_tm1, tuple(x.astype(read.dtype) for x in w))
    y_t = outputs(view, h_t)
    return unpack(h_t), view.readout(y_t) if view.readout else y_t


def initial_carry(cell: Any, rng: Array, input_shape: tuple[int, ...], states: int) -> PyTree:
    """What a stream starts from, by the cell's `carry_init`: `[..., N]`, or a tuple of them."""
    shape = (*input_shape[:-1], cell.features)
    keys = [rng] if states == 1 else jax.random.split(rng, states)
    return unpack(tuple(cell.carry_init(key, shape, cell.param_dtype) for key in keys))
