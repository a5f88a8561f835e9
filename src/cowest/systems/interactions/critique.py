"""Critique: the weak model's draft is read by the strong one, mended by the weak one, and then answered with."""

from __future__ import annotations

from dataclasses import dataclass

from cowest.collaboration.draft import ask_for_draft
from cowest.collaboration.refine import ask_to_refine
from cowest.models.window import Window
from cowest.protocols import ChatModel, Frames, InteractionFrames
from cowest.systems.calls import Tally, predict
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

    async def _steps(self, example: Example, tally: Tally) -> Completion:
        first = await ask_for_draft(tally, self.weak, self.frames, example, self.draft_sampling, self.weak_window)
        read = fitting(tally, self.strong_window, (first.text,), lambda t: self.turns.critique(example, t[0]))
        lacks = await tally.ask(self.strong, read, self.answer_sampling, "critique", self.strong_window)
        # Where not both fit, the critique stays: without it there is nothing to revise by.
        mend = fitting(
            tally, self.weak_window, (lacks.text, first.text), lambda t: self.turns.revise(example, t[1], t[0])
        )
        revised = await tally.ask(self.weak, mend, self.draft_sampling, "revise", self.weak_window)
        tally.draft, tally.draft_thinking = revised.text, revised.thinking
        return await ask_to_refine(
            tally, self.strong, self.frames, example, revised.text, self.answer_sampling, self.strong_window
        )
