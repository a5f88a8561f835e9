"""Advise after an attempt: the strong model tries alone, the weak one advises on the attempt, the strong one decides."""

from __future__ import annotations

from dataclasses import dataclass

from cowest.models.window import Window
from cowest.protocols import ChatModel, Frames, Hear, InteractionFrames
from cowest.systems.calls import Tally, predict
from cowest.systems.interactions.turn import AdviseTurn
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

    async def tell(self, example: Example, hear: Hear) -> Prediction:
        """See StreamingSystem."""
        return await predict(example, self.name, self._steps, hear)

    async def _steps(self, example: Example, tally: Tally) -> Completion:
        turn = AdviseTurn(self.turns, self.weak_window, self.strong_window)
        before = await attempted(tally, self.strong, self.frames, example, self.answer_sampling, self.strong_window)
        read = turn.asked(example, before, tally)
        advice = await tally.ask(self.weak, read, self.draft_sampling, "advise", self.weak_window)
        tally.draft, tally.draft_thinking = advice.text, advice.thinking
        both = turn.after(example, before, advice.text, tally)
        return await tally.answer(self.strong, both, self.answer_sampling, "decide", self.strong_window)


async def attempted(
    tally: Tally, strong: ChatModel, frames: Frames, example: Example, sampling: Sampling, window: Window | None = None
) -> tuple[str]:
    """What comes before the advice: the strong model's answer alone. Raises CallFailed."""
    return ((await tally.ask(strong, frames.solo(example), sampling, "attempt", window)).text,)
