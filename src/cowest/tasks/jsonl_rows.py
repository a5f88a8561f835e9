"""Reading JSONL rows: bytes -> checked ``Example`` records with their place, problems collected on the way.

Checked by hand and not by a schema library, because the messages are for people: each says where and how to mend it.
"""

from __future__ import annotations

import difflib
import json
import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from cowest.errors import DataError
from cowest.types import Example

MAX_PROBLEMS: Final = 10
FIELDS: Final = ("input", "references", "answer", "id", "rationale", "choices", "context", "metadata")


@dataclass(frozen=True)
class Place:
    """A line of a file, counted from 1; ``line`` None means the file as a whole."""

    path: Path
    line: int | None = None

    def __str__(self) -> str:
        """``path:line``, as editors and compilers write it."""
        return str(self.path) if self.line is None else f"{self.path}:{self.line}"


@dataclass(frozen=True)
class Row:
    """An example and where it stands."""

    example: Example
    place: Place


@dataclass
class Problems:
    """What is wrong with the files, up to ``MAX_PROBLEMS``, in the order found."""

    lines: list[str] = field(default_factory=list)

    @property
    def full(self) -> bool:
        """Whether no more will be shown, so that reading can stop."""
        return len(self.lines) > MAX_PROBLEMS

    def add(self, place: Place | str, text: str) -> None:
        """Note a problem; those after the first ``MAX_PROBLEMS`` only count as "more"."""
        if not self.full:
            self.lines.append(f"{place}: {text}")

    def raise_if_any(self) -> None:
        """Raise a DataError with one problem per line."""
        if self.lines:
            more = ["... and more; mend these first"] if self.full else []
            raise DataError("\n".join(self.lines[:MAX_PROBLEMS] + more))


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


def overlap_key(example: Example) -> tuple[str, str]:
    """Two examples with the same key are the same query: input and context, case and spacing folded."""
    return _fold(example.input), _fold(example.context or "")


def _fold(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def read_rows(path: Path, split: str, problems: Problems, answered: bool = True) -> list[Row]:
    """The rows of a file; what is wrong with it goes to ``problems``. Blank lines are skipped.

    ``answered``: a row without an answer is wrong.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        problems.add(Place(path), f"no such file; check the path of the {split} data")
        return []
    except OSError as error:
        problems.add(Place(path), f"cannot be read ({error.strerror}); give a readable JSONL file as {split} data")
        return []
    rows: list[Row] = []
    before = len(problems.lines)
    for place, line in _lines(path, data, problems):
        try:
            rows.append(Row(_example(_parse(line), f"{split}-{place.line}", answered), place))
        except RowError as error:
            problems.add(place, str(error))
        if problems.full:
            break
    if not rows and len(problems.lines) == before:
        problems.add(Place(path), 'is empty; give one JSON object per line, such as {"input": "...", "answer": "..."}')
    return rows


def _lines(path: Path, data: bytes, problems: Problems) -> Iterator[tuple[Place, str]]:
    """The lines that are not blank, decoded; stops at the first that is not UTF-8."""
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not raw.strip():
            continue
        place = Place(path, number)
        try:
            yield place, raw.decode("utf-8")
        except UnicodeDecodeError as error:
            fix = "save the file as UTF-8"
            problems.add(place, f"not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1}); {fix}")
            return


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)  # once: json.loads would make one for every line


def _parse(line: str) -> dict[str, object]:
    try:
        row: object = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        hint = "write one object per line, not one array" if line.lstrip().startswith("[") else "mend the JSON"
        raise RowError(f"broken JSON ({error.msg} at column {error.colno}); {hint}") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]
        raise RowError(f"broken JSON ({reason}); mend the JSON") from None
    if not isinstance(row, dict):
        raise RowError(f"not a JSON object but {kind_of(row)}; write one object per line")
    if "\\u" in line:
        # half of a surrogate pair passes JSON and fails much later, when the text is written
        try:
            json.dumps(row, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise RowError("holds half a surrogate pair (\\ud800-\\udfff); write the whole character") from None
    return row


def _example(row: dict[str, object], default_id: str, answered: bool) -> Example:
    for key in row:
        if key not in FIELDS:
            hint = suggestion(key, FIELDS) or f"; known are {', '.join(FIELDS)} (anything else goes into metadata)"
            raise RowError(f'unknown field "{key[:60]}"{hint}')
    return Example(
        id=_id(row.get("id"), default_id),
        input=text_field(row, "input"),
        context=_optional_text(row, "context"),
        references=_references(row, answered),
        choices=texts_field(row, "choices") if row.get("choices") is not None else (),
        rationale=_optional_text(row, "rationale"),
        metadata=_metadata(row.get("metadata")),
    )


def _references(row: dict[str, object], answered: bool) -> tuple[str, ...]:
    has_answer, has_references = row.get("answer") is not None, row.get("references") is not None
    if has_answer and has_references:
        raise RowError('both "answer" and "references" are given; keep one')
    if has_references:
        return texts_field(row, "references")
    if not has_answer and not answered:
        return ()
    if not has_answer:
        raise RowError(
            '"references" is missing; add "references": ["..."] or "answer": "...", or have answers compared: feedback.compare'
        )
    return (_number(row["answer"]) or text_field(row, "answer", "a string or a number"),)


def _number(value: object) -> str | None:
    """A JSON number as people write it: 42.0 is "42"; None for anything else (a bool is no number)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        raise RowError('"answer" is too large for a number; write it as a string')
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


def _id(value: object, default: str) -> str:
    if value is None:
        return default
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f'"id" is {kind_of(value)}; give a non-empty string, or leave it out')
    return value


def text_field(row: Mapping[str, object], name: str, wanted: str = "a non-empty string") -> str:
    """A required non-empty string. Raises RowError."""
    if name not in row:
        raise RowError(f'"{name}" is missing; add {wanted}')
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise RowError(f'"{name}" is {kind_of(value)}; give {wanted}')
    return value


def _optional_text(row: dict[str, object], name: str) -> str | None:
    return text_field(row, name, "a non-empty string, or leave it out") if row.get(name) is not None else None


def texts_field(row: Mapping[str, object], name: str) -> tuple[str, ...]:
    """A required list of non-empty strings. Raises RowError."""
    if name not in row:
        raise RowError(f'"{name}" is missing; add a list of non-empty strings')
    value = row[name]
    if not isinstance(value, list) or not value:
        raise RowError(f'"{name}" is {kind_of(value)}; give a list of non-empty strings')
    for item in value:
        if not isinstance(item, str) or not item.strip():
            raise RowError(f'"{name}" holds {kind_of(item)}; give a list of non-empty strings')
    return tuple(value)


def _metadata(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RowError(f'"metadata" is {kind_of(value)}; give an object of strings')
    for key, item in value.items():
        if not isinstance(item, str):
            raise RowError(f'"metadata" has {kind_of(item)} at "{str(key)[:60]}"; write values as strings')
    return dict(value)


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
