"""Self-refine: the model criticises and mends its own answer, the control for "two calls instead of one"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cowest.models.window import Window
from cowest.protocols import ChatModel
from cowest.systems.calls import Ask, Tally, predict
from cowest.types import Completion, Example, Message, Prediction, Sampling


@dataclass(frozen=True, slots=True)
class SelfRefine:
    """Madaan et al. 2023 (arXiv 2303.17651), one round: an answer, then ``mend`` asks for criticism and a better answer.

    Departures: the paper asks for feedback and for the mended answer in two calls and goes on until the feedback says stop;
    here both are one reply, and there is one round, so that it takes as many calls as the collaboration whose control it is.
    """

    model: ChatModel
    ask: Ask
    mend: Callable[[Example, str], Sequence[Message]]
    sampling: Sampling
    name: str
    window: Window | None = None

    async def answer(self, example: Example) -> Prediction:
        """Both calls are needed; ``error`` says which one failed and why. ``draft`` is the first attempt."""
        return await predict(example, self.name, self._steps)

    async def _steps(self, example: Example, tally: Tally) -> Completion:
        first = await tally.ask(self.model, self.ask(example), self.sampling, "answer", self.window)
        tally.draft, tally.draft_thinking = first.text, first.thinking
        return await tally.ask(self.model, self.mend(example, first.text), self.sampling, "mend", self.window)
