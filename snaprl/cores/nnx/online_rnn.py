"""`OnlineRNN` as a module of nnx, with nnx's own parameters.

They are cut into those of the linen cell that computes the same, at every call, and the linen
`OnlineRNN` does the rest. jax differentiates through the cut: gradients lie where nnx's parameters
lie.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from snaprl.cores import checks, online_rnn
from snaprl.cores.masks import Mask
from snaprl.cores.nnx import cells
from snaprl.cores.rewire import rewire
from snaprl.cores.room import first_pattern
from snaprl.cores.snap import SnAp
from snaprl.cores.types import Array, CoreState, GradientMethod, PyTree

_SNAP_1 = SnAp(order=1)


class Wiring(nnx.Variable):
    """Which weights are there, or what a method made of it: not trained, and of fixed shapes."""


class OnlineRNN(nnx.Module):
    """Runs an nnx cell over segments of streams that never have to end.

    The cell is kept as it is, in the place that `nnx.RNN(cell)` has for it, and the forward values
    are nnx's own. `nnx.grad` of any function of the outputs gives the gradient of `method`, the
    influence in the carry included. Nothing flows into the carry or back from it.

    Example:
      >>> rnn = OnlineRNN(nnx.GRUCell(8, 64, rngs=nnx.Rngs(0)), SnAp(order=1))
      >>> carry = rnn.initialize_carry((16, 8), nnx.Rngs(1))      # 16 streams, 8 inputs
      >>> carry, ys = rnn(carry, jnp.zeros((4, 16, 8)))
      >>> ys.shape
      (4, 16, 64)

    Attributes:
      cell: nnx's SimpleCell, GRUCell, LSTMCell or OptimizedLSTMCell; any other `nnx.RNNCellBase`,
        and one of these that was changed to compute something else, takes a general path, which is
        right and not fast.
      method: how the gradient travels, as for `snaprl.cores.OnlineRNN`.
      mask: tree of 0/1 arrays under the cell's own names; leaves that are missing are dense. It is
        kept as `Wiring`, which `rewire` changes without recompiling. Masked weights count as 0
        whatever was loaded, and their gradients are 0.
      time_major: whether `xs`, `resets` and `ys` are `[T, B, ...]` rather than `[B, T, ...]`. The
        default is the opposite of `nnx.RNN`'s.

    Raises:
      TypeError: the cell is no cell of nnx, or holds other arrays than floating ones; or the method
        is no gradient method.
      ValueError: the mask does not fit the cell, or there is one and the cell does not say how many
        inputs it reads.
    """

    def __init__(
        self,
        cell: nnx.RNNCellBase,
        method: GradientMethod = _SNAP_1,
        mask: Mapping[str, Any] | Mask | None = None,
        time_major: bool = True,
    ):
        checks.check_cell(cell, nnx.RNNCellBase)
        checks.check_method("method", method)
        keep = _checked(mask, cell)
        self.cell: Any = cell
        self.method = method
        self.mask = nnx.data(jax.tree.map(lambda leaf: Wiring(jnp.asarray(leaf)), keep))
        self.pattern: Wiring | None = nnx.data(None)
        self.time_major = time_major
        apart = self._apart(keep)
        room = mask.room if isinstance(mask, Mask) else 1.0
        self._first_mask = Mask(apart, room=room) if apart else None
        if apart:
            params = self._variables()["params"]["cell"]
            dtype = getattr(cell, "param_dtype", jnp.float32)
            inputs: Any = jax.ShapeDtypeStruct(self._input_shape(), dtype)
            linen = cells.linen_cell(cell)
            self._set_pattern(first_pattern(method, linen, params, self._first_mask, inputs))

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: nnx.Rngs | nnx.RngStream | Array
    ) -> CoreState:
        """Returns the state of streams that have seen nothing.

        Args:
          input_shape: `(B, M)`, streams and inputs. It comes first, as with nnx's cells; linen has
            the key first.
          rngs: its stream `carry` is drawn from, as nnx's cells do; or a key, which is consumed.

        Raises:
          TypeError: `input_shape` is not a shape at all.
          ValueError: `input_shape` is not `(B, M)`, or the cell reads another number of inputs.
        """
        taken = "initialize_carry takes (input_shape, rngs)"
        checks.check_input_shape(input_shape, self._linen().cell, taken)
        if hasattr(self.cell, "in_features"):
            checks.check_inputs("input_shape is", input_shape, self._input_shape()[-1])
        if not isinstance(rngs, nnx.Rngs | nnx.RngStream):
            rngs = nnx.Rngs(rngs)
        stream = rngs.carry if isinstance(rngs, nnx.Rngs) else rngs
        # each leaf in a buffer of its own, so that a fresh carry may be donated
        hidden = jax.tree.map(jnp.copy, cells.initial_carry(self.cell, tuple(input_shape), stream))
        carry = self._linen().initialize_carry(stream(), input_shape)
        return CoreState(hidden, jax.tree.map(jnp.copy, carry.influence))

    def __call__(
        self, carry: CoreState, xs: Array, resets: Array | None = None
    ) -> tuple[CoreState, Array]:
        """Runs a segment.

        Args:
          carry: the streams' state, from `initialize_carry` or the segment before.
          xs: `[T, B, M]`.
          resets: bool `[T, B]`: where a stream starts anew before the step; None for never.

        Returns:
          `(carry, ys)`: the state after the segment and the outputs `[T, B, N]`.

        Raises:
          TypeError: `carry` is no `CoreState`.
          ValueError: a shape or type does not fit; the sentence names it.
        """
        outcome: Any = self._linen().apply(self._variables(), carry, xs, resets)
        return outcome

    def step(
        self, carry: CoreState, x: Array, reset: Array | None = None
    ) -> tuple[CoreState, Array]:
        """Acts: one step, the influence untouched.

        Args:
          carry: the streams' state; for acting alone, its influence may be ().
          x: `[B, M]`.
          reset: bool `[B]` or None.

        Returns:
          `(carry, y)` with `y [B, N]`.

        Raises:
          TypeError: `carry` is no `CoreState`.
          ValueError: a shape or type does not fit; the sentence names it.
        """
        outcome: Any = self._linen().apply(self._variables(), carry, x, reset, method="step")
        return outcome

    def rewire(
        self, mask: Mapping[str, Any] | Mask, carry: CoreState | None = None
    ) -> CoreState | None:
        """Puts another mask in the place of the module's; what runs it is not compiled anew.

        Args:
          mask: the new mask, with the leaves of the old one.
          carry: the streams' state under the old mask; None where there is none to keep.

        Returns:
          The state under the new mask: the influence of weights that stay is carried over.

        Raises:
          ValueError: the mask has other leaves, or the method has no room for what it connects.
        """
        keep = _checked(mask, self.cell)
        Mask(keep).check_leaves(Mask(self._held()))
        shape, new = self._input_shape(), self._apart(keep)
        variables, carry = rewire(self._linen(), self._variables(), new, shape, carry)
        for variable, leaf in zip(_wirings(self.mask), jax.tree.leaves(keep), strict=True):
            variable[...] = jnp.asarray(leaf)
        self._set_pattern(variables["sparsity"].get("pattern", ()))
        return carry

    def _linen(self) -> online_rnn.OnlineRNN:
        cell = cells.linen_cell(self.cell)
        return online_rnn.OnlineRNN(
            cell, self.method, self._first_mask, self.time_major, parent=None
        )

    def _variables(self) -> dict[str, Any]:
        """The cell's parameters and their mask, in the places where linen looks for them."""
        dtype = getattr(self.cell, "param_dtype", jnp.float32)
        params = cells.apart(self.cell, cells.parameters(self.cell), dtype)
        sparsity: dict[str, Any] = {"cell": self._apart(self._held())}
        if self.pattern is not None:
            sparsity["pattern"] = self.pattern.get_value()
        return {"params": {"cell": params}, "sparsity": sparsity}

    def _held(self) -> dict[str, Any]:
        """The mask as nested dicts, under the cell's own names."""
        return jax.tree.map(lambda keep: keep[...], self.mask, is_leaf=_is_wiring)

    def _input_shape(self) -> tuple[int, ...]:
        """Of one step of one stream."""
        inputs = getattr(self.cell, "in_features", None)
        if inputs is None:
            raise ValueError(
                f"{type(self.cell).__name__} has no attribute in_features, and what a mask leaves "
                "depends on how many inputs there are; give it one, an int or a tuple"
            )
        return (1, inputs) if isinstance(inputs, int) else (1, *inputs)

    def _apart(self, mask: Mapping[str, Any]) -> dict[str, Any]:
        """A mask of the cell as one of linen's."""
        # in NumPy, so that it has values where the module itself is made under jit
        return cells.apart(self.cell, mask, bool)

    def _set_pattern(self, pattern: PyTree) -> None:
        if pattern != ():
            self.pattern = nnx.data(Wiring(jax.tree.map(jnp.asarray, pattern)))


def _checked(mask: Mapping[str, Any] | Mask | None, cell: nnx.RNNCellBase) -> dict[str, Any]:
    """The mask as nested dicts of bool arrays, which fit the cell."""
    cells.linen_cell(cell)  # raises where there is none
    if mask is None:
        return {}
    mask = mask if isinstance(mask, Mask) else Mask(mask)
    mask.check(cells.parameters(cell))
    return mask.tree()


def _is_wiring(leaf: Any) -> bool:
    return isinstance(leaf, Wiring)


def _wirings(tree: PyTree) -> list[Wiring]:
    return jax.tree.leaves(tree, is_leaf=_is_wiring)
