"""A streamed answer put together again. A broken stream is a failure, never a part of an answer.

Noticed is, beside what chunks.py notices: text after the end, an answer without a ``finish_reason``, and a piece of text that comes
twice in a row and is one too many for the tokens told.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import pairwise

from pydantic import JsonValue

from cowest.models.chunks import Chunk, broken, delta_of, with_more
from cowest.models.failures import EndpointError
from cowest.models.replies import Reply, read_payload, thinking_of
from cowest.models.untrusted import field as get
from cowest.types import Tool


def rest_of(text: str, told: str) -> str | None:
    """What of a whole text was not told yet, blanks at either end aside; None where it does not begin with what was told."""
    if text.startswith(told):
        return text[len(told) :]
    begin = told.strip()
    return text.lstrip()[len(begin) :] if text.lstrip().startswith(begin) else None


@dataclass(slots=True)
class _Answer:
    """One choice as it grows."""

    pieces: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    thinking: list[str] = field(default_factory=list)
    calls: dict[int, Chunk] = field(default_factory=dict)
    logprobs: list[JsonValue] = field(default_factory=list)
    finish: str | None = None

    def call(self, piece: JsonValue) -> None:
        """Put a piece of a tool call to those before it."""
        index = get(piece, "index")
        call = self.calls.setdefault(index if isinstance(index, int) else 0, {"type": "function", "function": {}})
        if isinstance(piece, dict) and isinstance(call["function"], dict):
            function = piece.get("function")
            call["function"] = with_more(call["function"], function if isinstance(function, dict) else {})
            call |= {key: value for key, value in piece.items() if key not in ("index", "function")}

    def choice(self, index: int) -> Chunk:
        """The answer as it would have come whole."""
        message: Chunk = {
            "role": "assistant",
            "content": "".join(self.pieces),
            "refusal": "".join(self.refusal) or None,
        }
        if self.thinking:
            message["reasoning_content"] = "".join(self.thinking)
        if self.calls:
            message["tool_calls"] = [call for _, call in sorted(self.calls.items())]
        logprobs: JsonValue = {"content": self.logprobs} if self.logprobs else None
        return {"index": index, "message": message, "finish_reason": self.finish, "logprobs": logprobs}


class Assembler:
    """Puts the chunks of one stream together."""

    def __init__(self) -> None:
        self._answers: dict[int, _Answer] = {}
        self._usage: JsonValue = None
        self._head: Chunk = {}

    async def all(self, chunks: AsyncIterator[Chunk]) -> Assembler:
        """Take every chunk of a stream. Raises EndpointError for one that cannot be right."""
        async for chunk in chunks:
            self.add(chunk)
        return self

    def add(self, chunk: Chunk) -> None:
        """Take one chunk. Raises EndpointError."""
        self._usage = chunk.get("usage") or self._usage
        self._head = self._head or {key: chunk.get(key) for key in ("id", "created", "model")}
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._grow(choice)

    def payload(self) -> Chunk:
        """The stream as the answer that it would have been. Raises EndpointError when the stream was not whole."""
        if not self._answers:
            raise EndpointError("no_choices", "the stream held no answer", retry=True, maybe_paid=True)
        if any(answer.finish is None for answer in self._answers.values()):
            raise broken("the stream ended before the answer did", "")
        choices: list[JsonValue] = [answer.choice(index) for index, answer in sorted(self._answers.items())]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self._usage}

    def reply(self, prompt_bytes: int, limit: int | None = None, tool: Tool | None = None) -> Reply:
        """The same as read_reply gives it. Raises EndpointError."""
        reply = read_payload(self.payload(), "", prompt_bytes, limit, tool)
        told = get(self._usage, "completion_tokens")
        pieces = [piece for answer in self._answers.values() for piece in answer.pieces]
        # More pieces than tokens are no fault: some servers send single characters. But then what comes twice is short.
        twice = sum(a == b and len(a) > 1 for a, b in pairwise(pieces))
        if isinstance(told, int) and 0 < told < len(pieces) <= told + twice:
            raise broken(
                f"the stream held {len(pieces)} pieces for {told} tokens, and some came twice", "", reply.usage
            )
        return reply

    def _grow(self, choice: Chunk) -> None:
        index, reason, delta = choice.get("index"), choice.get("finish_reason"), delta_of(choice)
        answer = self._answers.setdefault(index if isinstance(index, int) else 0, _Answer())
        text, refusal, calls = delta.get("content"), delta.get("refusal"), delta.get("tool_calls")
        text = text if isinstance(text, str) else ""
        if answer.finish is not None and (text or refusal):
            raise broken("the stream goes on after the end of the answer", json.dumps(choice))
        if text:
            answer.pieces.append(text)
        if isinstance(refusal, str):
            answer.refusal.append(refusal)
        answer.thinking.append(thinking_of(delta))
        for call in calls if isinstance(calls, list) else ():
            answer.call(call)
        logprobs = choice.get("logprobs")
        content = logprobs.get("content") if isinstance(logprobs, dict) else None
        answer.logprobs += content if isinstance(content, list) else []
        if isinstance(reason, str):
            answer.finish = reason
