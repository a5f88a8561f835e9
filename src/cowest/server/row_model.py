"""A row of ``cowest table`` (bm25, best_of_k, ...) behind a model id: a System as a ChatModel.

The server's frames put a question as a text; a System wants the Example. So :class:`HandedOver` writes it as JSON,
earlier turns and all, which :class:`RowModel` reads again. The row samples as the recipe says: what a client asks of temperature,
tokens or seed does not reach it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cowest.errors import ModelCallError
from cowest.models.answer import CUT_OFF
from cowest.protocols import System
from cowest.types import Completion, Example, Message, Sampling


@dataclass(frozen=True, slots=True)
class HandedOver:
    """Implements :class:`cowest.protocols.Frames` for a RowModel."""

    def draft(self, example: Example) -> tuple[Message, ...]:
        return self.solo(example)

    def solo(self, example: Example) -> tuple[Message, ...]:
        return (Message(role="user", content=example.model_dump_json()),)

    def refine(self, example: Example, draft: str) -> tuple[Message, ...]:
        raise NotImplementedError("a row drafts for itself")


class RowModel:
    """Implements :class:`cowest.protocols.ChatModel` with a System; the usage is that of all its calls."""

    def __init__(self, system: System) -> None:
        self._system = system

    @property
    def name(self) -> str:
        """The row's name."""
        return self._system.name

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Answer the last user turn. Raises ModelCallError of the kind that the row's failed call had."""
        question = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
        if question < 0 or not messages[question].content.strip():
            raise ModelCallError("no_question", f"{self.name}: there is no user turn with a text")
        example = Example.model_validate_json(messages[question].content)
        answered = await self._system.answer(example)
        if answered.text is None:
            told = answered.error or (f"{CUT_OFF}: cut off at max_tokens" if answered.truncated else "failed")
            kind, _, reason = told.partition(": ")
            raise ModelCallError(kind, f"{self.name}: {reason or kind}")
        reason = "length" if answered.truncated else "stop"
        return Completion(text=answered.text, finish_reason=reason, usage=answered.usage, latency_s=answered.latency_s)

    async def aclose(self) -> None:
        """The models that the row is made of are closed by who opened them."""
