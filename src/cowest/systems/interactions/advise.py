"""Advise after an attempt: the strong model tries alone, the weak one advises on the attempt, the strong one decides."""

from __future__ import annotations

from dataclasses import dataclass

from cowest.models.window import Window
from cowest.protocols import ChatModel, Frames, InteractionFrames
from cowest.systems.calls import Tally, predict
from cowest.systems.interactions.turns import fitting
from cowest.types import Completion, Example, Prediction, Sampling


@dataclass(frozen=True, slots=True)
class Advise:
    """The order of the collaboration turned round: advice on an attempt in place of a draft before one.

    The attempt is the request of the strong model alone, so that a table pays for it once. Two calls of the strong model, one of
    the weak one.
    """

    weak: ChatModel
    strong: ChatModel
    frames: Frames
    turns: InteractionFrames
    draft_sampling: Sampling
    answer_sampling: Sampling
    name: str
    weak_window: Window | None = None
    strong_window: Window | None = None

    async def answer(self, example: Example) -> Prediction:
        """All three calls are needed; ``error`` says which one failed and why. ``draft`` is the advice."""
        return await predict(example, self.name, self._steps)

    async def _steps(self, example: Example, tally: Tally) -> Completion:
        solo, window = self.frames.solo(example), self.strong_window
        attempt = (await tally.ask(self.strong, solo, self.answer_sampling, "attempt", window)).text
        read = fitting(tally, self.weak_window, (attempt,), lambda t: self.turns.advise(example, t[0]))
        advice = await tally.ask(self.weak, read, self.draft_sampling, "advise", self.weak_window)
        tally.draft, tally.draft_thinking = advice.text, advice.thinking
        # Where not both fit, the advice stays: what it made of the question alone, the strong model can make again.
        both = fitting(tally, window, (advice.text, attempt), lambda t: self.turns.decide(example, t[1], t[0]))
        return await tally.ask(self.strong, both, self.answer_sampling, "decide", window)
