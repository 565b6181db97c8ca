"""Names in config files and what they stand for: the one place where a string picks code."""

import functools
import importlib
import inspect
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from snaprl.training.errors import UserError, suggest

if TYPE_CHECKING:  # names are checked before anything heavy is imported
    from collections.abc import Callable, Mapping

    import gymnasium
    from flax import linen as nn

    from snaprl.cores import GradientMethod
    from snaprl.cores.sparsity import Pattern
    from snaprl.training.schema import AgentConfig
    from snaprl.training.supervised.schema import ModelConfig

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
    "sparse_simple": ("snaprl.cores", "SparseSimpleCell"),
    "sparse_gru": ("snaprl.cores", "SparseGRUCell"),
    "sparse_lstm": ("snaprl.cores", "SparseLSTMCell"),
}
COMPRESSED = ("sparse_simple", "sparse_gru", "sparse_lstm")  # made of `fan_in` weights per unit
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
PATTERNS = (  # of snaprl.cores.sparsity, and none
    *("dense", "fixed_fan_in", "uniform", "block", "n_of_m", "watts_strogatz", "barabasi_albert"),
)
METHODS = ("snap1", "ok_rtrl4", *_PLAIN, "bptt+snap1", "bptt+rtrl")  # any order: snap2, ...


class MethodName(NamedTuple):
    """A gradient method's name, taken apart."""

    kind: str
    order: int = 0  # of snap; of ok_rtrl the rank
    tail: "MethodName | None" = None  # of bptt


def check_cell(name: str) -> None:
    """Refuses a cell that is not known; `module:Class` may be any, and is not imported.

    Raises:
        UserError: The sentence names the nearest known cell, or all of them.
    """
    if name not in CELLS and ":" not in name:
        raise UserError(f"there is no cell '{name}': {suggest(name, CELLS)}")


def cell_class(name: str) -> "type[nn.RNNCellBase]":
    """The cell of that name, or that `module:Class` names.

    Raises:
        UserError: There is no such cell, or it is none that can be made as flax's are.
    """
    check_cell(name)
    if name in CELLS:
        module, cell = CELLS[name]
        return getattr(importlib.import_module(module), cell)
    from flax import linen as nn

    own = make = imported(name, "cell")
    if not (isinstance(own, type) and issubclass(own, nn.RNNCellBase)):
        raise UserError(f"cell '{name}' is no subclass of flax.linen.RNNCellBase")
    try:
        make(1, param_dtype="float32")
    except TypeError as error:
        made = f"{own.__name__}(features, param_dtype=...)"
        raise UserError(f"cell '{name}' must be made as flax's are, {made}: {error}") from error
    return own


def cell_maker(core: "AgentConfig | ModelConfig") -> "Callable[..., nn.RNNCellBase]":
    """What makes a config's cell of `features` and, where it is told, `param_dtype`.

    Raises:
        UserError: There is no such cell, or it needs a `fan_in` that the config does not have.
    """
    make: Any = cell_class(core.cell)
    if core.cell not in COMPRESSED:
        return make
    if not 0 < core.fan_in <= core.features:
        raise UserError(
            f"fan_in {core.fan_in}: a unit of the cell '{core.cell}' reads some of its "
            f"{core.features} units, so give 1 to {core.features}"
        )
    return functools.partial(make, fan_in=core.fan_in)


def wrapper(name: str) -> "Callable[[gymnasium.Env], gymnasium.Env]":
    """The wrapper of environments that `module:name` names.

    Raises:
        UserError: There is none.
    """
    return imported(name, "env.wrappers")


def imported(name: str, key: str) -> Any:
    """What `module:name` names.

    Raises:
        UserError: There is none; the sentence begins with `key`.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise UserError(f"{key}: '{name}' must be written 'module:name'")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        more = way_to(module, error)
        raise UserError(f"{key}: '{name}' is not there: {error}{more}") from error


def way_to(module: str, error: Exception) -> str:
    """Ends a sentence about an import that failed: what helps where `module` is not found."""
    lacking = error.name if isinstance(error, ModuleNotFoundError) else None
    if not lacking or not f"{module}.".startswith(f"{lacking}."):
        return ""  # it is there, and something in it fails
    return ": install it, go to the folder that holds it, or name that folder in PYTHONPATH"


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


def check_pattern(name: str) -> None:
    """Refuses a pattern of recurrent weights that is not known.

    Raises:
        UserError: The sentence names the nearest known one, or all of them.
    """
    if name not in PATTERNS:
        raise UserError(f"there is no pattern '{name}': {suggest(name, PATTERNS)}")


def make_pattern(name: str, kwargs: "Mapping[str, Any]") -> "Pattern | None":
    """The pattern of recurrent weights of that name; each unit reads itself unless told not to.

    Args:
        name: one of `PATTERNS`.
        kwargs: its arguments, as in `snaprl.cores.sparsity`; `diagonal` is true by default.

    Returns:
        The pattern; None for "dense".

    Raises:
        UserError: There is no such pattern, or it does not take one of the arguments, or not such
            a value.
    """
    try:
        check_pattern(name)
    except UserError as error:
        raise UserError(f"sparsity.name: {error}") from error
    if name == "dense":
        if kwargs:
            raise UserError(
                f"sparsity.kwargs: 'dense' takes no {', '.join(kwargs)}: sparsity.name is the "
                "pattern that does"
            )
        return None
    from snaprl.cores import sparsity

    make = getattr(sparsity, name)
    known = inspect.signature(make).parameters
    given = {"diagonal": True, **kwargs}
    for key in given:
        if key not in known:
            raise UserError(f"sparsity.kwargs: {name} takes no '{key}', but {', '.join(known)}")
        kinds = (bool,) if key == "diagonal" else (int, float)
        if type(given[key]) not in kinds:
            wanted = "true or false" if key == "diagonal" else "a number"
            raise UserError(f"sparsity.kwargs.{key} must be {wanted}, not {given[key]!r}")
    for key, one in known.items():
        if key not in given and one.default is one.empty:
            raise UserError(f"sparsity.kwargs: {name} needs '{key}'")
    try:
        return make(**given)
    except (TypeError, ValueError) as error:
        raise UserError(f"sparsity.kwargs: {name}: {error}") from error


def sparsity_of(core: "AgentConfig | ModelConfig") -> "tuple[Pattern | None, str]":
    """The pattern of a core's recurrent weights, and what the config calls it.

    Raises:
        UserError: The config has two, or one that is not known.
    """
    named = core.sparsity
    if not core.fan_in:
        return make_pattern(named.name, named.kwargs), f"sparsity '{named.name}' {named.kwargs}"
    if named.name != "dense" or named.kwargs:
        raise UserError(f"fan_in {core.fan_in} and sparsity '{named.name}': give one of them")
    if core.cell in COMPRESSED:  # nothing is left to be masked
        return None, f"fan_in {core.fan_in}"
    return make_pattern("fixed_fan_in", {"fan_in": core.fan_in}), f"fan_in {core.fan_in}"


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
