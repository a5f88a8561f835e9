"""What is wrong with a row, in words: for every reader of rows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class RowError(ValueError):
    """One row is wrong; the message says which field and the fix."""


def listed(names: Sequence[str], limit: int = 12) -> str:
    """Names for a message, cut off after ``limit``."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def suggestion(word: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"``, or nothing when no known word is near."""
    by_case = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(word.casefold(), by_case, n=1, cutoff=0.6)
    return f"; did you mean {by_case[near[0]]!r}?" if near else ""


def kind_of(value: object) -> str:
    """What a JSON value is, for a message; its content stays out."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string" if value.strip() else "empty"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "an object"
