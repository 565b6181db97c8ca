"""What a cell gives out, as a function of its new state: cut out of the cell's jaxpr."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core as jex

from snaprl.cores.structure import has_own_derivative, inner_jaxpr, piece
from snaprl.cores.types import Array

Readout = Callable[[Sequence[Array]], Array]


def readout(step: Callable[..., tuple[Array, list[Array]]], *arguments: Any) -> Readout | None:
    """Returns how the output of a step follows from its new state.

    Args:
      step: one step of a cell, to `(output, the arrays of the new state)`.
      *arguments: of `step`, or their shapes and types.

    Returns:
      `arrays of the new state -> output`; None where the output depends on anything else.
    """
    closed = jax.make_jaxpr(step)(*arguments)
    # calls written out: what is one value inside a call is two results of it outside
    whole = jax.make_jaxpr(lambda *x: _written_out(closed.jaxpr, closed.consts, x, {}))(
        *closed.in_avals
    )
    y, *state = whole.jaxpr.outvars
    places = {leaf: k for k, leaf in enumerate(state) if not isinstance(leaf, jex.Literal)}
    needed, wanted = [], _variables([y]) - places.keys()
    for equation in reversed(whole.jaxpr.eqns):
        if not wanted.isdisjoint(equation.outvars):
            needed.insert(0, equation)
            wanted |= _variables(equation.invars)
            wanted -= {*equation.outvars, *places}
    if wanted - {*whole.jaxpr.constvars}:
        return None
    run = piece(whole.jaxpr, [*whole.jaxpr.constvars, *places], needed, [y])
    return lambda leaves: run(*whole.consts, *(leaves[k] for k in places.values()))[0]


def _written_out(
    jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Any], done: dict[Any, tuple]
) -> list[Any]:
    """Runs a jaxpr, and the calls in it equation by equation, what was `done` before but once."""
    values = dict(zip(jaxpr.constvars, constants, strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex.Literal) else values[atom]

    for equation in jaxpr.eqns:
        inner = None if has_own_derivative(equation) else inner_jaxpr(equation)
        operands = [read(atom) for atom in equation.invars]
        read_by = tuple(
            str(atom) if isinstance(atom, jex.Literal) else id(x)
            for atom, x in zip(equation.invars, operands, strict=True)
        )
        key = equation.primitive, str(equation.params), read_by
        if inner is not None and len(inner.jaxpr.invars) == len(operands):
            results = _written_out(inner.jaxpr, inner.consts, operands, done)
        elif inner is None and key in done:
            results, _ = done[key]
        else:
            inputs = list(_variables(equation.invars))
            run = piece(jaxpr, inputs, [equation], equation.outvars)
            results = run(*(values[variable] for variable in inputs))
            done[key] = results, operands  # kept, so that no other value gets an operand's id
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _variables(atoms: Sequence[Any]) -> set[Any]:
    return {atom for atom in atoms if not isinstance(atom, jex.Literal)}
