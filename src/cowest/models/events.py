"""Server-sent events out of a byte stream."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_BEGINS: Final = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:data|event|id|retry)?:")


def begins_events(head: bytes) -> bool:
    """Whether a body that begins so holds server-sent events, whatever its headers call it: no JSON and no page begins so."""
    return _BEGINS.match(head) is not None


@dataclass(slots=True)
class Event:
    """One server-sent event; ``name`` is its ``event`` field."""

    data: str
    id: str | None
    name: str | None = None


class EventReader:
    """Splits a byte stream into events, as the HTML standard has it: any line ending, comments, data over several lines, a BOM."""

    def __init__(self) -> None:
        self._rest = b""
        self._lines: list[str] = []
        self._id: str | None = None
        self._name: str | None = None
        self._first = True

    def feed(self, piece: bytes) -> Iterator[Event]:
        """The events that are complete with this piece."""
        buffer = self._rest + piece
        # A CR at the very end may be half of a CRLF: it waits for the next piece.
        cut = len(buffer) - 1 if buffer.endswith(b"\r") else len(buffer)
        lines = buffer[:cut].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop() + buffer[cut:]
        for raw in lines:
            line = raw.decode("utf-8", "replace")
            if self._first:
                line, self._first = line.removeprefix("\ufeff"), False
            if line:
                self._take(line)
            elif (event := self._end()) is not None:
                yield event

    def finish(self) -> Iterator[Event]:
        """The event that a server ended without its empty line."""
        if self._rest:
            self._take(self._rest.decode("utf-8", "replace").rstrip("\r"))
        if (event := self._end()) is not None:
            yield event

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._lines.append(value)
        elif name == "id":
            self._id = value
        elif name == "event":
            self._name = value

    def _end(self) -> Event | None:
        lines, self._lines = self._lines, []
        identity, self._id = self._id, None
        named, self._name = self._name, None
        return Event("\n".join(lines), identity, named) if lines else None
