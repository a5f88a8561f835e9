"""The items of an answer of ``/v1/responses``, built from a chat's message or from its deltas, and the events that tell of it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from pydantic import JsonValue

from cowest.models.replies import thinking_of
from cowest.server.request import Body

Kind = Literal["output_text", "refusal", "reasoning_text"]
_REASONS: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}


@dataclass(slots=True)
class _Open:
    """The item that is being written. ``kind`` None: a call of a function, whose ``call`` is its number in the chat's list."""

    item: Body
    index: int
    kind: Kind | None
    call: int = 0
    text: list[str] = field(default_factory=list)
    logprobs: list[JsonValue] = field(default_factory=list)

    def part(self) -> Body:
        """The one part of a message or of reasoning, as far as it is written."""
        text = "".join(self.text)
        if self.kind == "output_text":
            return {"type": "output_text", "text": text, "annotations": [], "logprobs": [*self.logprobs]}
        return (
            {"type": "refusal", "refusal": text} if self.kind == "refusal" else {"type": "reasoning_text", "text": text}
        )

    def whole(self) -> Body:
        """The item as it is when it is done."""
        if self.kind is None:
            return {**self.item, "arguments": "".join(self.text), "status": "completed"}
        done: Body = {} if self.kind == "reasoning_text" else {"status": "completed"}
        return {**self.item, "content": [self.part()], **done}


class Items:
    """Items in the order in which they began; one is open at a time, as the deltas of a chat come."""

    def __init__(self) -> None:
        self.output: list[JsonValue] = []
        self.reason: str | None = None
        self._open: _Open | None = None

    @property
    def status(self) -> Literal["completed", "incomplete"]:
        """Whether the model said all that it had to say."""
        return "incomplete" if self.reason is not None else "completed"

    def feed(self, delta: Body, logprobs: JsonValue, finish: JsonValue) -> Iterator[Body]:
        """Take in a delta (or a whole message); the events for it, without their numbers."""
        if isinstance(finish, str) and finish in _REASONS:
            self.reason = _REASONS[finish]
        told: tuple[tuple[Kind, JsonValue], ...] = (
            ("reasoning_text", thinking_of(delta)),
            ("output_text", delta.get("content")),
            ("refusal", delta.get("refusal")),
        )
        for kind, text in told:
            if isinstance(text, str) and text:
                yield from self._text(kind, text, logprobs if kind == "output_text" else None)
        calls = delta.get("tool_calls")
        for i, call in enumerate(calls if isinstance(calls, list) else []):
            if isinstance(call, dict):
                yield from self._call(call, i)

    def close(self) -> Iterator[Body]:
        """End the open item. An answer without any item has an empty message."""
        if self._open is None and not self.output:
            yield from self._begin("output_text")
        yield from self._finish()

    def _text(self, kind: Kind, text: str, logprobs: JsonValue) -> Iterator[Body]:
        if self._open is None or self._open.kind != kind:
            yield from self._begin(kind)
        assert self._open is not None
        content = logprobs.get("content") if isinstance(logprobs, dict) else None
        scores = content if isinstance(content, list) else []
        self._open.text.append(text)
        self._open.logprobs += scores
        extra: Body = {"logprobs": scores} if kind == "output_text" else {}
        yield self._about(f"{_NAMES[kind]}.delta", {"content_index": 0, "delta": text, **extra})

    def _call(self, call: Body, place: int) -> Iterator[Body]:
        number = call.get("index", place)
        number = number if isinstance(number, int) else place
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        opened = self._open
        if opened is None or opened.kind is not None or opened.call != number:
            yield from self._finish()
            id_ = call.get("id")
            item: Body = {
                "type": "function_call",
                "id": _id("fc"),
                "call_id": id_ if isinstance(id_, str) else _id("call"),
                "name": function.get("name") or "",
                "arguments": "",
                "status": "in_progress",
            }
            yield from self._add(_Open(item, len(self.output), None, number))
        assert self._open is not None
        arguments = function.get("arguments")
        if isinstance(arguments, str) and arguments:
            self._open.text.append(arguments)
            yield self._about("response.function_call_arguments.delta", {"delta": arguments})

    def _begin(self, kind: Kind) -> Iterator[Body]:
        yield from self._finish()
        if kind == "reasoning_text":
            item: Body = {"type": "reasoning", "id": _id("rs"), "summary": [], "content": []}
        else:
            item = {"type": "message", "id": _id("msg"), "role": "assistant", "status": "in_progress", "content": []}
        opened = _Open(item, len(self.output), kind)
        yield from self._add(opened)
        yield self._about("response.content_part.added", {"content_index": 0, "part": opened.part()})

    def _add(self, opened: _Open) -> Iterator[Body]:
        self._open = opened
        yield {"type": "response.output_item.added", "output_index": opened.index, "item": opened.item}

    def _finish(self) -> Iterator[Body]:
        opened = self._open
        if opened is None:
            return
        text, whole = "".join(opened.text), opened.whole()
        if opened.kind is None:
            told: Body = {"arguments": text, "name": opened.item["name"]}
            yield self._about("response.function_call_arguments.done", told)
        else:
            said: Body = {"refusal" if opened.kind == "refusal" else "text": text}
            extra: Body = {"logprobs": [*opened.logprobs]} if opened.kind == "output_text" else {}
            yield self._about(f"{_NAMES[opened.kind]}.done", {"content_index": 0, **said, **extra})
            yield self._about("response.content_part.done", {"content_index": 0, "part": opened.part()})
        if self.reason is not None and "status" in whole:
            whole["status"] = "incomplete"
        self.output.append(whole)
        self._open = None
        yield {"type": "response.output_item.done", "output_index": opened.index, "item": whole}

    def _about(self, type_: str, fields: Body) -> Body:
        assert self._open is not None
        return {"type": type_, "item_id": self._open.item["id"], "output_index": self._open.index, **fields}


_NAMES: Final[dict[Kind, str]] = {
    "output_text": "response.output_text",
    "refusal": "response.refusal",
    "reasoning_text": "response.reasoning_text",
}


def _id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"
