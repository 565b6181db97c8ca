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
    if there is None:
        there = [np.ones(a.shape, bool) for a in arguments]
    known = _side_by_side([np.asarray(exists, bool) for exists in there])
    with jax.ensure_compile_time_eval():  # whatever is being traced around it
        return [out.reads for out in _follow(closed.jaxpr, closed.consts, known, _derived)]


def _side_by_side(there: Sequence[np.ndarray]) -> list[Known]:
    """Values of which each element that is there reads itself."""
    starts = np.cumsum([0, *(exists.size for exists in there)])
    known = []
    for exists, start in zip(there, starts[:-1], strict=True):
        kept = np.flatnonzero(exists)
        reads = _matrix(kept, kept + start, (exists.size, int(starts[-1])))
        known.append(Known(exists, reads))
    return known


def _follow(
    jaxpr: Any,
    constants: Sequence[Any],
    arguments: Sequence[Known],
    derived: Callable[..., list[Known]],
) -> list[Known]:
    """Equation by equation; `derived` is for calls that say what their derivative is."""
    width = arguments[0].reads.shape[1]
    values: dict[Any, Known] = {}

    def read(atom: Any) -> Known:
        return _constant(atom.val, width) if isinstance(atom, jex.Literal) else values[atom]

    constvars = zip(jaxpr.constvars, constants, strict=True)
    values |= {var: _constant(value, width) for var, value in constvars}
    values |= dict(zip(jaxpr.invars, arguments, strict=True))
    for equation in jaxpr.eqns:
        inner = inner_jaxpr(equation)
        operands = [read(atom) for atom in equation.invars]
        if not operands:  # a constant made on the way
            results = [_unread(out, width) for out in equation.outvars]
        elif inner is not None and len(inner.jaxpr.invars) == len(operands):
            results = _follow(inner.jaxpr, inner.consts, operands, derived)
            if has_own_derivative(equation) and any(x.reads.nnz for x in operands):
                results = derived(jaxpr, equation, operands, results)
        else:
            rule = _RULES.get(equation.primitive.name, _everything)
            results = rule(equation, operands)
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def has_own_derivative(equation: Any) -> bool:
    """Whether it calls a function that says itself what its derivative is."""
    return equation.primitive.name.startswith(("custom_jvp_call", "custom_vjp_call"))


def _derived(
    jaxpr: Any, equation: Any, operands: Sequence[Known], results: Sequence[Known]
) -> list[Known]:
    """What reads what, by the call's own derivative: a spike's value is flat, its slope is not.

    It is read off the backward pass, which jax's Jacobians take: what an input hears of an output
    is what the output depends on.
    """
    atoms = zip(equation.invars, operands, strict=True)
    known = {a: x for a, x in atoms if not isinstance(a, jex.Literal)}
    inputs = sorted(known, key=_is_smooth, reverse=True)
    count = sum(map(_is_smooth, inputs))
    outputs = [out for out in equation.outvars if _is_smooth(out)]
    if not count or not outputs:
        return list(results)
    run = piece(jaxpr, inputs, [equation], outputs)

    def backward(values: list[Any], cotangents: list[Any]) -> tuple:
        return jax.vjp(lambda *x: run(*x, *values[count:]), *values[:count])[1](cotangents)

    ends = (
        [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in x] for x in (inputs, outputs)
    )
    closed = jax.make_jaxpr(backward)(*ends)
    cotangents = _side_by_side([np.ones(out.aval.shape, bool) for out in outputs])
    width = cotangents[0].reads.shape[1]
    values = [_constant(known[a].there, width) for a in inputs]
    # a rule that calls its own function again would never end
    heard = _follow(closed.jaxpr, closed.consts, [*values, *cotangents], _too_much)
    through: Any = sparse.vstack([x.reads for x in heard]).T
    reads = (through @ sparse.vstack([known[a].reads for a in inputs[:count]])).astype(bool).tocsr()
    found, start = list(results), 0
    for k, out in enumerate(equation.outvars):
        if _is_smooth(out):
            end = start + results[k].there.size
            found[k], start = Known(results[k].there, reads[start:end]), end
    return found


def _too_much(
    jaxpr: Any, equation: Any, operands: Sequence[Known], results: Sequence[Known]
) -> list[Known]:
    del jaxpr, results
    return _everything(equation, operands)


def _is_smooth(atom: Any) -> bool:
    return jnp.issubdtype(atom.aval.dtype, jnp.inexact)


def piece(
    jaxpr: Any, inputs: Sequence[Any], equations: Sequence[Any], outputs: Sequence[Any]
) -> Callable[..., list[Any]]:
    """Some equations of a jaxpr, from variables to variables, as a function."""
    part = jaxpr.replace(constvars=[], invars=inputs, outvars=outputs, eqns=equations)
    return jex.jaxpr_as_fun(jex.ClosedJaxpr(part, ()))


def inner_jaxpr(equation: Any) -> Any:
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


def _constant(value: Any, width: int) -> Known:
    there = np.asarray(value) != 0
    return Known(there, sparse.csr_matrix((there.size, width), dtype=bool))


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
