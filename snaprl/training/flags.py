"""A config's values as flags of the command line."""

import contextlib
import dataclasses
import tomllib
from collections.abc import Sequence
from typing import TypeVar, get_args

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

    Each key is a flag: `--training.unroll 1`. Arguments of the environment or task that the
    config names are flags of their type; others are taken in and read as TOML reads a value.

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
        prefix = _kwargs_of(config)[0]
        flags = [*typed.keys(type(config)), *(prefix + key for key in _kwargs_of(config)[1])]
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


def _kwargs_of(config: Config | SupervisedConfig) -> tuple[str, dict[str, Scalar]]:
    """What flags of the environment's or the task's arguments begin with, and those arguments."""
    if isinstance(config, SupervisedConfig):
        return "--task.kwargs.", config.task.kwargs
    return "--env.kwargs.", config.env.kwargs


def _with_kwargs(config: AConfig, kwargs: dict[str, Scalar]) -> AConfig:
    if isinstance(config, SupervisedConfig):
        task = dataclasses.replace(config.task, kwargs=kwargs)
        return dataclasses.replace(config, task=task)
    return dataclasses.replace(config, env=dataclasses.replace(config.env, kwargs=kwargs))


def _take_new_kwargs(config: AConfig, arguments: list[str]) -> tuple[AConfig, list[str]]:
    """Moves arguments of environment or task that the config lacks from the flags to the config."""
    prefix, kwargs = _kwargs_of(config)
    kwargs = dict(kwargs)
    known = {_flag(key) for key in kwargs}
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, text = argument.partition("=")
        key = name.removeprefix(prefix)
        if key in (name, "") or _flag(key) in known:
            rest.append(argument)
            continue
        if not equals:
            text = next(waiting, "--")
        if not equals and text.startswith("--"):
            raise UserError(f"{name} has no value: give it one by {name} VALUE")
        kwargs[key.replace("-", "_")] = _scalar(text)
    return _with_kwargs(config, kwargs), rest


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
