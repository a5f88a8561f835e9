"""What happens to a request: the weak model drafts, the strong one refines, and either may stand in where the other fails."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final, Literal

from pydantic import JsonValue

from cowest.protocols import Frames
from cowest.server.answers import chunks_of, completion_of, count_both, usage_of
from cowest.server.conversation import Conversation, conversation
from cowest.server.drafter import Drafted, Drafter
from cowest.server.errors import Unavailable
from cowest.server.redaction import Redactor
from cowest.server.request import Body, ChatRequest
from cowest.server.settings import Settings
from cowest.server.upstream import Backend
from cowest.types import Usage

Mode = Literal["both", "strong_alone", "weak_alone"]
_NO_DRAFT: Final = Drafted(None)
_NOTHING: Final = Usage()


@dataclass(frozen=True, slots=True)
class Served:
    """A model id. With a ``drafter`` it is a collaboration; without one ``backend`` answers alone, as ``alone`` says.

    ``frames`` put the question; ``weak_id`` and ``strong_id`` are the ids under which either alone answers; ``task`` is the
    recipe's domain, '' its only one.
    """

    id: str
    frames: Frames
    backend: Backend
    alone: Literal["strong_alone", "weak_alone"] = "strong_alone"
    drafter: Drafter | None = None
    weak_id: str = ""
    strong_id: str = ""
    task: str = ""

    def name_of(self, mode: Mode) -> str:
        """The id that tells which of the models answered."""
        if self.drafter is None or mode == "both":
            return self.id
        return (self.weak_id if mode == "weak_alone" else self.strong_id) or self.id


@dataclass(slots=True)
class Exchange:
    """What became of one request. Times are in seconds; None: it did not come to that."""

    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(16)}")
    mode: Mode | None = None
    degraded: str | None = None
    drafted: Drafted = _NO_DRAFT
    draft_s: float | None = None
    strong_s: float | None = None
    first_s: float | None = None
    strong_usage: Usage | None = None
    weak_usage: Usage = _NOTHING


class Gateway:
    """The flow of a request, and the policy for failures."""

    def __init__(self, settings: Settings, redactor: Redactor | None = None) -> None:
        self._settings, self._redactor = settings, redactor

    async def complete(self, served: Served, request: ChatRequest, exchange: Exchange) -> Body:
        """The whole answer. Raises ApiError, and Unavailable where no model can answer."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._settings.deadline_s
        body = await self._framed(served, request, exchange, until)
        began = loop.time()
        try:
            answer = await served.backend.complete(body, until)
            exchange.strong_s = loop.time() - began
        except Unavailable as failure:
            answer = self._weak_alone(request, exchange, failure)
        self._dress(served, answer, exchange)
        if request.extension.details:
            answer["cowest"] = details(exchange, loop.time() - (until - self._settings.deadline_s))
        return answer

    async def stream(self, served: Served, request: ChatRequest, exchange: Exchange) -> AsyncGenerator[Body, None]:
        """The chunks as they arrive; the details come in one of their own at the end. Raises as ``complete`` does."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._settings.deadline_s
        start = until - self._settings.deadline_s
        body = await self._framed(served, request, exchange, until)
        if request.extension.early_draft and exchange.drafted.text is not None:
            yield _early(served, exchange)
        began, last = loop.time(), None
        async with aclosing(self._chunks(served, request, body, exchange, until)) as chunks:
            async for chunk in chunks:
                if last is None:
                    exchange.first_s = loop.time() - start
                self._dress(served, chunk, exchange)
                last = chunk
                yield chunk
        exchange.strong_s = loop.time() - began if exchange.mode != "weak_alone" else None
        if request.extension.details and last is not None:
            head = {key: last.get(key) for key in ("id", "object", "created", "model")}
            yield {**head, "choices": [], "cowest": details(exchange, loop.time() - start)}

    async def _chunks(
        self, served: Served, request: ChatRequest, body: Body, exchange: Exchange, until: float
    ) -> AsyncGenerator[Body, None]:
        begun = False
        try:
            async with aclosing(served.backend.stream(body, until)) as chunks:
                async for chunk in chunks:
                    begun = True
                    yield chunk
        except Unavailable as failure:
            if begun:  # what was sent cannot be taken back
                raise
            for chunk in chunks_of(self._weak_alone(request, exchange, failure), request.wants_usage):
                yield chunk

    async def _framed(self, served: Served, request: ChatRequest, exchange: Exchange, until: float) -> Body:
        """The body for the backend, after the draft; ``exchange`` gets the mode, and why it is not the one that was asked."""
        asked = conversation(request, exchange.id)
        if served.drafter is None:
            exchange.mode = served.alone
            weak = served.alone == "weak_alone" and asked.has_question
            framed = asked.as_draft(served.frames) if weak else asked.alone(served.frames)
            return {**request.body, "messages": _values(framed)}
        drafted = await self._draft(served.drafter, served.frames, asked, exchange, until)
        if drafted.text is None:
            exchange.mode, exchange.degraded = "strong_alone", drafted.problem
            return {**request.body, "messages": _values(asked.alone(served.frames))}
        exchange.mode = "both"
        return {**request.body, "messages": _values(asked.with_draft(served.frames, drafted.text))}

    async def _draft(
        self, drafter: Drafter, frames: Frames, asked: Conversation, exchange: Exchange, until: float
    ) -> Drafted:
        if not asked.has_question:
            exchange.drafted = Drafted(None, "no_question")
            return exchange.drafted
        now = asyncio.get_running_loop().time()
        drafted = await self._redacted(await drafter.draft(asked.for_weak(frames), now, until))
        exchange.draft_s = asyncio.get_running_loop().time() - now
        exchange.drafted, exchange.weak_usage = drafted, drafted.usage
        return drafted

    async def _redacted(self, drafted: Drafted) -> Drafted:
        """The draft as it may leave: a weak model can write what it has learned by heart. Raises ApiError."""
        if self._redactor is None or drafted.text is None or drafted.completion is None:
            return drafted
        text = await self._redactor.text(drafted.text)
        completion = drafted.completion.model_copy(update={"text": text})
        return Drafted(text, None, completion) if text.strip() else Drafted(None, "draft_empty", completion)

    def _weak_alone(self, request: ChatRequest, exchange: Exchange, failure: Unavailable) -> Body:
        """The draft as the answer, where policy and request allow it. Raises Unavailable."""
        done = exchange.drafted.completion
        if (
            self._settings.strong_down == "error"
            or exchange.drafted.text is None
            or done is None
            or not _plain_text(request.body)
        ):
            raise failure
        exchange.mode, exchange.degraded = "weak_alone", f"strong_{failure.kind}"
        answer = completion_of("", [done])
        exchange.weak_usage = Usage()  # it is in the answer's own usage
        return answer

    def _dress(self, served: Served, answer: Body, exchange: Exchange) -> None:
        """Our id and model name in an answer or chunk, and both models' tokens in its usage."""
        mode = exchange.mode or "both"
        found = usage_of(answer)
        if found is not None:
            if mode == "weak_alone":
                exchange.weak_usage = found
            else:
                exchange.strong_usage = found
                count_both(answer, found, exchange.weak_usage)
        answer["id"], answer["model"] = exchange.id, served.name_of(mode)


def details(exchange: Exchange, total_s: float) -> Body:
    """The answer's ``cowest`` field, as docs/serving.md has it."""
    times = {"draft": exchange.draft_s, "strong": exchange.strong_s, "first_token": exchange.first_s, "total": total_s}
    timings: Body = {name: None if value is None else round(value * 1000, 2) for name, value in times.items()}
    return {
        "draft": exchange.drafted.text,
        "mode": exchange.mode,
        "degraded": exchange.degraded,
        "timings_ms": timings,
        "usage": {"weak": _counts(exchange.weak_usage), "strong": _counts(exchange.strong_usage)},
    }


def _early(served: Served, exchange: Exchange) -> Body:
    """A chunk with nothing but the draft, for who wants to see it before the strong model has answered."""
    head: Body = {"id": exchange.id, "object": "chat.completion.chunk", "created": int(time.time()), "model": served.id}
    return head | {"choices": [], "cowest": {"draft": exchange.drafted.text}}


def _counts(usage: Usage | None) -> JsonValue:
    if usage is None or not usage.calls:
        return None
    return {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens}


def _plain_text(body: Body) -> bool:
    """Whether a request asks for one plain text: the weak model's draft is no tool call, no JSON of a schema, and one only."""
    form, tools, choice = body.get("response_format"), body.get("tools"), body.get("tool_choice")
    text = form is None or (isinstance(form, dict) and form.get("type") == "text")
    no_tools = not tools or choice == "none"
    return text and no_tools and body.get("n") in (None, 1) and not body.get("logprobs") and not body.get("functions")


def _values(messages: list[Body]) -> JsonValue:
    return [*messages]
