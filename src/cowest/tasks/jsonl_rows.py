"""Reading JSONL rows: bytes -> checked ``Example`` records with their place, problems collected on the way.

Checked by hand and not by a schema library, because the messages are for people: each says where and how to mend it.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from cowest.errors import DataError
from cowest.tasks.answers import extract_answer
from cowest.tasks.messages import Conversed, conversed
from cowest.tasks.other_formats import IMPORT, OTHER_LAYOUTS, other_format
from cowest.tasks.row_errors import RowError as RowError
from cowest.tasks.row_errors import kind_of as kind_of
from cowest.tasks.row_errors import listed as listed
from cowest.tasks.row_errors import suggestion as suggestion
from cowest.types import Example

MAX_PROBLEMS: Final = 10
FIELDS: Final = ("input", "messages", "references", "answer", "id", "rationale", "choices", "context", "metadata")


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


def overlap_key(example: Example) -> tuple[str, ...]:
    """Two examples with the same key are the same query: input, context and earlier turns, case and spacing folded.

    A system prompt makes no other query: what was asked under one must not be trained on where it is tested without.
    """
    turns = (_fold(f"{turn.role} {turn.content}") for turn in example.turns if turn.role != "system")
    return (_fold(example.input), _fold(example.context or ""), *turns)


def _fold(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def read_rows(
    path: Path, split: str, problems: Problems, answered: bool = True, labels: tuple[str, ...] = ()
) -> list[Row]:
    """The rows of a file; what is wrong with it goes to ``problems``. Blank lines are skipped.

    ``answered``: a row without an answer is wrong. ``labels``: the task's classes, one of which a conversation's answer names.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        problems.add(Place(path), f"no such file; check the path of the {split} data")
        return []
    except OSError as error:
        problems.add(Place(path), f"cannot be read ({error.strerror}); give a readable JSONL file as {split} data")
        return []
    if (other := other_format(path, data)) is not None:
        problems.add(Place(path, 1), other)
        return []
    rows: list[Row] = []
    before = len(problems.lines)
    for place, line in _lines(path, data, problems):
        try:
            rows.append(Row(_example(_parse(line), f"{split}-{place.line}", answered, labels), place))
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
            fix = f"save the file as UTF-8, or: cowest import {path} --encoding cp1252 --out DIR"
            problems.add(place, f"not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1}); {fix}")
            return


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)  # once: json.loads would make one for every line


def _parse(line: str) -> dict[str, object]:
    try:
        row: object = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        array = f"write one object per line, not one array; or: {IMPORT}"
        hint = array if line.lstrip().startswith("[") else "mend the JSON"
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


def _example(row: dict[str, object], default_id: str, answered: bool, labels: tuple[str, ...]) -> Example:
    for key in row:
        if key not in FIELDS:
            raise RowError(f'unknown field "{key[:60]}"{_field_hint(key, row)}')
    asked = _asked(row)
    choices = texts_field(row, "choices") if row.get("choices") is not None else ()
    return Example(
        id=_id(row.get("id"), default_id),
        input=asked.question,
        turns=asked.turns,
        context=_optional_text(row, "context"),
        references=_references(row, answered, asked.reply, labels or choices),
        choices=choices,
        rationale=_optional_text(row, "rationale"),
        target=asked.reply,
        metadata=_metadata(row.get("metadata")),
    )


def _field_hint(key: str, row: Mapping[str, object]) -> str:
    """What to do with a field that is none: a misspelt one, one of another layout, or one too many."""
    other = row.get("input") is None and row.get("messages") is None
    if (near := suggestion(key, FIELDS)) and not (other and key.casefold() in OTHER_LAYOUTS):
        return near
    what = "rows with other names are read by" if other else "put others into metadata, or leave them out by"
    return f"; known are {', '.join(FIELDS)}; {what}: {IMPORT}"


def _asked(row: dict[str, object]) -> Conversed:
    """The question, and in a row of ``messages`` what stands around it."""
    if row.get("messages") is None:
        return Conversed((), text_field(row, "input"), None)
    if row.get("input") is not None:
        raise RowError('both "input" and "messages" are given; keep one')
    asked = conversed(row["messages"])
    if asked.reply is not None and row.get("rationale") is not None:
        raise RowError(
            'both "rationale" and an answer at the end of "messages" are given, and either is what is learned; keep one'
        )
    return asked


def _references(row: dict[str, object], answered: bool, reply: str | None, labels: tuple[str, ...]) -> tuple[str, ...]:
    """The right answers that are given, or else the one that a ``reply`` is read to give."""
    has_answer, has_references = row.get("answer") is not None, row.get("references") is not None
    if has_answer and has_references:
        raise RowError('both "answer" and "references" are given; keep one')
    if has_references:
        return texts_field(row, "references")
    if not has_answer and reply is not None and (read := extract_answer(reply, labels)) is not None:
        return (read,)
    if not has_answer and not answered:
        return ()
    if not has_answer and reply is not None:
        raise RowError(
            'no answer is marked in the last text of "messages"; end it with "Answer: ...", add "answer": "...", or have answers '
            "compared: feedback.compare"
        )
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
        several = (
            '; several right answers are "references": [...]' if name == "answer" and isinstance(value, list) else ""
        )
        raise RowError(f'"{name}" is {kind_of(value)}; give {wanted}{several}')
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
