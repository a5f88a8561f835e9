"""What happens to a request: a route decides who answers, the weak model drafts, the strong one refines, either may stand in."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Literal

from pydantic import JsonValue

from cowest.collaboration.guard.policy import STRONG_FAILED, WEAK_FAILED
from cowest.collaboration.routes import BOTH
from cowest.protocols import Frames, Route
from cowest.server.answers import chunks_of, completion_of, count_both, less, usage_of
from cowest.server.breaker import Breaker
from cowest.server.conversation import Conversation, conversation
from cowest.server.drafter import Drafted, Drafter
from cowest.server.errors import ApiError, Unavailable
from cowest.server.faults import NO_TEXT, DraftFailed, draft_fault
from cowest.server.redaction import Redactor
from cowest.server.request import Body, ChatRequest, wants_usage
from cowest.server.row_model import Beyond
from cowest.server.settings import Settings
from cowest.server.upstream import Backend
from cowest.types import Completion, Example, RouteDecision, RouteFacts, Usage

logger = logging.getLogger("cowest.server")

Mode = Literal["both", "strong_alone", "weak_alone"]
Lookup = Callable[[Example], Example]
_NO_DRAFT: Final = Drafted(None)
_NOTHING: Final = Usage()
_NO_BREAKERS: Final[Mapping[str, Breaker]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Alone:
    """A model that can answer alone, and how it is asked."""

    backend: Backend
    frames: Frames


@dataclass(frozen=True, slots=True)
class About:
    """What ``/v1/models`` tells of an id.

    ``answer_tokens``: of an answer whose length the client leaves open; None: the model's own limit. ``draft_tokens``: of a draft.
    ``created``: Unix time at which the run (or the recipe) was finished. ``examples``: questions that its page offers.
    """

    system: str
    created: int
    answer_tokens: int | None
    draft_tokens: int | None = None
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True, slots=True)
class Served:
    """A model id. With a ``drafter`` it is a collaboration; without one ``backend`` answers, and ``alone`` says whose answer it is.

    (``both``: that of a system which makes calls of its own to either.) ``frames`` put the question; ``weak_id`` and ``strong_id``
    are the ids under which either alone answers; ``task`` is the recipe's domain, '' its only one. A collaboration asks ``route``
    who answers, and ``weak`` where that is the weak model alone. ``strong`` stands in where the weak model of a system of several
    calls gave no draft. ``lookup`` adds passages of the operator's documents to a question's context; blocking. ``beyond`` tells,
    once, of a system that decides who answers what it decided; ``promise`` what is promised of it now.
    """

    id: str
    frames: Frames
    backend: Backend
    alone: Mode = "strong_alone"
    drafter: Drafter | None = None
    weak_id: str = ""
    strong_id: str = ""
    task: str = ""
    weak: Backend | None = None
    strong: Alone | None = None
    route: Route = BOTH
    about: About = About("", 0, None)
    lookup: Lookup | None = None
    beyond: Callable[[str], Beyond | None] | None = None
    promise: Callable[[], Body] | None = None

    def name_of(self, mode: Mode) -> str:
        """The id that tells which of the models answered."""
        if mode == "both" or (mode == self.alone and self.drafter is None):
            return self.id
        return (self.weak_id if mode == "weak_alone" else self.strong_id) or self.id


def new_id(prefix: str) -> str:
    """An id that cannot be guessed: whoever knows an exchange's may judge it."""
    return f"{prefix}{secrets.token_hex(16)}"


@dataclass(slots=True)
class Exchange:
    """What became of one request. Times are in seconds (``created``: since 1970); None: it did not come to that."""

    id: str = field(default_factory=lambda: new_id("chatcmpl-"))
    created: int = field(default_factory=lambda: int(time.time()))
    mode: Mode | None = None
    degraded: str | None = None
    route: RouteDecision | None = None
    drafted: Drafted = _NO_DRAFT
    draft_s: float | None = None
    strong_s: float | None = None
    first_s: float | None = None
    strong_usage: Usage | None = None
    weak_usage: Usage = _NOTHING
    context: str | None = None
    promise: Body | None = None
    within: Usage | None = None
    """What the weak model has taken of the answer's own usage, where a system of several calls answers."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """Who is asked, and with what; ``instead`` is asked where that gives no answer for the weak model's fault."""

    backend: Backend
    body: Body
    instead: _Plan | None = None


class Gateway:
    """The flow of a request, and the policy for failures."""

    def __init__(
        self, settings: Settings, redactor: Redactor | None = None, breakers: Mapping[str, Breaker] = _NO_BREAKERS
    ) -> None:
        self._settings, self._redactor, self._breakers = settings, redactor, breakers

    async def complete(self, served: Served, request: ChatRequest, exchange: Exchange) -> Body:
        """The whole answer. Raises ApiError, and Unavailable where no model can answer."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        until = start + self._settings.deadline_s
        plan = await self._plan(served, request, exchange, until)
        began = loop.time()
        try:
            answer = await plan.backend.complete(plan.body, until)
        except (ApiError, Unavailable) as failure:
            plan = self._stand_in(plan, request, exchange, failure)
            answer = await plan.backend.complete(plan.body, until)
        exchange.strong_s = loop.time() - began if exchange.mode != "weak_alone" else None
        self._dress(served, answer, exchange)
        if request.extension.details:
            answer["cowest"] = details(exchange, loop.time() - start)
        return answer

    async def stream(self, served: Served, request: ChatRequest, exchange: Exchange) -> AsyncGenerator[Body, None]:
        """The chunks as they arrive; the details come in one of their own at the end. Raises as ``complete`` does."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        until = start + self._settings.deadline_s
        plan = await self._plan(served, request, exchange, until)
        if request.extension.early_draft and exchange.drafted.text is not None:
            yield _early(served, exchange)
        began, last = loop.time(), None
        async with aclosing(self._chunks(plan, request, exchange, until)) as chunks:
            async for chunk in chunks:
                if last is None:
                    exchange.first_s = loop.time() - start
                self._dress(served, chunk, exchange, "chat.completion.chunk")
                last = chunk
                yield chunk
        exchange.strong_s = loop.time() - began if exchange.mode != "weak_alone" else None
        if request.extension.details and last is not None:
            head = {key: last.get(key) for key in ("id", "object", "created", "model")}
            yield {**head, "choices": [], "cowest": details(exchange, loop.time() - start)}

    async def _chunks(
        self, plan: _Plan, request: ChatRequest, exchange: Exchange, until: float
    ) -> AsyncGenerator[Body, None]:
        begun = False
        try:
            async with aclosing(plan.backend.stream(plan.body, until)) as chunks:
                async for chunk in chunks:
                    begun = True
                    yield chunk
            return
        except (ApiError, Unavailable) as failure:
            if begun:  # what was sent cannot be taken back
                raise
            plan = self._stand_in(plan, request, exchange, failure)
        async with aclosing(plan.backend.stream(plan.body, until)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _plan(self, served: Served, request: ChatRequest, exchange: Exchange, until: float) -> _Plan:
        """Who answers, after the draft; ``exchange`` gets the mode, and why it is not the one that was asked.

        Nobody is asked before the request is known to be answerable, as far as that can be known. Raises ApiError, Unavailable.
        """
        asked = await self._looked_up(served, conversation(request, exchange.id))
        exchange.context = asked.example.context
        if served.drafter is None:
            return self._single(served, request, asked, exchange)
        alone = _Plan(served.backend, _with(request, asked.alone(served.frames)))
        served.backend.check(alone.body)
        decision = exchange.route = await self._decide(served, request, asked)
        if decision.who == "weak" and served.weak is not None:
            exchange.mode = "weak_alone"
            return _Plan(served.weak, _with(request, asked.as_draft(served.frames)), instead=alone)
        self._check_up(request)
        exchange.mode = "strong_alone"
        if decision.who == "strong":
            exchange.degraded = None if asked.has_question else "no_question"
            return alone
        drafted = await self._draft(served.drafter, served.frames, asked, exchange, until)
        if drafted.text is None:
            exchange.degraded = drafted.problem
            return alone
        refined = _Plan(served.backend, _with(request, asked.with_draft(served.frames, drafted.text)))
        try:
            refined.backend.check(refined.body)
        except ApiError:  # the question fits the strong model's window, and the draft beside it does not
            exchange.degraded = "draft_no_room"
            return alone
        exchange.mode = "both"
        return refined

    async def _looked_up(self, served: Served, asked: Conversation) -> Conversation:
        """With passages of the documents in the context, which go through the redaction like a client's texts. Raises ApiError."""
        if served.lookup is None or not asked.has_question:
            return asked
        found = await asyncio.to_thread(served.lookup, asked.example)
        if self._redactor is not None and found.context is not None and found.context != asked.example.context:
            found = found.model_copy(update={"context": await self._redactor.text(found.context)})
        return replace(asked, example=found)

    def _single(self, served: Served, request: ChatRequest, asked: Conversation, exchange: Exchange) -> _Plan:
        """The plan for an id behind which there is one model, or a system that makes its own calls."""
        exchange.mode = served.alone
        weak = served.alone == "weak_alone" and asked.has_question
        framed = asked.as_draft(served.frames) if weak else asked.alone(served.frames)
        plan = _Plan(served.backend, _with(request, framed))
        served.backend.check(plan.body)
        if served.strong is None:
            return plan
        alone = _with(request, asked.alone(served.strong.frames))
        return _Plan(plan.backend, plan.body, instead=_Plan(served.strong.backend, alone))

    def _check_up(self, request: ChatRequest) -> None:
        """Raise Unavailable at once where the strong model is left alone, and a draft could not be the answer."""
        refused = self._breakers["strong"].refusal() if "strong" in self._breakers else None
        if refused is not None and not self._weak_may_answer(request):
            raise refused

    def _weak_may_answer(self, request: ChatRequest) -> bool:
        return self._settings.strong_down == "weak" and _plain_text(request.body)

    async def _decide(self, served: Served, request: ChatRequest, asked: Conversation) -> RouteDecision:
        """What the route says, where there is a choice. A route that fails must not cost the client the answer."""
        if not asked.has_question:
            return RouteDecision(who="strong", reason="no_question")
        if asked.in_tool_loop:
            return RouteDecision(who="strong", reason="tool_loop")
        up = {side: breaker.refusal() is None for side, breaker in self._breakers.items()}
        facts = RouteFacts(
            turns=asked.turn,
            plain=_plain_text(request.body),
            weak_up=up.get("weak", True),
            strong_up=up.get("strong", True),
        )
        try:
            async with asyncio.timeout(self._settings.draft_deadline_s):
                decision = RouteDecision.model_validate(await served.route.choose(asked.example, facts))
        except Exception:
            logger.exception("the route failed")
            return RouteDecision(who="both", reason="route_failed")
        if decision.who == "weak":
            try:
                if served.weak is None or not facts.plain:
                    return RouteDecision(who="both", reason="weak_cannot")
                served.weak.check(_with(request, asked.as_draft(served.frames)))
            except ApiError:
                return RouteDecision(who="both", reason="weak_cannot")
        return decision

    async def _draft(
        self, drafter: Drafter, frames: Frames, asked: Conversation, exchange: Exchange, until: float
    ) -> Drafted:
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

    def _stand_in(
        self, plan: _Plan, request: ChatRequest, exchange: Exchange, failure: ApiError | Unavailable
    ) -> _Plan:
        """Who answers in place of a backend that did not, where policy and request allow it. Raises the failure."""
        if exchange.mode == "weak_alone" or isinstance(failure, DraftFailed):
            return self._without_weak(plan, exchange, failure)
        done = exchange.drafted.completion
        if (
            isinstance(failure, ApiError)
            or exchange.drafted.text is None
            or done is None
            or not self._weak_may_answer(request)
        ):
            raise failure
        exchange.mode, exchange.degraded = "weak_alone", f"strong_{failure.kind}"
        exchange.weak_usage = Usage()  # it is in the answer's own usage
        return _Plan(_Ready(completion_of("", [done])), plan.body)

    def _without_weak(self, plan: _Plan, exchange: Exchange, failure: ApiError | Unavailable) -> _Plan:
        """The strong model alone. Where the client asked for the weak one, which wrote nothing: that is its answer."""
        kind = draft_fault((failure.code or "") if isinstance(failure, ApiError) else failure.kind)
        if plan.instead is not None:
            exchange.mode, exchange.degraded = "strong_alone", kind
            return plan.instead
        if isinstance(failure, ApiError) or kind not in NO_TEXT:
            raise failure
        exchange.degraded = kind
        finish = "content_filter" if kind == "draft_refused" else "stop"
        return _Plan(_Ready(completion_of("", [Completion(text="", finish_reason=finish)])), plan.body)

    def _dress(self, served: Served, answer: Body, exchange: Exchange, kind: str = "chat.completion") -> None:
        """Our id, time and model name in an answer or chunk, whatever the endpoint says, and both models' tokens in its usage."""
        _decided(served, exchange)
        mode = exchange.mode or "both"
        found = usage_of(answer)
        if found is not None:
            if mode == "weak_alone":
                exchange.weak_usage = found
            elif exchange.within is not None:
                exchange.weak_usage, exchange.strong_usage = exchange.within, less(found, exchange.within)
            else:
                exchange.strong_usage = found
                count_both(answer, found, exchange.weak_usage)
        answer["id"], answer["model"] = exchange.id, served.name_of(mode)
        answer["object"], answer["created"] = kind, exchange.created


def _decided(served: Served, exchange: Exchange) -> None:
    """Who answered within a system that decides for itself, and what the weak model took for it, once its answer is there."""
    told = served.beyond(exchange.id) if served.beyond is not None and exchange.within is None else None
    if told is None:
        return
    exchange.within = told.weak
    if told.route is None:
        return
    modes: dict[str, Mode] = {"weak": "weak_alone", "strong": "strong_alone", "both": "both"}
    exchange.route, exchange.mode = told.route, modes[told.route.who]
    exchange.drafted = _NO_DRAFT if told.draft is None else Drafted(told.draft)
    if told.route.reason in (WEAK_FAILED, STRONG_FAILED):
        exchange.degraded = told.route.reason
    if served.promise is not None:
        exchange.promise = served.promise()


class _Ready:
    """Implements Backend with an answer that is there already."""

    def __init__(self, completion: Body) -> None:
        self._completion = completion

    def check(self, body: Body) -> None: ...

    async def complete(self, body: Body, until: float) -> Body:
        return self._completion

    async def stream(self, body: Body, until: float) -> AsyncGenerator[Body, None]:
        for chunk in chunks_of(self._completion, wants_usage(body)):
            yield chunk

    async def aclose(self) -> None: ...


def details(exchange: Exchange, total_s: float) -> Body:
    """The answer's ``cowest`` field, as docs/serving.md has it."""
    times = {"draft": exchange.draft_s, "strong": exchange.strong_s, "first_token": exchange.first_s, "total": total_s}
    timings: Body = {name: None if value is None else round(value * 1000, 2) for name, value in times.items()}
    return {
        "draft": exchange.drafted.text,
        "mode": exchange.mode,
        "degraded": exchange.degraded,
        "route": None if exchange.route is None else {"who": exchange.route.who, "reason": exchange.route.reason},
        **({} if exchange.promise is None else {"guard": exchange.promise}),
        "timings_ms": timings,
        "usage": {"weak": _counts(exchange.weak_usage), "strong": _counts(exchange.strong_usage)},
    }


def _early(served: Served, exchange: Exchange) -> Body:
    """A chunk with nothing but the draft, for who wants to see it before the strong model has answered."""
    head: Body = {"id": exchange.id, "object": "chat.completion.chunk", "created": exchange.created, "model": served.id}
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


def _with(request: ChatRequest, messages: list[Body]) -> Body:
    """The request's body with these messages in place of its own."""
    return {**request.body, "messages": [*messages]}
