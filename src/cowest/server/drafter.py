"""The weak model's draft, or the reason why there is none: nothing that it does may cost the client the answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from cowest.collaboration.calls import many_at_once
from cowest.errors import BudgetExceededError, ModelCallError
from cowest.models.answer import visible
from cowest.protocols import ChatModel, ManyChatModel
from cowest.server.breaker import Breaker
from cowest.server.errors import Unavailable
from cowest.server.faults import ANSWER_FAULTS, REQUEST_FAULTS, draft_fault
from cowest.server.upstream import patience
from cowest.types import Completion, Message, Sampling, Usage

logger = logging.getLogger(__name__)

_LONGEST_UNIT: Final = 200
_REPEATS: Final = 6
_SHORTEST_LOOP: Final = 100


@dataclass(frozen=True, slots=True)
class Drafted:
    """A draft, or ``problem``: why there is none (docs/serving.md lists the reasons). ``usage`` counts either way."""

    text: str | None
    problem: str | None = None
    completion: Completion | None = None

    @property
    def usage(self) -> Usage:
        """What the draft took."""
        return Usage() if self.completion is None else self.completion.usage


def ends_in_loop(text: str) -> bool:
    """Whether a text ends in one unit (up to 200 characters) said six times or more, over at least 100 characters."""
    text = text.rstrip()
    if len(text) < _SHORTEST_LOOP:
        return False
    for unit in range(1, min(_LONGEST_UNIT, len(text) // _REPEATS) + 1):
        if text[-1] != text[-1 - unit]:  # says no in most cases, and is cheap
            continue
        needed = max(_SHORTEST_LOOP, unit * _REPEATS) - unit
        if len(text) >= needed + unit and text[-needed:] == text[-needed - unit : -unit]:
            return True
    return False


class Drafter:
    """Asks the weak model once, within ``deadline_s`` seconds, and looks at what came."""

    def __init__(
        self, weak: ChatModel, sampling: Sampling, breaker: Breaker, *, deadline_s: float, max_chars: int
    ) -> None:
        self._weak, self._sampling, self._breaker = weak, sampling, breaker
        self._deadline_s, self._max_chars = deadline_s, max_chars

    async def draft(self, messages: Sequence[Message], now: float, until: float) -> Drafted:
        """Never raises, but for a cancellation; ``now`` and ``until`` are the event loop's times."""
        try:
            with self._breaker.guarded():
                async with patience(min(until, now + self._deadline_s)):
                    done = await self._ask(messages)
        except Unavailable as error:
            return Drafted(None, draft_fault(error.kind))
        problem = self._problem(done.text)
        return Drafted(None if problem else done.text, problem, done)

    async def _ask(self, messages: Sequence[Message]) -> Completion:
        try:
            return visible(await self._weak.generate(messages, self._sampling), self._weak.name)
        except ModelCallError as error:
            down = error.kind not in ANSWER_FAULTS | REQUEST_FAULTS
            raise Unavailable(draft_fault(error.kind), "no draft", down=down) from None
        except BudgetExceededError:
            raise Unavailable("budget", "no draft", down=False) from None
        except Exception:  # a bug in the weak side must not cost the answer
            logger.exception("the weak model failed in an unexpected way")
            raise Unavailable("weak_down", "no draft") from None

    def _problem(self, text: str) -> str | None:
        if not text.strip():
            return "draft_empty"
        if len(text) > self._max_chars:
            return "draft_too_long"
        return "draft_repetition" if ends_in_loop(text) else None


weak_share: Final = ContextVar[list[Usage] | None]("weak_share", default=None)
"""What the weak model has taken within the system of several calls that answers now; noted where it is asked."""


def _noted(done: Completion) -> Completion:
    if (share := weak_share.get()) is not None:
        share.append(done.usage)
    return done


def as_drafts(weak: ChatModel) -> ChatModel:
    """A weak model within a system of several calls: its failures are told apart from the strong model's by their kind."""
    many = many_at_once(weak)
    return _Drafts(weak) if many is None else _ManyDrafts(many)


class _Drafts:
    def __init__(self, weak: ChatModel) -> None:
        self._weak = weak

    @property
    def name(self) -> str:
        return self._weak.name

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        try:
            return visible(_noted(await self._weak.generate(messages, sampling)), self.name)
        except ModelCallError as error:
            raise ModelCallError(draft_fault(error.kind), str(error)) from None

    async def aclose(self) -> None:
        """The model is closed by who opened it."""


class _ManyDrafts(_Drafts):
    many = True

    def __init__(self, weak: ManyChatModel) -> None:
        super().__init__(weak)
        self._many = weak

    async def generate_many(self, messages: Sequence[Message], sampling: Sampling, n: int) -> Sequence[Completion]:
        try:
            return [_noted(done) for done in await self._many.generate_many(messages, sampling, n)]
        except ModelCallError as error:
            raise ModelCallError(draft_fault(error.kind), str(error)) from None
