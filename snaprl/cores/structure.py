"""Which outputs of a function can depend on which inputs: read off its jaxpr, never off values.

A pattern is a sparse boolean matrix `[outputs, inputs]`. Every primitive adds one step to it. A
primitive that is not known here makes everything depend on everything that went into it: too much
is remembered then, and nothing is lost.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex
from scipy import sparse

Pattern = Any  # a sparse boolean matrix of scipy's


class Known(NamedTuple):
    """What is known of a value."""

    there: np.ndarray  # its shape, bool: False where it is zero by structure
    reads: Pattern  # [size, inputs] which inputs an element depends on


def dependencies(
    function: Callable[..., Any], arguments: Sequence[Any], there: Sequence[Any] | None = None
) -> list[Pattern]:
    """Follows what the outputs of a function depend on.

    Args:
      function: of arrays, to a tree of arrays.
      arguments: arrays, or their shapes and types.
      there: for each argument a bool array of its shape, False where it is zero by structure; None
        for everywhere.

    Returns:
      For each leaf of the output a pattern `[size, inputs]`, the arguments side by side.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    sizes = [int(np.prod(a.shape)) for a in arguments]
    starts = np.cumsum([0, *sizes])
    known = []
    for k, (argument, size) in enumerate(zip(arguments, sizes, strict=True)):
        exists = np.ones(argument.shape, bool) if there is None else np.asarray(there[k], bool)
        kept = np.flatnonzero(exists)
        reads = _matrix(kept, kept + starts[k], (size, int(starts[-1])))
        known.append(Known(exists, reads))
    with jax.ensure_compile_time_eval():  # whatever is being traced around it
        return [out.reads for out in _follow(closed.jaxpr, closed.consts, known)]


def _follow(jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Known]) -> list[Known]:
    width = arguments[0].reads.shape[1]
    values: dict[Any, Known] = {}

    def constant(value: Any) -> Known:
        there = np.asarray(value) != 0
        return Known(there, sparse.csr_matrix((there.size, width), dtype=bool))

    def read(atom: Any) -> Known:
        return constant(atom.val) if isinstance(atom, jex.Literal) else values[atom]

    values |= {var: constant(value) for var, value in zip(jaxpr.constvars, constants, strict=True)}
    values |= dict(zip(jaxpr.invars, arguments, strict=True))
    for equation in jaxpr.eqns:
        inner = _inner(equation)
        operands = [read(atom) for atom in equation.invars]
        if not operands:  # a constant made on the way
            results = [_unread(out, width) for out in equation.outvars]
        elif inner is not None and len(inner.jaxpr.invars) == len(operands):
            results = _follow(inner.jaxpr, inner.consts, operands)
        else:
            rule = _RULES.get(equation.primitive.name, _everything)
            results = rule(equation, operands)
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _inner(equation: Any) -> Any:
    """The jaxpr of a call, closed; None where the primitive is none, or loops."""
    if equation.primitive.name in ("scan", "while", "cond"):
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        found = equation.params.get(name)
        if found is not None:
            return found if hasattr(found, "jaxpr") else jex.ClosedJaxpr(found, ())
    return None


def _matrix(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> Pattern:
    return sparse.csr_matrix((np.ones(len(rows), bool), (rows, columns)), shape, dtype=bool)


def _joined(patterns: Sequence[Pattern]) -> Pattern:
    total = patterns[0]
    for pattern in patterns[1:]:
        total = total + pattern
    return total


def _everything(equation: Any, operands: Sequence[Known]) -> list[Known]:
    """Every element of every output reads whatever any operand has read."""
    width = operands[0].reads.shape[1]
    columns = np.unique(np.concatenate([x.reads.indices for x in operands]))
    results = []
    for out in equation.outvars:
        size = int(np.prod(out.aval.shape))
        row = np.repeat(np.arange(size), len(columns))
        reads = _matrix(row, np.tile(columns, size), (size, width))
        results.append(Known(np.ones(out.aval.shape, bool), reads))
    return results


def _nothing(equation: Any, operands: Sequence[Known]) -> list[Known]:
    """Flat almost everywhere: comparisons, signs, roundings."""
    return [_unread(out, operands[0].reads.shape[1]) for out in equation.outvars]


def _unread(out: Any, width: int) -> Known:
    """A value that depends on no input."""
    size = int(np.prod(out.aval.shape))
    there = np.ones(out.aval.shape, bool)
    return Known(there, sparse.csr_matrix((size, width), dtype=bool))


def _spread(operand: Known, shape: tuple[int, ...]) -> Known:
    """A scalar, or an axis of length one, beside larger arrays."""
    if operand.there.shape == shape:
        return operand
    number = np.arange(operand.there.size).reshape(operand.there.shape)
    number = np.broadcast_to(number, shape).ravel()
    return Known(np.broadcast_to(operand.there, shape), operand.reads[number])


def _elementwise(equation: Any, operands: Sequence[Known]) -> list[Known]:
    shape = equation.outvars[0].aval.shape
    spread = [_spread(x, shape) for x in operands]
    name = equation.primitive.name
    there = np.ones(shape, bool)
    if name in ("add", "sub", "neg", "convert_element_type", "copy", "add_any", "select_n"):
        there = np.logical_or.reduce([x.there for x in spread[name == "select_n" :]])
    return [Known(there, _joined([x.reads for x in spread]))]


def _product(equation: Any, operands: Sequence[Known]) -> list[Known]:
    """A factor that is zero by structure hides the other."""
    shape = equation.outvars[0].aval.shape
    left, right = (_spread(x, shape) for x in operands)
    reads = _joined([_only(left.reads, right.there), _only(right.reads, left.there)])
    return [Known(left.there & right.there, reads)]


def _only(reads: Pattern, there: np.ndarray) -> Pattern:
    kept = np.flatnonzero(there)
    return _matrix(kept, kept, (there.size, there.size)) @ reads


def _moved(equation: Any, operands: Sequence[Known]) -> list[Known]:
    """Elements change places: the primitive itself tells where to, moving their numbers."""
    numbers, start = [], 1
    for operand in operands:
        size = operand.there.size
        numbers.append(np.arange(start, start + size, dtype=np.int32).reshape(operand.there.shape))
        start += size
    out = equation.primitive.bind(*map(jnp.asarray, numbers), **equation.params)
    outs = out if equation.primitive.multiple_results else [out]
    reads: Any = sparse.vstack([x.reads for x in operands]).tocsr()
    there = np.concatenate([[False], *(x.there.ravel() for x in operands)])
    results = []
    for moved in map(np.asarray, outs):
        flat = moved.ravel()
        rows = np.flatnonzero(flat)
        select = _matrix(rows, flat[rows] - 1, (flat.size, reads.shape[0]))
        results.append(Known(there[moved], (select @ reads).astype(bool)))
    return results


def _reduced(equation: Any, operands: Sequence[Known]) -> list[Known]:
    (operand,) = operands
    axes, shape = equation.params["axes"], operand.there.shape
    kept = [n for axis, n in enumerate(shape) if axis not in axes]
    number = np.expand_dims(np.arange(int(np.prod(kept))).reshape(kept), tuple(axes))
    rows = np.broadcast_to(number, shape).ravel()
    select = _matrix(rows, np.arange(rows.size), (int(np.prod(kept)), rows.size))
    there = np.asarray(operand.there.any(tuple(axes)))
    return [Known(there, (select @ operand.reads).astype(bool))]


def _bilinear(equation: Any, operands: Sequence[Known]) -> list[Known]:
    """Products of arrays: what one operand lets through of the other."""

    def apply(left: Any, right: Any) -> Any:
        return equation.primitive.bind(left, right, **equation.params)

    left, right = (jnp.asarray(x.there, jnp.float32) for x in operands)
    there = np.asarray(apply(left, right)) != 0
    patterns = []
    for k, operand in enumerate(operands):
        if operand.reads.nnz:
            slope = np.asarray(jax.jacrev(apply, k)(left, right)) != 0
            slope = sparse.csr_matrix(slope.reshape(there.size, operand.there.size))
            patterns.append((slope @ operand.reads).astype(bool))
    width = operands[0].reads.shape[1]
    empty = sparse.csr_matrix((there.size, width), dtype=bool)
    return [Known(there, _joined([empty, *patterns]))]


_RULES: dict[str, Callable[[Any, Sequence[Known]], list[Known]]] = {
    name: rule
    for rule, names in {
        _elementwise: "add sub neg convert_element_type copy add_any select_n max min div pow "
        "integer_pow exp exp2 expm1 log log1p tanh logistic sin cos tan asin acos atan atan2 sinh "
        "cosh asinh acosh atanh sqrt rsqrt cbrt square abs erf erfc erf_inv lgamma digamma "
        "clamp nextafter rem real imag complex conj reduce_precision optimization_barrier",
        _product: "mul",
        _moved: "reshape broadcast_in_dim transpose slice squeeze expand_dims rev concatenate "
        "split",
        _reduced: "reduce_sum reduce_max reduce_min reduce_prod",
        _bilinear: "dot_general conv_general_dilated",
        _nothing: "lt le gt ge eq ne sign floor ceil round is_finite and or not xor argmax argmin "
        "stop_gradient",
    }.items()
    for name in names.split()
}
