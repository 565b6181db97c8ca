"""Layers of cores, one above the other.

`OnlineStack` keeps an influence per layer. A layer learns from what the one above gives its inputs:
`lambda_t` of (11) or (15), the adjoint within the segment. What is left out is what a weight of a
lower layer did before the segment that an upper layer still remembers: an upper layer's memory of
the segments before is not followed down.

`StackedCell` is the exact way for small nets: all layers are one cell, which is not unit-wise, and
`RTRL()` or `SnAp(order=n)` follow its influence across layers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from snaprl.cores import checks, forecast
from snaprl.cores.masks import Mask
from snaprl.cores.online_rnn import OnlineRNN
from snaprl.cores.snap import SnAp
from snaprl.cores.types import Array, CoreState, GradientMethod, PyTree


class OnlineStack(nn.Module):
    """A stack of `OnlineRNN`: each layer reads the outputs of the one below it.

    Example:
      >>> stack = OnlineStack((nn.GRUCell(32), nn.GRUCell(16)))
      >>> carry = stack.initialize_carry(jax.random.key(0), (4, 8))     # 4 streams, 8 inputs
      >>> len(carry)
      2

    Attributes:
      cells: from the bottom up.
      method: how the gradient travels through time, in every layer.
      time_major: as in `OnlineRNN`.
      masks: one per cell, as `OnlineRNN` takes it; None for dense layers.
    """

    cells: Sequence[nn.RNNCellBase]
    method: GradientMethod = SnAp(order=1)
    time_major: bool = True
    masks: Sequence[Mapping[str, Any] | Mask | None] | None = None

    def __post_init__(self):
        _check_cells(self.cells)
        checks.check_method("method", self.method)
        if self.masks is not None:
            if not isinstance(self.masks, Sequence):
                raise TypeError(
                    f"masks is of type {type(self.masks).__name__}; it must be one mask per cell, "
                    "or None"
                )
            if len(self.masks) != len(self.cells):
                raise ValueError(
                    f"{len(self.cells)} cells need as many masks, not {len(self.masks)}"
                )
            made = (
                None if m is None else m if isinstance(m, Mask) else Mask(m) for m in self.masks
            )
            self.masks = tuple(made)  # hashable, as in `OnlineRNN`
        super().__post_init__()

    def setup(self):
        """One `OnlineRNN` per cell, `layers_0` at the bottom."""
        self.layers = [
            OnlineRNN(cell.clone(parent=None, name=None), self.method, mask, self.time_major)
            for cell, mask in zip(self.cells, self._masks(), strict=True)
        ]

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> tuple[CoreState, ...]:
        """Returns one state per layer; as in `OnlineRNN`.

        Raises:
          ValueError: as there; or the influences of all layers do not fit into memory together.
        """
        shapes = jax.eval_shape(lambda: self._carries(jax.random.key(0), input_shape))
        forecast.check_stack([state.influence for state in shapes], input_shape[0])
        return self._carries(rng, input_shape)

    @nn.nowrap
    def _carries(self, rng: Array, input_shape: tuple[int, ...]) -> tuple[CoreState, ...]:
        states = []
        keys = jax.random.split(rng, len(self.cells))
        for key, cell, mask in zip(keys, self.cells, self._masks(), strict=True):
            layer = OnlineRNN(cell.clone(parent=None, name=None), self.method, mask, parent=None)
            states.append(layer.initialize_carry(key, input_shape))
            input_shape = (input_shape[0], _outputs(layer, states[-1], input_shape))
        return tuple(states)

    @nn.nowrap
    def _masks(self) -> Sequence[Any]:
        return [None] * len(self.cells) if self.masks is None else self.masks

    def __call__(
        self, carry: tuple[CoreState, ...], xs: Array, resets: Array | None = None
    ) -> tuple[tuple[CoreState, ...], Array]:
        """Runs a segment through every layer; as in `OnlineRNN`, `ys` are the uppermost layer's."""
        _check_parts(carry, self.layers)
        states = []
        for layer, state in zip(self.layers, carry, strict=True):
            state, xs = layer(state, xs, resets)
            states.append(state)
        return tuple(states), xs

    def step(
        self, carry: tuple[CoreState, ...], x: Array, reset: Array | None = None
    ) -> tuple[tuple[CoreState, ...], Array]:
        """Acts: one step of every layer, no influence touched."""
        _check_parts(carry, self.layers)
        states = []
        for layer, state in zip(self.layers, carry, strict=True):
            state, x = layer.step(state, x, reset)
            states.append(state)
        return tuple(states), x


class StackedCell(nn.RNNCellBase):
    """Several cells as one: the new carry of each is there before the one above reads its output.

    Attributes:
      cells: from the bottom up.
    """

    cells: Sequence[nn.RNNCellBase]

    def __post_init__(self):
        _check_cells(self.cells)
        super().__post_init__()

    @nn.compact
    def __call__(self, carry: PyTree, inputs: Array) -> tuple[PyTree, Array]:
        """One step: `(carry, inputs [B, M])` to `(carry, outputs)` of the uppermost cell.

        Raises:
          ValueError: the carry is not that of as many cells.
        """
        _check_parts(carry, self.cells)
        after = []
        for cell, state in zip(self.cells, carry, strict=True):
            state, inputs = cell(state, inputs)
            after.append(state)
        return tuple(after), inputs

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> PyTree:
        """The carries of the cells, from the bottom up."""
        keys = jax.random.split(rng, len(self.cells))
        carries = []
        for key, cell in zip(keys, self.cells, strict=True):
            cell: Any = cell.clone(parent=None, name=None)
            carries.append(cell.initialize_carry(key, input_shape))
            if len(carries) < len(self.cells):  # what the next one reads
                x = jax.ShapeDtypeStruct(tuple(input_shape), "float32")
                (_, y), _ = jax.eval_shape(cell.init_with_output, key, carries[-1], x)
                input_shape = y.shape
        return tuple(carries)

    @property
    def num_feature_axes(self) -> int:
        """Inputs are vectors."""
        return 1


def _check_cells(cells: Any) -> None:
    """Raises where `cells` are no cells, one after the other."""
    if not isinstance(cells, Sequence) or not cells:
        raise TypeError("cells must be a tuple of recurrent cells, from the bottom up")
    for cell in cells:
        checks.check_cell(cell, nn.RNNCellBase)


def _check_parts(carry: Any, cells: Sequence[Any]) -> None:
    """Raises where a carry is not that of as many cells."""
    if not isinstance(carry, Sequence):
        raise TypeError(
            f"carry is of type {type(carry).__name__}; it must be the tuple that initialize_carry "
            "makes, and it comes before the inputs"
        )
    if len(carry) != len(cells):
        raise ValueError(
            f"carry has {len(carry)} parts for {len(cells)} cells; initialize_carry makes one for "
            "each, from the bottom up"
        )


def _outputs(layer: OnlineRNN, state: CoreState, input_shape: tuple[int, ...]) -> int:
    """How many numbers a layer gives out."""
    x = jax.ShapeDtypeStruct((1, *input_shape), "float32")

    def run(key: Array, x: Array) -> Array:
        (_, ys), _ = layer.init_with_output(key, state, x)
        return ys

    return jax.eval_shape(run, jax.random.key(0), x).shape[-1]
