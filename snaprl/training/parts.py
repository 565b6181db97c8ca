"""Names in config files and what they stand for: the one place where a string picks code."""

import re
from typing import TYPE_CHECKING, NamedTuple

from snaprl.training.errors import UserError, suggest

if TYPE_CHECKING:  # names are checked before anything heavy is imported
    from flax import linen as nn

    from snaprl.cores import RTRL, GradientMethod, SnAp

CELLS = {  # name -> cell of flax.linen
    "simple": "SimpleCell",
    "gru": "GRUCell",
    "mgu": "MGUCell",
    "lstm": "LSTMCell",
    "optimized_lstm": "OptimizedLSTMCell",
}
METHODS = ("snap1", "rtrl", "bptt", "bptt+snap1", "bptt+rtrl", "frozen")  # any order: snap2, ...


class MethodName(NamedTuple):
    """A gradient method's name, taken apart."""

    kind: str  # snap, rtrl, bptt or frozen
    order: int = 0  # of snap
    tail: "MethodName | None" = None  # of bptt


def check_cell(name: str) -> None:
    """Refuses a cell that is not known.

    Raises:
        UserError: The sentence names the nearest known cell, or all of them.
    """
    if name not in CELLS:
        raise UserError(f"there is no cell '{name}': {suggest(name, CELLS)}")


def cell_class(name: str) -> "type[nn.RNNCellBase]":
    """The flax cell of that name.

    Raises:
        UserError: There is no such cell.
    """
    check_cell(name)
    from flax import linen as nn

    return getattr(nn, CELLS[name])


def parse_method(text: str) -> MethodName:
    """Takes a gradient method's name apart without importing what it stands for.

    Args:
        text: `snapN` (N at least 1), `rtrl`, `bptt`, `frozen`, or `bptt+TAIL` where the tail
            that carries the gradient beyond the segment is `snapN` or `rtrl`.

    Raises:
        UserError: There is no such method; the sentence names the nearest, or all of them.
    """
    kind, plus, tail = text.partition("+")
    if plus and kind == "bptt" and re.fullmatch(r"snap[1-9]\d*|rtrl", tail, re.ASCII):
        return MethodName("bptt", tail=parse_method(tail))
    if not plus and kind in ("rtrl", "bptt", "frozen"):
        return MethodName(kind)
    if not plus and re.fullmatch(r"snap[1-9]\d*", kind, re.ASCII):
        return MethodName("snap", order=int(kind.removeprefix("snap")))
    raise UserError(f"there is no gradient method '{text}': {suggest(text, METHODS)}")


def check_method(text: str) -> None:
    """Refuses a gradient method that is not known; raises UserError as `parse_method` does."""
    parse_method(text)


def make_method(text: str) -> "GradientMethod":
    """Makes the gradient method of that name, as `parse_method` reads it.

    Raises:
        UserError: There is no such method, or not of that order.
    """
    name = parse_method(text)
    from snaprl import cores

    def influence(name: MethodName) -> "SnAp | RTRL":
        return cores.SnAp(order=name.order) if name.kind == "snap" else cores.RTRL()

    try:
        match name.kind:
            case "frozen":
                return cores.Frozen()
            case "bptt":
                return cores.BPTT(tail=influence(name.tail) if name.tail else None)
            case _:
                return influence(name)
    except ValueError as error:  # an order that the core cannot follow
        raise UserError(f"the gradient method '{text}' cannot be made: {error}") from None
