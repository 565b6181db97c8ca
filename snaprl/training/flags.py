"""A config's values as flags of the command line."""

import contextlib
import dataclasses
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, get_args

import tyro

from snaprl.training import typed
from snaprl.training.errors import UserError, nearest
from snaprl.training.schema import Config, Scalar
from snaprl.training.supervised.schema import SupervisedConfig

AConfig = TypeVar("AConfig", bound=Config | SupervisedConfig)
ALIASES = ("--steps", "--method")  # as the schema gives them


def override(
    config: AConfig, arguments: Sequence[str], *, prog: str, known_flags: Sequence[str] = ()
) -> AConfig:
    """Replaces values of `config` by what the command line says.

    Each key is a flag: `--training.unroll 1`. Arguments that the config's tables `kwargs` name
    are flags of their type; others are taken in and read as TOML reads a value.

    Args:
        config: The values that stay where no flag names them.
        arguments: The command line.
        prog: The command that is named in the help.
        known_flags: Flags of the caller, to be named when one is misspelt.

    Raises:
        UserError: A flag is not known, or a value stands where a flag should.
    """
    config, rest = _take_new_kwargs(config, list(arguments))
    config, unknown = tyro.cli(
        type(config),
        prog=prog,
        args=rest,
        default=config,
        return_unknown_args=True,
        config=(tyro.conf.FlagConversionOff,),  # `--key value` throughout, as in the file
        registry=_registry(),
    )
    if unknown:
        arguments_of = [f"{key}.{name}" for key, held in _arguments(config) for name in held]
        flags = [*typed.keys(type(config)), *arguments_of]
        _refuse(unknown[0], [*map(_flag, flags), *ALIASES, *known_flags])
    return config


def _refuse(argument: str, flags: Sequence[str]) -> None:
    if not argument.startswith("-"):
        raise UserError(f"'{argument}' is no flag: values are set by --KEY VALUE")
    name = argument.partition("=")[0]
    near = nearest(_flag(name), flags)
    raise UserError(
        f"unknown flag {name}: {f'did you mean {near}?' if near else '--help lists all'}"
    )


def _flag(key: str) -> str:
    return "--" + key.lstrip("-").replace("_", "-")


def _arguments(config: Any, prefix: str = "") -> Iterator[tuple[str, dict[str, Scalar]]]:
    """The tables that hold arguments of what is named beside them, by their keys."""
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from _arguments(value, f"{key}.")
        elif field.name == "kwargs":
            yield key, value


def _replaced(config: Any, key: str, value: object) -> Any:
    """`config` with another value at a dotted key."""
    name, _, rest = key.partition(".")
    if rest:
        value = _replaced(getattr(config, name), rest, value)
    return dataclasses.replace(config, **{name: value})


def _take_new_kwargs(config: AConfig, arguments: list[str]) -> tuple[AConfig, list[str]]:
    """Moves arguments that the config's tables `kwargs` lack from the flags to the config."""
    tables = {_flag(key): (key, dict(held)) for key, held in _arguments(config)}
    known = {f"{flag}.{_flag(name)[2:]}" for flag, (_, held) in tables.items() for name in held}
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, text = argument.partition("=")
        table, _, key = name.rpartition(".")
        free = name.startswith("--") and _flag(table) in tables and key
        if not free or _flag(name) in known:
            rest.append(argument)
            continue
        if not equals:
            text = next(waiting, "--")
        if not equals and text.startswith("--"):
            raise UserError(f"{name} has no value: give it one by {name} VALUE")
        tables[_flag(table)][1][key.replace("-", "_")] = _scalar(text)
    for key, held in tables.values():
        config = _replaced(config, key, held)
    return config, rest


def _scalar(text: str) -> Scalar:
    """Reads a value as TOML does; what TOML does not know is a string without its quotes."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, get_args(Scalar)) else text


def _registry() -> tyro.constructors.ConstructorRegistry:
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def read_bool(info: tyro.constructors.PrimitiveTypeInfo):
        """A boolean is written as in TOML."""
        if info.type is not bool:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="{true,false}",
            instance_from_str=lambda words: {"true": True, "false": False}[words[0].lower()],
            is_instance=lambda value: isinstance(value, bool),
            str_from_instance=lambda value: [str(value).lower()],
            choices=("true", "false", "True", "False"),
        )

    @registry.primitive_rule
    def read_int(info: tyro.constructors.PrimitiveTypeInfo):
        """A whole number may be written as 200000, 200_000 or 2e5."""
        if info.type is not int:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT",
            instance_from_str=lambda words: _whole(words[0]),
            is_instance=lambda value: isinstance(value, int) and not isinstance(value, bool),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def _whole(text: str) -> int:
    with contextlib.suppress(ValueError, OverflowError):
        number = float(text) if "e" in text.lower() else int(text)
        if number == int(number):
            return int(number)
    raise ValueError(f"'{text}' is no whole number")
