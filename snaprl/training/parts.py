"""Names in config files and what they stand for: the one place where a string picks code."""

import importlib
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from snaprl.training.errors import UserError, suggest

if TYPE_CHECKING:  # names are checked before anything heavy is imported
    from collections.abc import Callable

    import gymnasium
    from flax import linen as nn

    from snaprl.cores import GradientMethod

CELLS = {  # name -> module, cell
    "simple": ("flax.linen", "SimpleCell"),
    "gru": ("flax.linen", "GRUCell"),
    "mgu": ("flax.linen", "MGUCell"),
    "lstm": ("flax.linen", "LSTMCell"),
    "optimized_lstm": ("flax.linen", "OptimizedLSTMCell"),
    "layer_norm_gru": ("snaprl.cores", "LayerNormGRUCell"),
    "layer_norm_lstm": ("snaprl.cores", "LayerNormLSTMCell"),
    "indrnn": ("snaprl.cores", "IndRNNCell"),
    "elstm": ("snaprl.cores", "ELSTMCell"),
    "lru": ("snaprl.cores", "LRUCell"),
    "rtu": ("snaprl.cores", "RTUCell"),
}
_PLAIN = {  # name -> method of snaprl.cores without arguments
    "rtrl": "RTRL",
    "bptt": "BPTT",
    "rflo": "RFLO",
    "eprop": "EProp",
    "uoro": "UORO",
    "kf_rtrl": "KFRTRL",
    "frozen": "Frozen",
}
_NUMBERED = {"snap": r"0|[1-9]\d*", "ok_rtrl": r"[1-9]\d*"}  # its order, its rank
_TAIL = r"snap[1-9]\d*|rtrl|rflo|eprop"
OPTIMIZERS = (  # of optax, by its names: those that take a schedule and need no more than gradients
    *("adabelief", "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamaxw", "adamw"),
    *("adan", "amsgrad", "fromage", "lamb", "lars", "lion", "nadam", "nadamw", "novograd"),
    *("optimistic_adam_v2", "optimistic_gradient_descent", "radam", "rmsprop", "sgd", "sign_sgd"),
    *("signum", "yogi"),
)
METHODS = ("snap1", "ok_rtrl4", *_PLAIN, "bptt+snap1", "bptt+rtrl")  # any order: snap2, ...


class MethodName(NamedTuple):
    """A gradient method's name, taken apart."""

    kind: str
    order: int = 0  # of snap; of ok_rtrl the rank
    tail: "MethodName | None" = None  # of bptt


def check_cell(name: str) -> None:
    """Refuses a cell that is not known.

    Raises:
        UserError: The sentence names the nearest known cell, or all of them.
    """
    if name not in CELLS:
        raise UserError(f"there is no cell '{name}': {suggest(name, CELLS)}")


def cell_class(name: str) -> "type[nn.RNNCellBase]":
    """The cell of that name.

    Raises:
        UserError: There is no such cell.
    """
    check_cell(name)
    module, cell = CELLS[name]
    return getattr(importlib.import_module(module), cell)


def wrapper(name: str) -> "Callable[[gymnasium.Env], gymnasium.Env]":
    """The wrapper of environments that `module:name` names.

    Raises:
        UserError: There is none.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        raise UserError(f"env.wrappers: '{name}' must be written 'module:name'")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"env.wrappers: '{name}' is not there: {error}") from error


def parse_method(text: str) -> MethodName:
    """Takes a gradient method's name apart without importing what it stands for.

    Args:
        text: a name of `METHODS`, `snapN` of any order or `ok_rtrlN` of any rank; `bptt+TAIL`
            where the tail carries the gradient beyond the segment is `snapN`, `rtrl`, `rflo`
            or `eprop`.

    Raises:
        UserError: There is no such method; the sentence names the nearest, or all of them.
    """
    kind, plus, tail = text.partition("+")
    if plus and kind == "bptt" and re.fullmatch(_TAIL, tail, re.ASCII):
        return MethodName("bptt", tail=parse_method(tail))
    if not plus and kind in _PLAIN:
        return MethodName(kind)
    for name, number in _NUMBERED.items():
        found = re.fullmatch(f"{name}({number})", text, re.ASCII)
        if found:
            return MethodName(name, order=int(found[1]))
    raise UserError(f"there is no gradient method '{text}': {suggest(text, METHODS)}")


def check_method(text: str) -> None:
    """Refuses a gradient method that is not known; raises UserError as `parse_method` does."""
    parse_method(text)


def check_optimizer(name: str) -> None:
    """Refuses an optimiser that is not known.

    Raises:
        UserError: The sentence names the nearest known one, or all of them.
    """
    if name not in OPTIMIZERS:
        raise UserError(f"there is no optimiser '{name}': {suggest(name, OPTIMIZERS)}")


def make_method(text: str) -> "GradientMethod":
    """Makes the gradient method of that name, as `parse_method` reads it.

    Raises:
        UserError: There is no such method.
    """
    name = parse_method(text)
    from snaprl import cores

    def make(name: MethodName) -> Any:
        match name.kind:
            case "snap":
                return cores.SnAp(order=name.order)
            case "ok_rtrl":
                return cores.OKRTRL(rank=name.order)
            case "bptt":
                return cores.BPTT(tail=make(name.tail) if name.tail else None)
            case kind:
                return getattr(cores, _PLAIN[kind])()

    return make(name)
