"""JSON of any size, row by row: lines, one array, an object of records by id, rows under a name, or an object of columns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final, NoReturn

from cowest.errors import DataError
from cowest.importing.records import Raw
from cowest.tasks.row_errors import kind_of

CHUNK: Final = 1 << 18
LONGEST: Final = 1 << 26
"""Characters of one record; beyond, the file is broken rather than large."""
_SPACE: Final = " \t\r\n\ufeff"


def _no_constant(name: str) -> object:
    return None  # NaN, as pandas writes what is missing


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)


def json_rows(path: Path, text: IO[str]) -> Iterator[Raw]:
    """The records of a JSON file in any of the layouts. Raises DataError, which names the line."""
    stream = _Stream(path, text)
    first = stream.peek()
    if not first:
        raise DataError(f"{path}: is empty; give rows")
    if first == "[":
        stream.skip()
        yield from _elements(stream)
    elif first == "{":
        yield from _objects(stream)
    else:
        stream.fail("neither an object nor an array; give JSON rows (is it a CSV file? then name it .csv)")


def _elements(stream: _Stream) -> Iterator[Raw]:
    """Of an array that was opened."""
    while stream.peek() != "]":
        line, value = stream.line, stream.value()
        yield stream.raw(line, value)
        if stream.peek() == ",":
            stream.skip()
        elif stream.peek() != "]":
            stream.fail("broken JSON (a comma or ']' expected); mend the file")
    stream.skip()


def _objects(stream: _Stream) -> Iterator[Raw]:
    """Objects one after another; where the file is one object alone, what is in it."""
    line, value = stream.line, stream.first_object()
    if value is not None:
        if not stream.peek():
            yield from _alone(stream, line, value)
            return
        yield stream.raw(line, value)
        while stream.peek():
            line = stream.line
            yield stream.raw(line, stream.value())
        return
    yield from _members(stream)  # too large for one record: an object of records


def _alone(stream: _Stream, line: int, value: dict[str, object]) -> Iterator[Raw]:
    """A file that is one object: columns, rows under a name, records by id, or one row."""
    lists = {name: column for name, column in value.items() if isinstance(column, list)}
    wrapped = next((v for v in lists.values() if v and all(isinstance(row, dict) for row in v)), None)
    sizes = {len(column) for column in lists.values()}
    if len(value) > 1 and len(lists) == len(value) and len(sizes) == 1:
        for i in range(sizes.pop()):
            yield stream.raw(i + 1, {name: column[i] for name, column in lists.items()})
    elif wrapped is not None and "messages" not in value and "conversations" not in value:
        for i, row in enumerate(wrapped, 1):
            yield stream.raw(i, row)
    elif value and all(isinstance(record, dict) for record in value.values()):
        for i, (key, record) in enumerate(value.items(), 1):
            assert isinstance(record, dict)
            yield stream.raw(i, {"id": key, **record})
    else:
        yield stream.raw(line, value)


def _members(stream: _Stream) -> Iterator[Raw]:
    """Of a large object: records by id, or rows under a name."""
    stream.skip()
    while stream.peek() != "}":
        line, key = stream.line, stream.value()
        if stream.peek() != ":":
            stream.fail("broken JSON (':' expected); mend the file")
        stream.skip()
        if stream.peek() == "[":
            stream.skip()
            yield from _elements(stream)
        else:
            value = stream.value()
            if isinstance(value, dict):
                yield stream.raw(line, {"id": str(key), **value})
        if stream.peek() == ",":
            stream.skip()
        elif stream.peek() != "}":
            stream.fail("broken JSON (a comma or '}' expected); mend the file")


class _Stream:
    """A text of which only a window is held; ``line`` is that of the next character that is no space."""

    def __init__(self, path: Path, text: IO[str]) -> None:
        self._path, self._text = path, text
        self._held, self._at, self.line = "", 0, 1
        self._ended = False

    def raw(self, line: int, value: object) -> Raw:
        if not isinstance(value, dict):
            raise DataError(f"{self._path}:{line}: not an object but {kind_of(value)}; a row has names: {{...}}")
        return Raw(str(self._path), line, value)

    def peek(self) -> str:
        """The next character that is no space; '' at the end."""
        while True:
            while self._at < len(self._held):
                char = self._held[self._at]
                if char not in _SPACE:
                    return char
                self.line += char == "\n"
                self._at += 1
            if not self._more():
                return ""

    def skip(self) -> None:
        self._at += 1

    def value(self) -> object:
        """The next value, whole."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._held, self._at)
                if end == len(self._held) and self._more():
                    continue  # a number may go on
                break
            except json.JSONDecodeError as error:
                if len(self._held) - self._at < LONGEST and self._unfinished(error) and self._more():
                    continue
                self._broken(error)
            except (ValueError, RecursionError) as error:
                self.fail(f"broken JSON ({str(error).split(';')[0]}); mend the file")
        self.line += self._held.count("\n", self._at, end)
        self._at = end
        result: object = value
        return result

    def first_object(self) -> dict[str, object] | None:
        """The object that begins here; None, and nothing is read, where it is larger than a record."""
        try:
            value, end = _DECODER.raw_decode(self._held, self._at)
        except json.JSONDecodeError:
            while len(self._held) - self._at < 4 * CHUNK and self._more():
                pass
            try:
                value, end = _DECODER.raw_decode(self._held, self._at)
            except json.JSONDecodeError as error:
                if self._ended or not self._unfinished(error):
                    self._broken(error)
                return None
            except (ValueError, RecursionError) as error:
                self.fail(f"broken JSON ({str(error).split(';')[0]}); mend the file")
        except (ValueError, RecursionError) as error:
            self.fail(f"broken JSON ({str(error).split(';')[0]}); mend the file")
        self.line += self._held.count("\n", self._at, end)
        self._at = end
        assert isinstance(value, dict)
        return value

    def _unfinished(self, error: json.JSONDecodeError) -> bool:
        """Whether more text could mend it: it broke at the window's end, or within a string that began there."""
        return error.msg.startswith("Unterminated") or error.pos >= len(self._held) - 8

    def _broken(self, error: json.JSONDecodeError) -> NoReturn:
        self.line += self._held.count("\n", self._at, error.pos)
        cut = self._ended and (error.pos >= len(self._held.rstrip()) or error.msg.startswith("Unterminated"))
        self.fail(
            "ends in the middle of a record: the file is cut off" if cut else f"broken JSON ({error.msg}); mend it"
        )

    def fail(self, text: str) -> NoReturn:
        raise DataError(f"{self._path}:{self.line}: {text}")

    def _more(self) -> bool:
        chunk = "" if self._ended else self._text.read(max(CHUNK, len(self._held) - self._at))
        if not chunk:
            self._ended = True
            return False
        self._held = self._held[self._at :] + chunk
        self._at = 0
        return True
