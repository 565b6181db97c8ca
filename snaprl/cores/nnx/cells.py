"""nnx's recurrent cells, and the linen cells that compute the same.

nnx keeps the weights of several gates side by side in one array, where linen has a layer per gate.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn import dtypes

from snaprl.cores.nnx import any_cell
from snaprl.cores.types import PyTree


class _Kin(NamedTuple):
    """The linen cell that computes what an nnx cell does, and where its layers lie in nnx's."""

    cell: Callable[..., nn.RNNCellBase]
    options: tuple[str, ...]  # what this kind is told beyond what every kind is
    layers: dict[str, tuple[str, ...]]  # linen's layers that lie in one of nnx's, side by side
    biased: tuple[str, ...]  # nnx's layers that have a bias
    lacking: tuple[str, ...] = ()  # linen's layers that have one where nnx has none


_LSTM_INPUTS, _LSTM_RECURRENT = ("ii", "if", "ig", "io"), ("hi", "hf", "hg", "ho")
_KIN: dict[type[nnx.RNNCellBase], _Kin] = {
    nnx.SimpleCell: _Kin(
        nn.SimpleCell, ("residual",), {"dense_i": ("i",), "dense_h": ("h",)}, ("dense_i",)
    ),
    nnx.GRUCell: _Kin(
        nn.GRUCell,
        ("gate_fn",),
        {"dense_i": ("ir", "iz", "in"), "dense_h": ("hr", "hz", "hn")},
        ("dense_i",),
        lacking=("hn",),
    ),
    nnx.LSTMCell: _Kin(
        nn.LSTMCell,
        ("gate_fn",),
        # `if` is no name for an attribute
        {name.replace("if", "if_"): (name,) for name in _LSTM_INPUTS + _LSTM_RECURRENT},
        _LSTM_RECURRENT,
    ),
    nnx.OptimizedLSTMCell: _Kin(
        nn.OptimizedLSTMCell,
        ("gate_fn",),
        {"dense_i": _LSTM_INPUTS, "dense_h": _LSTM_RECURRENT},
        ("dense_h",),
    ),
}


def _kin(cell: nnx.RNNCellBase) -> _Kin | None:
    """None for a subclass, or a cell in which anything was exchanged: it may compute anything."""
    kin = _KIN.get(type(cell))
    if kin is None:
        return None
    plain = (_is_plain(getattr(cell, name), cell, name in kin.biased) for name in kin.layers)
    expected = {(name, "kernel") for name in kin.layers} | {(name, "bias") for name in kin.biased}
    found = {
        path if issubclass(getattr(leaf, "type", object), nnx.Param) else ()
        for path, leaf in nnx.to_flat_state(nnx.state(cell))
        if not issubclass(getattr(leaf, "type", object), nnx.RngState)  # what `keep_rngs` keeps
    }
    return kin if all(plain) and found == expected else None


def linen_cell(cell: Any) -> nn.RNNCellBase:
    """The linen cell that computes what `cell` does; it never draws parameters of its own.

    Raises:
      TypeError: a cell that is not one of nnx's own holds other arrays than floating ones.
    """
    kin, zeros = _kin(cell), nn.initializers.zeros_init()
    if kin is None:
        return any_cell.linen_cell(cell)
    return kin.cell(
        features=cell.hidden_features,
        activation_fn=cell.activation_fn,
        carry_init=cell.carry_init or zeros,
        dtype=cell.dtype,
        param_dtype=cell.param_dtype,
        parent=None,
        # asked for shapes only, and zeros have them in every type
        kernel_init=zeros,
        recurrent_kernel_init=zeros,
        **{name: getattr(cell, name) for name in kin.options},
    )


def parameters(cell: nnx.RNNCellBase) -> dict[str, Any]:
    """What a gradient is for, under the cell's own names; of an unknown cell its constants, too."""
    return any_cell.parameters(cell, ... if _kin(cell) is None else nnx.Param)


def initial_carry(cell: Any, input_shape: tuple[int, ...], stream: nnx.RngStream) -> PyTree:
    """What streams start from, drawn as the cell draws it.

    Raises:
      TypeError: a cell that is not one of nnx's own reads parameters to say so.
    """
    if _kin(cell) is None:
        return any_cell.initial_carry(cell, input_shape, nnx.Rngs(stream()))
    return cell.initialize_carry(tuple(input_shape), stream)


def _is_plain(layer: Any, cell: Any, biased: bool) -> bool:
    """Whether the layer is nnx's product with a kernel, in the cell's type, and nothing else."""
    return (
        type(layer) is nnx.Linear
        and (layer.bias is not None) == biased
        and layer.dtype == cell.dtype
        and layer.promote_dtype is dtypes.promote_dtype
        and layer.dot_general is jax.lax.dot_general
        and layer.precision is None
        and layer.preferred_element_type is None
    )


def apart(cell: Any, tree: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Cuts arrays `[..., G N]` under nnx's names into arrays `[..., N]` under linen's.

    The GRU of nnx has no bias inside the product with its reset gate, where linen's has one. Zeros
    of `dtype` stand there: as a parameter 0, and masked, so that a method keeps no influence of it.
    """
    kin = _kin(cell)
    if kin is None:
        return dict(tree)
    parts: dict[str, dict[str, Any]] = {}
    for layer, leaves in tree.items():
        names = kin.layers[layer]
        for leaf, joined in leaves.items():
            # split's own gradient is one join; that of slices would be a sum of padded arrays
            cut = np.split if isinstance(joined, np.ndarray) else jnp.split
            for name, part in zip(names, cut(joined, len(names), axis=-1), strict=True):
                parts.setdefault(name, {})[leaf] = part
    for name in kin.lacking:
        parts.setdefault(name, {})["bias"] = np.zeros(cell.hidden_features, dtype)
    return parts
