"""What goes wrong in a way that the user can mend, and how it is said."""

import difflib
import traceback
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can mend.

    Its message is one sentence that names the thing and the way out. The command prints it to
    stderr after `snaprl: ` and exits with code 2, without a traceback.
    """


class Stopped(Exception):
    """What was under way was broken off, for it was asked to stop."""


def in_a_line(error: BaseException) -> str:
    """What an exception of somebody else's code says, and where, without a traceback."""
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{': ' * bool(text)}{text}{where}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant; None where none is near.

    Dotted names are compared whole and by their last part, so that `steps` finds
    `training.steps`. A name without a dot may be short for another, or another for it, as `env` is
    for `environment`.
    """
    known = sorted(known, reverse=True)
    by_last_part = {name.rpartition(".")[2]: name for name in known}
    last = word.rpartition(".")[2]
    if last in by_last_part:
        return by_last_part[last]
    if near := difflib.get_close_matches(word, known, n=1):
        return near[0]
    if near := difflib.get_close_matches(last, by_last_part, n=1):
        return by_last_part[near[0]]
    short = [name for name in known if "." not in word + name and _is_short(name, word)]
    return max(short, key=len) if short else None


def _is_short(one: str, other: str) -> bool:
    """Whether one word begins with the other, of which there are three letters at least."""
    short = min(one, other, key=len)
    return len(short.lstrip("-")) >= 3 and one.startswith(short) and other.startswith(short)


def suggest(word: str, known: Iterable[str]) -> str:
    """Ends a sentence about an unknown word with the nearest known one and all the others.

    Returns:
        `did you mean 'x', or one of a, b?` or `known: a, b, x`, to be put after a colon.
    """
    known = sorted(known)
    near = nearest(word, known)
    if near is None:
        return f"known: {', '.join(known) or 'none'}"
    others = ", ".join(name for name in known if name != near)
    return f"did you mean '{near}'{', or one of ' + others if others else ''}?"
