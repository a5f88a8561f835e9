"""CoWest at inference (paper, step 7): y* = pi_s(x, pi_w*(x))."""

from __future__ import annotations

from dataclasses import dataclass

from cowest.collaboration.draft import draft
from cowest.collaboration.refine import refine
from cowest.protocols import ChatModel, Frames
from cowest.types import Example, Prediction, Sampling


@dataclass(frozen=True, slots=True)
class Collaboration:
    """The weak model drafts, the strong model refines."""

    weak: ChatModel
    strong: ChatModel
    frames: Frames
    draft_sampling: Sampling = Sampling()
    answer_sampling: Sampling = Sampling()
    name: str = "collab"

    async def answer(self, example: Example) -> Prediction:
        """Draft and refine one query; when either call fails, ``text`` is None and ``error`` says which and why."""
        first = await draft(self.weak, self.frames, example, 0, self.draft_sampling)
        if first.text is None:
            return Prediction(example_id=example.id, system=self.name, text=None, error=f"draft: {first.error}")
        second = await refine(self.strong, self.frames, example, first, self.answer_sampling)
        return Prediction(
            example_id=example.id,
            system=self.name,
            text=second.text,
            truncated=second.truncated,
            draft=first.text,
            error=second.error,
            usage=first.usage + second.usage,
            latency_s=first.latency_s + second.latency_s,
        )
