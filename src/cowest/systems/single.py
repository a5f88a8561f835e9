"""One call: a model alone, the baselines that a collaboration has to beat.

What it is depends on how the query is put: zero-shot, few-shot (:func:`with_shots`; Brown et al. 2020), chain of thought (Kojima
et al. 2022, "think step by step"), or a tuned weak model's draft taken as the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cowest.models.window import Window
from cowest.protocols import ChatModel
from cowest.systems.calls import Ask, Tally, predict
from cowest.types import Completion, Example, Message, Prediction, Sampling


@dataclass(frozen=True, slots=True)
class SingleCall:
    """The model's answer to ``ask``; with a ``window``, in-context examples that do not fit are left out and counted."""

    model: ChatModel
    ask: Ask
    sampling: Sampling
    name: str
    window: Window | None = None

    async def answer(self, example: Example) -> Prediction:
        """One answer; a failed call gives ``text=None`` and the reason."""
        return await predict(example, self.name, self._steps)

    async def _steps(self, example: Example, tally: Tally) -> Completion:
        return await tally.ask(self.model, self.ask(example), self.sampling, window=self.window)


def with_shots(ask: Ask, shots: Sequence[tuple[Sequence[Message], str]]) -> Ask:
    """``ask`` with examples before the query: (how it was asked, right answer) as turns of user and assistant.

    The paper does not say how its few-shot prompts look; turns are what chat models know best. A system message stays first
    and is not repeated with each example.
    """
    turns = [
        message
        for asked, answered in shots
        for message in (*_without_system(asked), Message(role="assistant", content=answered))
    ]

    def asked_with_shots(example: Example) -> tuple[Message, ...]:
        messages = ask(example)
        system = [m for m in messages if m.role == "system"]
        return (*system, *turns, *_without_system(messages))

    return asked_with_shots


def _without_system(messages: Sequence[Message]) -> list[Message]:
    return [m for m in messages if m.role != "system"]
