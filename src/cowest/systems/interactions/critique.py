"""Critique: the weak model's draft is read by the strong one, mended by the weak one, and then answered with."""

from __future__ import annotations

from dataclasses import dataclass

from cowest.collaboration.draft import ask_for_draft
from cowest.models.window import Window
from cowest.protocols import ChatModel, Frames, Hear, InteractionFrames
from cowest.systems.calls import Tally, predict
from cowest.systems.interactions.turn import ReviseTurn
from cowest.systems.interactions.turns import fitting
from cowest.types import Completion, Example, Prediction, Sampling


@dataclass(frozen=True, slots=True)
class Critique:
    """Feedback and revision as in Self-Refine (Madaan et al. 2023, arXiv 2303.17651), with the roles on two models, one round.

    The weak model drafts, the strong one says what the draft lacks, the weak one writes it anew, the strong one answers with that
    as in the collaboration: two calls of each. Departure: the paper's model goes on until its feedback says stop.
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
        """All four calls are needed; ``error`` says which one failed and why. ``draft`` is the last one that was written."""
        return await predict(example, self.name, self._steps)

    async def tell(self, example: Example, hear: Hear) -> Prediction:
        """See StreamingSystem."""
        return await predict(example, self.name, self._steps, hear)

    async def _steps(self, example: Example, tally: Tally) -> Completion:
        first = await ask_for_draft(tally, self.weak, self.frames, example, self.draft_sampling, self.weak_window)
        turn, window = ReviseTurn(self.frames, self.turns, self.weak_window, self.strong_window), self.strong_window
        before = await criticised(tally, self.strong, self.turns, example, first.text, self.answer_sampling, window)
        mend = turn.asked(example, before, tally)
        revised = await tally.ask(self.weak, mend, self.draft_sampling, "revise", self.weak_window)
        tally.draft, tally.draft_thinking = revised.text, revised.thinking
        refined = turn.after(example, before, revised.text, tally)
        return await tally.answer(self.strong, refined, self.answer_sampling, "refine", window)


async def criticised(
    tally: Tally,
    strong: ChatModel,
    turns: InteractionFrames,
    example: Example,
    draft: str,
    sampling: Sampling,
    window: Window | None = None,
) -> tuple[str, str]:
    """What comes before the revision: the draft, and what the strong model says that it lacks. Raises CallFailed."""
    read = fitting(tally, window, (draft,), lambda t: turns.critique(example, t[0]))
    return draft, (await tally.ask(strong, read, sampling, "critique", window)).text
