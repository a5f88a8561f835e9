"""The chunks of a streamed answer, read from server-sent events and checked for what was lost or mixed up.

OpenAI's chunks carry no number, so what can be noticed is: an SSE ``id`` that repeats (dropped) or jumps (an error) where the
server sends ids; chunks of two answers in turn, or of a choice that was not asked for; a bare role in the middle, from a server
that does not put one on every chunk; and what stream.py sees in the whole. What cannot be noticed: two neighbouring pieces
exchanged by a server that sends no ids.

Gateways give each chunk an id of its own, or where one answer was asked for count its chunks by ``index``: that is one answer.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from pydantic import JsonValue

from cowest.models.events import Event, EventReader
from cowest.models.failures import EndpointError, server_message
from cowest.models.replies import flat, is_error
from cowest.models.secrets import Flow, Secrets
from cowest.models.transport import MAX_BODY
from cowest.models.untrusted import field as get
from cowest.types import Usage

Chunk: TypeAlias = dict[str, JsonValue]
_NOTHING: Final = Usage()
_MOST_DIGITS: Final = 18
_DECODER: Final = json.JSONDecoder()
_DONE: Final = "[DONE]"
_TEXTS: Final = ("content", "refusal", "reasoning_content", "reasoning")


async def read_chunks(pieces: AsyncIterator[bytes], n: int, secrets: Secrets) -> AsyncGenerator[Chunk, None]:
    """The chunks of a stream of ``n`` answers, in OpenAI's form and without secrets, as they come.

    Raises EndpointError for what cannot be right, and for a stream that neither says that it is done nor ended an answer; what
    the connection raises goes through.
    """
    reader, chunks = EventReader(), _Chunks(n, secrets)
    async for piece in bounded(pieces):
        for event in reader.feed(piece):
            for chunk in chunks.read(event):
                yield chunk
        if chunks.done:
            break
    for event in reader.finish():
        for chunk in chunks.read(event):
            yield chunk
    for chunk in chunks.rest():
        yield chunk
    if not chunks.done and not chunks.ended:
        raise broken("the stream ended before the answer did", "")


@dataclass(slots=True)
class _Turns:
    """Which id or index speaks: one that speaks again after another did means two answers in one stream."""

    now: object = None
    before: set[object] = field(default_factory=set)

    def returns(self, who: object) -> bool:
        """Whether this one spoke before another did; from now on it is its turn."""
        if who != self.now and self.now is not None:
            self.before.add(self.now)
        self.now = who
        return who in self.before


class _Chunks:
    """Reads the events of one stream of ``n`` answers."""

    def __init__(self, n: int, secrets: Secrets) -> None:
        self._n, self._secrets = n, secrets
        self._seen: int | None = None
        self._ids: dict[int, _Turns] = {}
        self._speakers = _Turns()
        self._end: int | None = None
        self._begun: set[int] = set()
        self._roles: set[int] = set()  # of these answers the server names the role with every piece
        self._flows: dict[tuple[int, str | int], Flow] = {}
        self._last: Chunk = {}
        self.done = self.ended = False

    def read(self, event: Event) -> Iterator[Chunk]:
        """The chunks in one event: one, but some servers glue several together. Raises EndpointError."""
        if self.done or self._repeated(event.id):
            return
        text = event.data.strip()
        while text:
            if text.startswith(_DONE):
                self.done = True
                return
            try:
                found, end = _DECODER.raw_decode(text)
            except (ValueError, RecursionError):
                raise broken("a piece of the stream is not JSON", event.data) from None
            if is_error(found) or event.name == "error":
                quote = server_message(text[:end].encode("utf-8", "replace"))[0]
                raise EndpointError(
                    "server_error", "the endpoint broke its stream off", retry=True, quote=quote, maybe_paid=True
                )
            if isinstance(found, dict):
                yield self._normal(found, event.data)
            text = text[end:].lstrip()

    def rest(self) -> Iterator[Chunk]:
        """What was held back as it could have been a part of a secret, and no end of an answer came to bring it."""
        for index in sorted({index for index, _ in self._flows}):
            if held := self._held(index):
                yield {**self._last, "choices": [{"index": index, "delta": held, "finish_reason": None}]}

    def _repeated(self, identity: str | None) -> bool:
        """Whether the event came before. Raises EndpointError for one that is missing or too early."""
        if identity is None or not identity.isdecimal() or len(identity) > _MOST_DIGITS:
            return False
        number = int(identity)
        if self._seen is not None and number <= self._seen:
            return True
        if self._seen is not None and number != self._seen + 1:
            raise broken(f"the stream's event {number} follows {self._seen}", "")
        self._seen = number
        return False

    def _normal(self, chunk: Chunk, raw: str) -> Chunk:
        found = chunk.get("choices")
        given = [choice for choice in found if isinstance(choice, dict)] if isinstance(found, list) else []
        if self._begun:  # a whole message at the end says again what the chunks have said
            given = [{key: value for key, value in choice.items() if key != "message"} for choice in given]
        if self._n == 1 and sum(bool(_said(choice)) for choice in given) > 1:
            raise broken("the stream holds choice 1 of 1", raw)
        choices: list[JsonValue] = [self._choice(choice, chunk.get("id"), raw) for choice in given]
        normal = {**chunk, "choices": choices}
        if self._secrets:
            rest = self._secrets.strike_all({key: value for key, value in normal.items() if key != "choices"})
            normal = {**rest, "choices": choices} if isinstance(rest, dict) else normal
        self._last = {key: value for key, value in normal.items() if key not in ("choices", "usage")}
        return normal

    def _choice(self, choice: Chunk, identity: JsonValue, raw: str) -> JsonValue:
        delta = delta_of(choice)
        reason = choice.get("finish_reason")
        index = self._index(choice, bool(_said(choice)), isinstance(reason, str), raw)
        if isinstance(identity, str) and identity and self._ids.setdefault(index, _Turns()).returns(identity):
            raise broken("the stream mixes two answers", raw)
        self.ended = self.ended or isinstance(reason, str)
        self._check_role(index, delta, isinstance(reason, str), raw)
        normal: Chunk = {**choice, "index": index, "delta": delta}
        if self._secrets:
            delta = self._struck(index, delta)
            normal["delta"] = with_more(delta, self._held(index)) if isinstance(reason, str) else delta
        return normal

    def _index(self, choice: Chunk, speaks: bool, ends: bool, raw: str) -> int:
        """Whose piece it is. Raises EndpointError for an answer that nobody asked for."""
        found = choice.get("index")
        index = found if isinstance(found, int) else 0
        if self._n > 1 and 0 <= index < self._n:
            return index
        spoke = index == self._speakers.now or index in self._speakers.before
        second_end = ends and self._end not in (None, index) and spoke
        if self._n > 1 or second_end or (speaks and (self._speakers.returns(index) or self._end not in (None, index))):
            raise broken(f"the stream holds choice {index} of {self._n}", raw)
        self._end = index if ends and self._end is None else self._end
        return 0

    def _check_role(self, index: int, delta: Chunk, ends: bool, raw: str) -> None:
        """Raise EndpointError where an answer begins again in the middle."""
        speaks = bool(delta.get("content"))
        if delta.get("role") and index in self._begun and not ends and not self.ended:
            if speaks:
                self._roles.add(index)
            elif index not in self._roles:
                raise broken("the stream begins again in the middle", raw)
        if speaks:
            self._begun.add(index)

    def _struck(self, index: int, delta: Chunk) -> Chunk:
        """The delta without secrets, also where one comes in pieces; what could become one is held back."""
        clean: Chunk = {}
        for key, value in delta.items():
            if key in _TEXTS and isinstance(value, str):
                clean[key] = self._flow(index, key).feed(value)
            elif key == "tool_calls" and isinstance(value, list):
                clean[key] = [self._call(index, call) for call in value]
            else:
                clean[key] = self._secrets.strike_all(value)
        return clean

    def _call(self, index: int, call: JsonValue) -> JsonValue:
        function = get(call, "function")
        said = get(function, "arguments")
        call = self._secrets.strike_all(call)
        if isinstance(call, dict) and isinstance(function, dict) and isinstance(said, str):
            flow = self._flow(index, call.get("index"))
            call["function"] = (
                {**call["function"], "arguments": flow.feed(said)} if isinstance(call["function"], dict) else {}
            )
        return call

    def _held(self, index: int) -> Chunk:
        """A delta with all that was held back of an answer."""
        delta: Chunk = {}
        calls: list[JsonValue] = []
        for (whose, place), flow in self._flows.items():
            held = flow.finish() if whose == index else ""
            if held and isinstance(place, str):
                delta[place] = held
            elif held:
                calls.append({"index": place, "function": {"arguments": held}})
        return delta | ({"tool_calls": calls} if calls else {})

    def _flow(self, index: int, place: JsonValue) -> Flow:
        """Of a text, or of the arguments of a tool call, whose place is its index."""
        place = place if isinstance(place, str | int) else 0
        return self._flows.setdefault((index, place), self._secrets.flow())


def with_more(delta: Chunk, more: Chunk) -> Chunk:
    """A delta with what another says after it."""
    both = dict(delta)
    for key, value in more.items():
        before = both.get(key)
        if isinstance(before, str) and isinstance(value, str):
            both[key] = before + value
        else:
            both[key] = [*before, *value] if isinstance(before, list) and isinstance(value, list) else value
    return both


def delta_of(choice: Chunk) -> Chunk:
    """What a chunk adds to an answer; its content is text."""
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        delta = choice.get("message")  # some servers put the whole answer into one chunk
    return flat(delta) if isinstance(delta, dict) else {}


def text_of(chunk: Chunk) -> str:
    """The text that a chunk adds to the first answer."""
    choices = chunk.get("choices")
    texts = [
        delta_of(choice).get("content")
        for choice in (choices if isinstance(choices, list) else ())
        if isinstance(choice, dict) and choice.get("index") in (None, 0)
    ]
    return "".join(text for text in texts if isinstance(text, str))


def _said(choice: Chunk) -> JsonValue:
    delta = delta_of(choice)
    return delta.get("content") or delta.get("refusal")


async def bounded(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same pieces. Raises EndpointError ``too_large`` before they fill the memory."""
    size = 0
    async for piece in pieces:
        size += len(piece)
        if size > MAX_BODY:
            message = f"the answer is longer than {MAX_BODY} bytes"
            raise EndpointError("too_large", message, retry=True, maybe_paid=True)
        yield piece


def broken(message: str, quote: str, usage: Usage = _NOTHING) -> EndpointError:
    """The failure of a stream that cannot be right."""
    return EndpointError("bad_response", message, retry=True, quote=quote, usage=usage, maybe_paid=True)
