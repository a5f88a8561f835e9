"""A row of ``cowest table`` (bm25, best_of_k, ...) behind a model id: a System as a ChatModel.

The server's frames put a question as a text; a System wants the Example. So :class:`HandedOver` writes it as JSON,
earlier turns and all, which :class:`RowModel` reads again. The row samples as the recipe says: what a client asks of temperature,
tokens or seed does not reach it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from cowest.errors import ModelCallError
from cowest.models.answer import CUT_OFF
from cowest.models.stream import rest_of
from cowest.protocols import StreamingSystem, System
from cowest.server.drafter import weak_share
from cowest.types import Completion, Example, Message, Prediction, RouteDecision, Sampling, Usage


@dataclass(frozen=True, slots=True)
class HandedOver:
    """Implements :class:`cowest.protocols.Frames` for a RowModel."""

    def draft(self, example: Example) -> tuple[Message, ...]:
        return self.solo(example)

    def solo(self, example: Example) -> tuple[Message, ...]:
        return (Message(role="user", content=example.model_dump_json()),)

    def refine(self, example: Example, draft: str) -> tuple[Message, ...]:
        raise NotImplementedError("a row drafts for itself")


KEPT = 4096
"""Questions whose decisions are kept at most."""


@dataclass(frozen=True, slots=True)
class Beyond:
    """What the weak model has taken of the answer's usage; of a system that decides: who answered, and from which draft."""

    weak: Usage
    route: RouteDecision | None = None
    draft: str | None = None


class RowModel:
    """Implements :class:`cowest.protocols.ChatModel` with a System; the usage is that of all its calls.

    What the system says beyond its text is kept by the question's id until the gateway takes it (:meth:`take`).
    """

    def __init__(self, system: System) -> None:
        self._system = system
        self._beyond = OrderedDict[str, Beyond]()

    @property
    def name(self) -> str:
        """The row's name."""
        return self._system.name

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Answer the last user turn. Raises ModelCallError of the kind that the row's failed call had."""
        taken = list[Usage]()
        weak_share.set(taken)
        return self._completion(await self._system.answer(self._example(messages)), taken)

    def _example(self, messages: Sequence[Message]) -> Example:
        question = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
        if question < 0 or not messages[question].content.strip():
            raise ModelCallError("no_question", f"{self.name}: there is no user turn with a text")
        return Example.model_validate_json(messages[question].content)

    def _completion(self, answered: Prediction, taken: Sequence[Usage]) -> Completion:
        """The answer; ``taken`` is what the weak model took for it."""
        weak, decided = sum(taken, Usage()), answered.route is not None
        if decided or weak.calls:
            draft = answered.draft if decided else None
            if (other := self._beyond.get(answered.example_id)) is not None:  # of several answers that were asked for
                weak += other.weak
            self._beyond[answered.example_id] = Beyond(weak, answered.route, draft)
            while len(self._beyond) > KEPT:  # of requests whose client left before the answer
                self._beyond.popitem(last=False)
        if answered.text is None:
            told = answered.error or (f"{CUT_OFF}: cut off at max_tokens" if answered.truncated else "failed")
            kind, _, reason = told.partition(": ")
            raise ModelCallError(kind, f"{self.name}: {reason or kind}")
        reason = "length" if answered.truncated else "stop"
        return Completion(text=answered.text, finish_reason=reason, usage=answered.usage, latency_s=answered.latency_s)

    def take(self, example_id: str) -> Beyond | None:
        """What is known of this question's answer beyond its text; None where that is nothing, and once it was taken."""
        return self._beyond.pop(example_id, None)

    async def aclose(self) -> None:
        """The models that the row is made of are closed by who opened them."""


class StreamedRow(RowModel):
    """Implements :class:`cowest.protocols.StreamingChatModel` with a system that tells its answer while it is written."""

    def __init__(self, system: StreamingSystem) -> None:
        super().__init__(system)
        self._telling = system

    async def stream(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[str | Completion, None]:
        """The pieces of the last call's text, then the whole, with the usage of all calls. Raises as ``generate``."""
        example, news = self._example(messages), asyncio.Queue[str | None]()  # as long as the text at most
        taken = list[Usage]()
        weak_share.set(taken)
        telling = asyncio.ensure_future(self._telling.tell(example, news.put_nowait))
        telling.add_done_callback(lambda _: news.put_nowait(None))
        said = ""
        try:
            while (piece := await news.get()) is not None:
                said += piece
                yield piece
            done = self._completion(await telling, taken)
        finally:
            telling.cancel()  # of a client that leaves: nothing more is asked
        rest = rest_of(done.text, said)
        if rest is None:
            raise ModelCallError("bad_response", f"{self.name}: what was streamed was thinking, and not the answer")
        if rest:
            yield rest
        yield done
