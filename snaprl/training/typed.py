"""Reads what TOML gives as frozen dataclasses, and says in one sentence what is wrong."""

import dataclasses
import math
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from snaprl.training.errors import UserError, nearest, suggest

Schema = TypeVar("Schema")

WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list",
    tuple: "a list",
    dict: "a table",
}


@dataclass(frozen=True)
class Within:
    """Rule of a field: a finite number in a range, its bounds included."""

    low: float
    high: float = math.inf
    low_included: bool = True

    def complaint(self, value: float) -> str | None:
        """What is wrong with `value`, to be put after its key; None where nothing is."""
        low_is_kept = value >= self.low if self.low_included else value > self.low
        if low_is_kept and value <= self.high and math.isfinite(value):
            return None
        if self.high < math.inf and self.low_included:
            return f" must be between {self.low} and {self.high}, not {value}"
        if self.high < math.inf:
            return f" must be greater than {self.low} and at most {self.high}, not {value}"
        low = f"{'at least' if self.low_included else 'greater than'} {self.low}"
        finite = "" if math.isfinite(value) else "finite and "
        return f" must be {finite}{low}, not {value}"


@dataclass(frozen=True)
class Named:
    """Rule of a field: a name that `check` knows."""

    check: Callable[[str], object]  # raises UserError for a name that it does not know

    def complaint(self, value: str) -> str | None:
        """What is wrong with `value`, to be put after its key; None where nothing is."""
        try:
            self.check(value)
        except UserError as error:
            return f": {error}"
        return None


def read(schema: type[Schema], table: Mapping[str, object], *, where: str = "") -> Schema:
    """Makes a dataclass from nested tables; keys that are missing take their defaults.

    Args:
        schema: A dataclass whose fields are dataclasses, scalars, `Literal`, `tuple[X, ...]`,
            `dict[str, X]`, or one of these in an `Annotated` with rules.
        table: Its values as `tomllib` gives them, or `dataclasses.asdict`.
        where: Put after the name of a key in messages, such as ` in configs/x.toml`.

    Raises:
        UserError: A key is unknown, or a value has the wrong type or breaks a rule.
    """
    return _Reader(schema, where).table(schema, table, "")


def keys(schema: type) -> Iterator[str]:
    """The dotted names of all values in `schema`, those of nested dataclasses included."""
    for name, annotation in typing.get_type_hints(schema).items():
        if dataclasses.is_dataclass(annotation):
            yield from (f"{name}.{key}" for key in keys(typing.cast(type, annotation)))
        else:
            yield name


class _Reader:
    """Knows the root schema and the source, so that messages can name both."""

    def __init__(self, root: type, where: str) -> None:
        self._root = root
        self._where = where

    def table(self, schema: type, table: Mapping[str, object], key: str) -> Any:
        hints = typing.get_type_hints(schema, include_extras=True)
        dotted = {name: f"{key}.{name}" if key else name for name in table}
        for name in table:
            if name not in hints:
                self._refuse(dotted[name], hints)
        return schema(**{n: self.value(hints[n], table[n], dotted[n]) for n in table})

    def value(self, annotation: Any, value: Any, key: str) -> Any:
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is Annotated:
            value = self.value(arguments[0], value, key)
            self._obey(arguments[1:], value, key)
            return value
        if dataclasses.is_dataclass(annotation):
            table = self._expect((dict,), value, key)
            return self.table(typing.cast(type, annotation), table, key)
        if origin is Literal:
            if value not in arguments:
                self._fail(key, f" cannot be {_shown(value)}: {suggest(str(value), arguments)}")
            return value
        if origin is tuple:
            items = self._expect((list, tuple), value, key)
            return tuple(self.value(arguments[0], item, key) for item in items)
        if origin is dict:
            items = self._expect((dict,), value, key)
            return {k: self.value(arguments[1], v, f"{key}.{k}") for k, v in items.items()}
        if annotation is float and type(value) is int:
            return float(value)
        if annotation is int and type(value) is float and value.is_integer():
            return int(value)  # 1e6, as flags take it
        kinds = arguments or (annotation,)  # of a union or a plain type
        return self._expect(kinds, value, key)

    def _expect(self, kinds: tuple[type, ...], value: Any, key: str) -> Any:
        if type(value) not in kinds:  # exact, for a boolean is an int to isinstance
            *words, last = dict.fromkeys(WORDS[kind] for kind in kinds)
            words = f"{', '.join(words)} or {last}" if words else last
            self._fail(key, f" must be {words}, not {_shown(value)}")
        return value

    def _obey(self, rules: tuple[object, ...], value: Any, key: str) -> None:
        for rule in rules:  # among them are annotations for others, which are let pass
            if isinstance(rule, Within | Named) and (complaint := rule.complaint(value)):
                self._fail(key, complaint)

    def _refuse(self, key: str, siblings: Iterable[str]) -> typing.NoReturn:
        known = set(keys(self._root))
        known |= {each.partition(".")[0] for each in known}
        near = nearest(key, known)
        way_out = f"did you mean '{near}'?" if near else f"known here: {', '.join(siblings)}"
        raise UserError(f"unknown key '{key}'{self._where}: {way_out}")

    def _fail(self, key: str, complaint: str) -> typing.NoReturn:
        raise UserError(f"'{key}'{self._where}{complaint}")


def _shown(value: object) -> str:
    """A value as the user wrote it, or nearly."""
    if isinstance(value, str):
        return f"'{value}'"
    if type(value) not in WORDS:  # which TOML has no word for, such as a number of numpy's
        return f"{value} of type {type(value).__name__}"
    return str(value).lower() if isinstance(value, bool) else str(value)
