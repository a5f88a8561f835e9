"""Published JSON files -> records with their place, so that every problem can name file and line.

``json.load`` forgets where a value stood, so the outermost array or object is walked here, and what is in it is decoded by
the standard library. Layouts: an array of records, one record per line, an object of records by id, and an object of
columns (a slice of a ``datasets`` table, written down).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cowest.tasks.jsonl_rows import Place, Problems, RowError, kind_of

T = TypeVar("T")

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\r\n]*")
_TRUNCATED = "ends in the middle of a record: the file is truncated; fetch it again"


@dataclass(frozen=True)
class Record:
    """A published record: where it stands, its key where the file maps ids to records, and its value."""

    place: Place | str
    value: object
    key: str = ""

    def fields(self) -> Mapping[str, object]:
        """The record's fields. Raises RowError when it is not an object."""
        if not isinstance(self.value, dict):
            raise RowError(f"not an object but {kind_of(self.value)}; fetch the file again")
        return self.value


class _BrokenError(ValueError):
    """The file is no JSON from ``place`` on."""

    def __init__(self, place: Place, message: str) -> None:
        super().__init__(message)
        self.place = place


def read_records(path: Path, problems: Problems) -> list[Record]:
    """The records of an array, of lines, or of an object of columns. What is wrong with the file goes to ``problems``."""
    text = _read(path, problems)
    if text is None:
        return []
    cursor = _Cursor(path, text)
    records = _collected(cursor.members() if cursor.peek() == "[" else cursor.values(), problems)
    if len(records) == 1 and isinstance(records[0].value, dict) and _is_columns(records[0].value):
        return _from_columns(path, records[0].value, problems)
    return records


def read_keyed(path: Path, problems: Problems) -> list[Record]:
    """The records of an object that maps ids to records; an id that occurs twice is a problem."""
    text = _read(path, problems)
    if text is None:
        return []
    cursor = _Cursor(path, text)
    if cursor.peek() != "{":
        problems.add(Place(path, 1), "not an object of records by id, as published; fetch the file again")
        return []
    records = _collected(cursor.members(), problems)
    seen: dict[str, Place | str] = {}
    for record in records:
        first = seen.setdefault(record.key, record.place)
        if first != record.place:
            problems.add(record.place, f'"{record.key[:60]}" is already at {first}; keep one of them')
    return records


def parse_each(records: Iterable[Record], parse: Callable[[int, Record], T], problems: Problems) -> list[T]:
    """``parse`` over the records and their positions; a RowError becomes a problem at the record's place."""
    parsed: list[T] = []
    for position, record in enumerate(records):
        try:
            parsed.append(parse(position, record))
        except RowError as error:
            problems.add(record.place, str(error))
        if problems.full:
            break
    return parsed


def encodable(text: str) -> str:
    """``text``; raises RowError for half a surrogate pair, which passes JSON and fails when it is written."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RowError("holds half a surrogate pair (\\ud800-\\udfff); fetch the file again") from None
    return text


def _read(path: Path, problems: Problems) -> str | None:
    try:
        data = path.read_bytes()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        why = "no such file" if missing else f"cannot be read ({error.strerror})"
        problems.add(Place(path), f"{why}; put the published file there, or mend task.path")
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.add(Place(path, data.count(b"\n", 0, error.start) + 1), "not UTF-8; fetch the file again")
        return None
    if not text.strip():
        problems.add(Place(path), "is empty; fetch the file again")
        return None
    return text


def _collected(records: Iterator[Record], problems: Problems) -> list[Record]:
    found: list[Record] = []
    try:
        found.extend(records)
    except _BrokenError as error:
        problems.add(error.place, str(error))
    return found


class _Cursor:
    """A walk over the outermost level of a JSON text."""

    def __init__(self, path: Path, text: str) -> None:
        self._path, self._text = path, text
        self._at = self._space(0)
        self._line, self._counted = 1, 0

    def peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def values(self) -> Iterator[Record]:
        """Values one after another, such as one per line."""
        while self._at < len(self._text):
            place = self._place(self._at)
            yield Record(place, self._value())

    def members(self) -> Iterator[Record]:
        """The elements of the array, or the members of the object, that the text is."""
        opening = self.peek()
        closing = "]" if opening == "[" else "}"
        self._skip()
        if self.peek() != closing:
            while True:
                place, key = self._place(self._at), ""
                if opening == "{":
                    key = self._key()
                yield Record(place, self._value(), key)
                if self.peek() == closing:
                    break
                self._expect(",")
        self._skip()
        if self._at < len(self._text):
            raise self._broken(self._at, "text after the end of the data")

    def _key(self) -> str:
        start, key = self._at, self._value()
        if not isinstance(key, str):
            raise self._broken(start, "an id is not a string")
        self._expect(":")
        return key

    def _value(self) -> object:
        try:
            value, end = _DECODER.raw_decode(self._text, self._at)
        except json.JSONDecodeError as error:
            unfinished = error.msg.startswith("Unterminated") or error.pos >= len(self._text.rstrip())
            raise self._broken(error.pos, _TRUNCATED if unfinished else f"broken JSON ({error.msg})") from None
        except (ValueError, RecursionError) as error:
            raise self._broken(self._at, f"broken JSON ({type(error).__name__})") from None
        self._at = self._space(end)
        result: object = value
        return result

    def _expect(self, char: str) -> None:
        if self._at >= len(self._text):
            raise self._broken(self._at, _TRUNCATED)
        if self.peek() != char:
            raise self._broken(self._at, f"broken JSON ({char!r} expected)")
        self._skip()

    def _skip(self) -> None:
        self._at = self._space(self._at + 1)

    def _space(self, at: int) -> int:
        match = _SPACE.match(self._text, at)
        return match.end() if match else at

    def _place(self, at: int) -> Place:
        self._line += self._text.count("\n", self._counted, at)
        self._counted = at
        return Place(self._path, self._line)

    def _broken(self, at: int, message: str) -> _BrokenError:
        fix = "" if message == _TRUNCATED else "; fetch the file again"
        return _BrokenError(Place(self._path, self._text.count("\n", 0, at) + 1), message + fix)


def _is_columns(value: Mapping[str, object]) -> bool:
    # a record of ProsocialDialog has a text as context; the same file as columns has a list of them
    return bool(value) and all(isinstance(column, list) for column in value.values())


def _from_columns(path: Path, columns: Mapping[str, object], problems: Problems) -> list[Record]:
    lists = {name: column for name, column in columns.items() if isinstance(column, list)}
    sizes = {name: len(column) for name, column in lists.items()}
    size = max(sizes.values())
    for name, length in sizes.items():
        if length != size:
            problems.add(Place(path), f'column "{name[:60]}" has {length} rows, others {size}; fetch the file again')
            return []
    return [Record(f"{path}: row {i + 1}", {name: column[i] for name, column in lists.items()}) for i in range(size)]
