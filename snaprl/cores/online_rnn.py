"""`OnlineRNN`: a flax recurrent layer whose gradient does not stop at the segment's edge."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import InvalidRngError

from snaprl.cores import backprop, checks, forecast, segment
from snaprl.cores.cells import is_unitwise, unitwise
from snaprl.cores.masks import Mask, apply_mask, check_held
from snaprl.cores.resets import where_reset
from snaprl.cores.room import first_pattern
from snaprl.cores.snap import SnAp
from snaprl.cores.stand_in import stand_in
from snaprl.cores.types import Array, CoreState, GradientMethod, PyTree, Sparsity


class OnlineRNN(nn.Module):
    """Runs a recurrent cell over segments of streams that never have to end.

    The parameter tree is that of `nn.RNN(cell)`, so trained parameters move either way, and the
    forward values are flax's own. `jax.grad` of any function of the outputs gives the gradient of
    `method`, the influence in the carry included. Nothing flows into the carry or back from it.

    Example:
      >>> rnn = OnlineRNN(nn.GRUCell(64), SnAp(order=1))
      >>> carry = rnn.initialize_carry(jax.random.key(0), (16, 8))      # 16 streams, 8 inputs
      >>> variables = rnn.init(jax.random.key(1), carry, jnp.zeros((4, 16, 8)))
      >>> carry, ys = rnn.apply(variables, carry, jnp.zeros((4, 16, 8)))
      >>> ys.shape
      (4, 16, 64)

    Attributes:
      cell: flax's SimpleCell, GRUCell, MGUCell, LSTMCell or OptimizedLSTMCell, or one of ours; any
        other `nn.RNNCellBase` takes a general path, which is right and not fast.
      method: how the gradient travels: `SnAp(order=1)`, `RTRL()`, `BPTT()`,
        `BPTT(tail=SnAp(order=1))`, `Frozen()`.
      mask: tree of 0/1 arrays shaped like the cell's parameters; leaves that are missing are dense.
        It is copied at `init` into the variable collection `sparsity`, from where it is read: a
        pattern may change without recompiling. Masked weights count as 0 whatever was loaded.
      time_major: whether `xs`, `resets` and `ys` are `[T, B, ...]` rather than `[B, T, ...]`.

    Raises:
      TypeError: the cell is no linen cell, or the method no gradient method.
    """

    cell: nn.RNNCellBase
    method: GradientMethod = SnAp(order=1)
    mask: Mapping[str, Any] | Mask | None = None
    time_major: bool = True

    def __post_init__(self):
        checks.check_cell(self.cell, nn.RNNCellBase)
        checks.check_method("method", self.method)
        if self.mask is not None and not isinstance(self.mask, Mask):
            self.mask = Mask(self.mask)  # hashable: the module goes through jit as a static value
        super().__post_init__()

    @nn.nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> CoreState:
        """Returns the state of streams that have seen nothing.

        Args:
          rng: consumed; only random methods and initial carries draw from it.
          input_shape: `(B, M)`, streams and inputs, as flax cells take it. Its own ignore `M`;
            here it is the width of what the layer reads, and sizes the influence.

        Raises:
          TypeError: `input_shape` is not a shape at all.
          ValueError: `input_shape` is not `(B, M)`, the mask does not fit the cell, or the
            influence does not fit into memory.
        """
        taken = "initialize_carry takes (rng, input_shape)"
        checks.check_input_shape(input_shape, self._unbound_cell(), taken)
        cell = self._unbound_cell()
        hidden_key, method_key = jax.random.split(rng)
        hidden = cell.initialize_carry(hidden_key, tuple(input_shape))
        # each leaf in a buffer of its own, so that a fresh carry may be donated
        hidden = jax.tree.map(jnp.copy, hidden)
        x, streams = jnp.zeros(input_shape), input_shape[0]
        params = _parameter_shapes(cell, hidden, x)
        sparsity = self._sparsity(params, x)
        shapes = jax.eval_shape(
            lambda: self.method.init(cell, params, sparsity, streams, jax.random.key(0))
        )
        about: Any = {"method": self.method, "cell": cell, "params": params, "mask": sparsity.mask}
        forecast.check(shapes, streams, **about)
        influence = self.method.init(cell, params, sparsity, streams, method_key)
        return CoreState(hidden, influence)

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
          TypeError: `carry` is no `CoreState`, or `xs` no array.
          ValueError: a shape or type does not fit; the sentence names it.
        """
        checks.check_carry(carry)
        checks.check_array("xs", xs)
        shape = jnp.shape(xs)
        if len(shape) != 2 + checks.feature_axes(self.cell):
            axes = "T, B" if self.time_major else "B, T"
            axes = f"[{axes}{', M' * checks.feature_axes(self.cell)}]"
            raise ValueError(f"xs has shape {shape}; a segment of inputs is {axes}")
        checks.check_resets("resets", resets, shape[:2])
        if not self.time_major:
            xs = jnp.swapaxes(xs, 0, 1)
            resets = None if resets is None else jnp.swapaxes(resets, 0, 1)
        if not len(xs):
            raise ValueError(f"xs has shape {shape}; a segment has at least one step")
        carry = self._with_hidden(carry, xs[0])
        params, sparsity = self._parameters(carry, xs[0])
        self._check_inputs("xs has shape", shape, params)
        sparsity = self._with_pattern(sparsity, carry, params, xs[0])
        carry = self._with_influence(carry, params, sparsity, xs[0])
        carry, ys = self.method.unroll(self._unbound_cell(), params, sparsity, carry, xs, resets)
        return carry, ys if self.time_major else jnp.swapaxes(ys, 0, 1)

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
          TypeError: `carry` is no `CoreState`, or `x` no array.
          ValueError: a shape or type does not fit; the sentence names it.
        """
        checks.check_carry(carry)
        checks.check_array("x", x)
        if jnp.ndim(x) != 1 + checks.feature_axes(self.cell):
            axes = f"[B{', M' * checks.feature_axes(self.cell)}]"
            raise ValueError(f"x has shape {jnp.shape(x)}; one step's inputs are {axes}")
        checks.check_resets("reset", reset, jnp.shape(x)[:1])
        carry = self._with_hidden(carry, x)
        params, _ = self._parameters(carry, x)
        self._check_inputs("x has shape", jnp.shape(x), params)
        cell = self._unbound_cell()
        if stand_in(self.cell) is not None:  # for a single step, the cell itself is faster
            params, cell = self.cell.variables["params"], self.cell.clone(parent=None, name=None)
        if is_unitwise(cell):
            hidden, y = segment.step(cell, params, carry.hidden, x, reset)
        else:
            initial = cell.initialize_carry(jax.random.key(0), jnp.shape(x))
            hidden = where_reset(reset, initial, carry.hidden)
            hidden, y = backprop.step(cell, params, hidden, x)
        return carry._replace(hidden=hidden), y

    @nn.nowrap
    def _mask(self) -> Mask | None:
        assert not isinstance(self.mask, Mapping)  # __post_init__ saw to it
        other = stand_in(self.cell)
        if other is None:
            return self.mask
        if self.mask is not None:
            raise ValueError(
                f"mask is given for a {type(self.cell).__name__}, whose own attributes say which "
                f"weights it has; use {type(other.cell).__name__} with a mask"
            )
        return other.mask

    @nn.nowrap
    def _unbound_cell(self) -> nn.RNNCellBase:
        other = stand_in(self.cell)
        return self.cell.clone(parent=None, name=None) if other is None else other.cell

    def _parameters(self, carry: CoreState, x: Array) -> tuple[dict[str, Any], Sparsity]:
        """The cell's parameters, masked, and the mask; created here at `init`.

        The pattern is that of the module's own mask.
        """
        if self.is_initializing():
            self.cell(carry.hidden, x)
        checks.check_variables(
            self.cell.variables, self.variables.get("params", {}), str(self.cell.name)
        )
        params = _plain(nn.meta.unbox(self.cell.variables["params"]))
        self._check_params(params, carry, x)
        other = stand_in(self.cell)
        params = params if other is None else other.params(params)
        fixed = self._sparsity(params, x)
        held = _plain(self.variables.get("sparsity", {}))
        if self.mask is None:
            if other is None and jax.tree.leaves(held):
                raise ValueError(
                    "the variables hold a mask, in the collection sparsity, and the module has "
                    "none; give it the one that they were made with, OnlineRNN(cell, mask=...)"
                )
            return params, fixed
        free = self.is_mutable_collection("sparsity")  # not where a lifted scan leaves it out
        if self.is_initializing() and free and not held:
            # not `self.variable`, which would not share the name with the submodule: so the masks
            # lie beside the parameters, under the same names; and on the device, for numpy's would
            # be moved there at every call
            self.put_variable("sparsity", "cell", jax.tree.map(jnp.asarray, fixed.mask))
            if fixed.pattern != ():
                pattern = jax.tree.map(jnp.asarray, fixed.pattern)
                self.put_variable("sparsity", "pattern", pattern)
        if held:
            check_held(held, fixed.mask)
            fixed = fixed._replace(mask=held["cell"])
        return apply_mask(params, fixed.mask), fixed

    def _with_pattern(
        self, sparsity: Sparsity, carry: CoreState, params: dict[str, Any], x: Array
    ) -> Sparsity:
        """The pattern that lies beside the mask, in the place of that of the module's own mask.

        A method that has none of its own does without: the variables may be another method's.
        """
        has_own = self.mask is not None and self.has_variable("sparsity", "cell")
        if sparsity.pattern == () or not has_own:
            return sparsity
        pattern = self.get_variable("sparsity", "pattern", default=())
        found = sparsity._replace(pattern=pattern)
        checks.check_pattern(pattern, sparsity.pattern, self.method)
        if self._fits(carry, params, sparsity, x) and not self._fits(carry, params, found, x):
            checks.refuse_pattern(self.method)  # the carry is this method's, and the pattern not
        return found

    @nn.nowrap
    def _sparsity(self, params: dict[str, Any], x: Array) -> Sparsity:
        """The module's own mask, and what the method makes of it."""
        mask = self._mask()
        shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
        leaves, structure = jax.tree.flatten(shapes)
        inputs: Any = jax.ShapeDtypeStruct(x.shape, x.dtype)
        cell: Any = self._unbound_cell()
        make = _sparsity if _hashable(cell) else _sparsity.__wrapped__
        return make(self.method, cell, mask, structure, tuple(leaves), inputs)

    @nn.nowrap
    def _with_hidden(self, carry: CoreState, x: Array) -> CoreState:
        """The carry, its hidden state compared with what the cell starts from."""
        cell = self._unbound_cell()
        expected = jax.eval_shape(lambda: cell.initialize_carry(jax.random.key(0), x.shape))
        widen = not is_unitwise(cell)  # of a cell not known all steps have the types of its own
        hidden = checks.check_tree("carry.hidden", carry.hidden, expected, x.shape, widen=widen)
        return carry._replace(hidden=hidden)

    @nn.nowrap
    def _check_params(self, params: dict[str, Any], carry: CoreState, x: Array) -> None:
        """Compares the parameters with the cell's; of a cell not known, flax itself does."""
        cell: Any = self._unbound_cell()
        if is_unitwise(cell):
            own: Any = self.cell.clone(parent=None, name=None)
            leaves, structure = jax.tree.flatten(jax.eval_shape(lambda *a: a, carry.hidden, x))
            shapes = _own_params if _hashable(own) else _own_params.__wrapped__
            expected = shapes(own, structure, tuple(leaves))
            checks.check_params(self.cell, params, expected, unitwise(cell).inputs)

    @nn.nowrap
    def _with_influence(
        self, carry: CoreState, params: dict[str, Any], sparsity: Sparsity, x: Array
    ) -> CoreState:
        """The carry, with an influence of the types that the method computes in."""
        expected = self._influence_shapes(params, sparsity, x)
        influence = checks.check_tree(
            "carry.influence", carry.influence, expected, x.shape, widen=True
        )
        return carry._replace(influence=influence)

    @nn.nowrap
    def _fits(self, carry: CoreState, params: dict[str, Any], sparsity: Sparsity, x: Array) -> bool:
        trees = carry.influence, self._influence_shapes(params, sparsity, x)
        found, needed = (jax.tree.map(jnp.shape, tree) for tree in trees)
        return found == needed

    @nn.nowrap
    def _influence_shapes(self, params: dict[str, Any], sparsity: Sparsity, x: Array) -> PyTree:
        cell, method, streams = self._unbound_cell(), self.method, x.shape[0]
        return jax.eval_shape(
            lambda: method.init(cell, params, sparsity, streams, jax.random.key(0))
        )

    @nn.nowrap
    def _check_inputs(self, what: str, shape: tuple[int, ...], params: dict[str, Any]) -> None:
        """Compares the inputs' width with the parameters; of a cell not known, flax itself does."""
        cell = self._unbound_cell()
        if is_unitwise(cell):
            checks.check_inputs(what, shape, len(params[unitwise(cell).inputs[0]]["kernel"]))


@functools.lru_cache(maxsize=32)
def _sparsity(
    method: GradientMethod,
    cell: nn.RNNCellBase,
    mask: Mask | None,
    structure: Any,
    leaves: tuple[jax.ShapeDtypeStruct, ...],
    inputs: Any,
) -> Sparsity:
    """Made once for a module: following a pattern through a large core takes its time."""
    params = jax.tree.unflatten(structure, leaves)
    if mask is not None:
        mask.check(params)
    tree = {} if mask is None else mask.tree()
    return Sparsity(tree, first_pattern(method, cell, params, mask, inputs))


@functools.lru_cache(maxsize=32)
def _own_params(
    cell: nn.RNNCellBase, structure: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]
) -> dict[str, Any]:
    """The shapes of a cell's parameters, found once: `leaves` are of its carry and its inputs."""
    return _parameter_shapes(cell, *jax.tree.unflatten(structure, leaves))


def _hashable(cell: nn.RNNCellBase) -> bool:
    """A cell of cells is not, while it is bound; then a pattern is made at every trace."""
    try:
        hash(cell)
    except TypeError:
        return False
    return True


def _parameter_shapes(cell: nn.RNNCellBase, hidden: PyTree, x: Array) -> dict[str, Any]:
    """Shapes and types of a cell's parameters.

    jax draws no orthogonal kernels in fewer than 32 bits; 0.12 does not even tell their shapes.
    """
    kind = getattr(cell, "param_dtype", jnp.float32)
    wide = jnp.promote_types(kind, jnp.float32)
    drawn = cell if wide == kind else cell.clone(param_dtype=wide)
    # what is said of an array's place on a mesh is no part of it
    variables: Any = nn.meta.unbox(jax.eval_shape(drawn.init, jax.random.key(0), hidden, x))
    if others := variables.keys() - {"params"}:
        raise ValueError(
            f"{type(cell).__name__} keeps {' and '.join(sorted(others))} beside its parameters, "
            "and a step that is followed online may read parameters, the carry and its input; keep "
            "what changes in the carry, and constants as attributes"
        )
    shapes = variables["params"]
    if not is_unitwise(cell):
        try:
            jax.eval_shape(drawn.apply, {"params": shapes}, hidden, x)
        except InvalidRngError:
            raise ValueError(
                f"{type(cell).__name__} draws random numbers while it runs, and a step that is "
                "followed online depends on parameters, the carry and its input; put dropout "
                "before the core or after it"
            ) from None
    if wide != kind:
        shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, kind), shapes)
    return _plain(shapes)


def _plain(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts, whatever kind of mapping flax or the user keeps."""
    return {k: _plain(v) if isinstance(v, Mapping) else v for k, v in tree.items()}
