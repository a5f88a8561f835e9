"""CoWest at inference (paper, step 7): y* = pi_s(x, pi_w*(x))."""

from __future__ import annotations

from dataclasses import dataclass

from cowest.collaboration.calls import Tally
from cowest.collaboration.draft import ask_for_draft
from cowest.collaboration.refine import ask_to_refine
from cowest.models.window import Window
from cowest.protocols import ChatModel, Frames
from cowest.systems.calls import predict
from cowest.types import Completion, Example, Prediction, Sampling


@dataclass(frozen=True, slots=True)
class Collaboration:
    """The weak model drafts, the strong model refines. A draft that does not fit the window is cut, and it is said."""

    weak: ChatModel
    strong: ChatModel
    frames: Frames
    draft_sampling: Sampling = Sampling()
    answer_sampling: Sampling = Sampling()
    name: str = "collab"
    weak_window: Window | None = None
    strong_window: Window | None = None

    async def answer(self, example: Example) -> Prediction:
        """Both calls are needed; ``error`` says which one failed and why, and what the other took is kept."""
        return await predict(example, self.name, self._steps)

    async def _steps(self, example: Example, tally: Tally) -> Completion:
        draft = await ask_for_draft(tally, self.weak, self.frames, example, self.draft_sampling, self.weak_window)
        return await ask_to_refine(
            tally, self.strong, self.frames, example, draft.text, self.answer_sampling, self.strong_window
        )
