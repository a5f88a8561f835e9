"""A streamed answer: server-sent events put together again, and checked for pieces that were lost, doubled or out of order.

OpenAI's chunks carry no number, so what can be noticed is: an SSE ``id`` that repeats (dropped) or jumps (an error) where the
server sends ids; a chunk of another completion, or of a choice that was not asked for; text after the end; a bare role in the
middle, from a server that does not put one on every chunk; a stream that ends without a ``finish_reason``; and more pieces of
text than the usage counts tokens, which is how a doubled piece shows where each piece is a token. What cannot be noticed: two
neighbouring pieces exchanged by a server that sends no ids. A broken stream is a failure, never a partial answer.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Final

from cowest.models.transport import MAX_BODY
from cowest.models.wire import EndpointError, Reply, read_payload, server_message
from cowest.models.wire import field as get
from cowest.types import Usage

_NOTHING: Final = Usage()
_MOST_DIGITS: Final = 18


@dataclass(slots=True)
class Event:
    """One server-sent event."""

    data: str
    id: str | None


class EventReader:
    """Splits a byte stream into events, as the HTML standard has it: any line ending, comments, data over several lines, a BOM."""

    def __init__(self) -> None:
        self._rest = b""
        self._lines: list[str] = []
        self._id: str | None = None
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

    def _end(self) -> Event | None:
        lines, self._lines = self._lines, []
        identity, self._id = self._id, None
        return Event("\n".join(lines), identity) if lines else None


@dataclass(slots=True)
class _Answer:
    """One choice as it grows."""

    pieces: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    logprobs: list[object] = field(default_factory=list)
    finish: str | None = None
    roles: bool = False  # this server names the role with every piece


class Assembler:
    """Puts the chunks of one stream of ``n`` answers together."""

    def __init__(self, prompt_bytes: int, n: int = 1) -> None:
        self._prompt_bytes, self._n = prompt_bytes, n
        self._answers: dict[int, _Answer] = {}
        self._usage: object = None
        self._completion: str | None = None
        self._seen: int | None = None
        self.done = False

    def add(self, event: Event) -> None:
        """Take one event. Raises EndpointError for one that tells of an error or cannot be right."""
        if event.data.strip() == "[DONE]":
            self.done = True
            return
        if self._repeated(event.id):
            return
        try:
            chunk: object = json.loads(event.data)
        except (ValueError, RecursionError):
            raise _broken("a piece of the stream is not JSON", event.data) from None
        if get(chunk, "error"):
            quote = server_message(event.data.encode())[0]
            raise EndpointError(
                "server_error", "the endpoint broke its stream off", retry=True, quote=quote, maybe_paid=True
            )
        identity = get(chunk, "id")
        if isinstance(identity, str) and identity:
            if self._completion not in (None, identity):
                raise _broken("the stream mixes two answers", event.data)
            self._completion = identity
        if get(chunk, "usage"):
            self._usage = get(chunk, "usage")
        choices = get(chunk, "choices")
        for choice in choices if isinstance(choices, list) else ():
            self._grow(choice, event.data)

    def reply(self) -> Reply:
        """The whole answer. Raises EndpointError when the stream was not whole."""
        if not self._answers:
            raise EndpointError("no_choices", "the stream held no answer", retry=True, maybe_paid=True)
        if any(answer.finish is None for answer in self._answers.values()):
            raise _broken("the stream ended before the answer did", "")
        told = get(self._usage, "completion_tokens")
        pieces = sum(len(a.pieces) for a in self._answers.values())
        reply = read_payload(self._payload(), "", self._prompt_bytes)
        if isinstance(told, int) and 0 < told < pieces:
            raise _broken(f"the stream held {pieces} pieces for {told} tokens", "", reply.usage)
        return reply

    def _payload(self) -> dict[str, object]:
        """The stream as the reply that it would have been."""
        choices = []
        for index, a in sorted(self._answers.items()):
            message = {"content": "".join(a.pieces), "refusal": "".join(a.refusal) or None}
            logprobs = {"content": a.logprobs} if a.logprobs else None
            choices.append({"index": index, "message": message, "finish_reason": a.finish, "logprobs": logprobs})
        return {"choices": choices, "usage": self._usage}

    def _repeated(self, identity: str | None) -> bool:
        """Whether the event came before. Raises EndpointError for one that is missing or too early."""
        if identity is None or not identity.isdecimal() or len(identity) > _MOST_DIGITS:
            return False
        number = int(identity)
        if self._seen is not None and number <= self._seen:
            return True
        if self._seen is not None and number != self._seen + 1:
            raise _broken(f"the stream's event {number} follows {self._seen}", "")
        self._seen = number
        return False

    def _grow(self, choice: object, raw: str) -> None:
        index, delta = get(choice, "index"), get(choice, "delta")
        index = index if isinstance(index, int) else 0
        if not 0 <= index < self._n:
            raise _broken(f"the stream holds choice {index} of {self._n}", raw)
        answer = self._answers.setdefault(index, _Answer())
        text, refusal, reason = get(delta, "content"), get(delta, "refusal"), get(choice, "finish_reason")
        text = text if isinstance(text, str) else ""
        if answer.finish is not None and (text or refusal):
            raise _broken("the stream goes on after the end of the answer", raw)
        if get(delta, "role") and answer.pieces and answer.finish is None:
            answer.roles = answer.roles or bool(text)
            if not answer.roles and not isinstance(reason, str):
                raise _broken("the stream begins again in the middle", raw)
        if text:
            answer.pieces.append(text)
        if isinstance(refusal, str):
            answer.refusal.append(refusal)
        logprobs = get(get(choice, "logprobs"), "content")
        answer.logprobs += logprobs if isinstance(logprobs, list) else []
        if isinstance(reason, str):
            answer.finish = reason


async def read_stream(pieces: AsyncIterator[bytes], prompt_bytes: int, n: int = 1) -> Reply:
    """Read a stream of ``n`` answers to its end. Raises EndpointError; what the connection raises goes through."""
    reader, assembler = EventReader(), Assembler(prompt_bytes, n)
    async for piece in bounded(pieces):
        for event in reader.feed(piece):
            assembler.add(event)
        if assembler.done:
            break
    for event in reader.finish():
        assembler.add(event)
    return assembler.reply()


async def bounded(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same pieces. Raises EndpointError ``too_large`` before they fill the memory."""
    size = 0
    async for piece in pieces:
        size += len(piece)
        if size > MAX_BODY:
            message = f"the answer is longer than {MAX_BODY} bytes"
            raise EndpointError("too_large", message, retry=True, maybe_paid=True)
        yield piece


def _broken(message: str, quote: str, usage: Usage = _NOTHING) -> EndpointError:
    return EndpointError("bad_response", message, retry=True, quote=quote, usage=usage, maybe_paid=True)
