"""From a TOML file and the command line to a `Config`, and back."""

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from snaprl.training import typed
from snaprl.training.errors import UserError, suggest
from snaprl.training.schema import Config
from snaprl.training.supervised.schema import SupervisedConfig

AnyConfig = Config | SupervisedConfig
AConfig = TypeVar("AConfig", bound=AnyConfig)


def load(
    name_or_path: str | Path,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    prog: str = "snaprl train",
    known_flags: Sequence[str] = (),
) -> AnyConfig:
    """Loads a config: defaults, then the file, then the command line.

    With `--help` among flags it prints every flag with the file's values and ends the
    program; so does a flag whose value cannot be read (exit code 2, the flag named on stderr).

    Args:
        name_or_path: Path to a TOML file, or the name of one in `configs/`.
        overrides: Flags such as `--training.unroll 1`, `--steps 20000`, `--agent.encoder 64 64`
            or `--env.kwargs.length 40`; or values by dotted key, such as `{"training.unroll": 1}`.
        prog: The command that is named in the help.
        known_flags: Flags that the caller took before, to be named when one is misspelt.

    Returns:
        The config, complete and checked: a `SupervisedConfig` where the file has a table `[task]`,
        or else an agent's.

    Raises:
        UserError: The file is not there or not TOML, or a key, flag or value is not known.
    """
    path = find(name_or_path)
    config = from_tables(read_toml(path), where=f" in {path}")
    if isinstance(overrides, Mapping):
        return replace(config, overrides)
    if overrides:
        from snaprl.training import flags

        config = flags.override(config, overrides, prog=prog, known_flags=known_flags)
        check(config)
    return config


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        UserError: It cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def from_tables(tables: Mapping[str, Any], *, where: str = "") -> AnyConfig:
    """The config that tables describe: a supervised one where there is a table `task`.

    Raises:
        UserError: A key or value is not known; `where` follows the key's name in the sentence.
    """
    return typed.read(SupervisedConfig if "task" in tables else Config, tables, where=where)


def absolute(config: AConfig) -> AConfig:
    """A task's path as it leads there from any folder: a run is read from others, too."""
    if isinstance(config, SupervisedConfig):
        path = config.task.kwargs.get("path")
        if path and isinstance(path, str):
            kwargs = config.task.kwargs | {"path": str(Path(path).absolute())}
            task = dataclasses.replace(config.task, kwargs=kwargs)
            return dataclasses.replace(config, task=task)
    return config


def dumps(config: AnyConfig) -> str:
    """The config as TOML, every key written out; loading it gives an equal config."""
    import tomli_w

    return tomli_w.dumps(dataclasses.asdict(config))


def replace(config: AConfig, values: Mapping[str, Any]) -> AConfig:
    """The config with other values.

    Args:
        config: The values that stay.
        values: The others, by dotted key: `{"agent.features": 32, "env.kwargs.length": 5}`.

    Raises:
        UserError: A key or value is not known.
    """
    tables = dataclasses.asdict(check(config))
    for key, value in values.items():
        *path, name = key.split(".")
        table = tables
        for part in path:
            if not isinstance(table.get(part), dict):
                table[part] = {}  # refused below, where the schema has no such table
            table = table[part]
        table[name] = value
    return typed.read(type(config), tables)


def check(config: AConfig) -> AConfig:
    """Refuses a config with a wrong value, for configs that were made in Python or by flags.

    Returns:
        The config, each value of the type that its key has, as a file would give it.

    Raises:
        UserError: The sentence names the key, what it may be, and what it is.
    """
    if not isinstance(config, Config | SupervisedConfig):
        raise UserError(
            f"{config!r} is no Config and no SupervisedConfig: snaprl.training.config.load makes "
            "one of a file"
        )
    return typed.read(type(config), dataclasses.asdict(config))


def find(name_or_path: str | Path) -> Path:
    """The TOML file that is meant by a path, or by the name of a file in `configs/`.

    Raises:
        UserError: There is none; the sentence names those that come with snaprl.
    """
    path = Path(name_or_path)
    known = shipped()
    if isinstance(name_or_path, str) and name_or_path in known:
        return known[name_or_path]
    if path.is_file():
        return path
    kind = "file" if path.suffix or len(path.parts) > 1 else "config"
    raise UserError(f"there is no {kind} '{path}': {suggest(path.stem, known)}")


def shipped(room: str = "") -> dict[str, Path]:
    """The configs that come with snaprl, by name; `room` is a folder inside of theirs."""
    package = Path(__file__).parents[1]
    folders = [package / "configs"]
    if (package.parent / "pyproject.toml").is_file():  # a checkout; a wheel holds them inside
        folders.append(package.parent / "configs")
    return {
        file.stem: file for folder in folders for file in sorted((folder / room).glob("*.toml"))
    }
