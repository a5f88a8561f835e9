"""The two models alone: the baselines that a collaboration has to beat."""

from __future__ import annotations

from dataclasses import dataclass

from cowest.collaboration.draft import draft
from cowest.collaboration.refine import solo
from cowest.protocols import ChatModel, Frames
from cowest.types import Example, Prediction, Sampling


@dataclass(frozen=True, slots=True)
class WeakAlone:
    """The weak model's draft, taken as the answer."""

    weak: ChatModel
    frames: Frames
    sampling: Sampling
    name: str = "weak"

    async def answer(self, example: Example) -> Prediction:
        """One draft; a failed call gives ``text=None`` and the reason."""
        done = await draft(self.weak, self.frames, example, 0, self.sampling)
        return Prediction(
            example_id=example.id,
            system=self.name,
            text=done.text,
            error=done.error,
            usage=done.usage,
            latency_s=done.latency_s,
        )


@dataclass(frozen=True, slots=True)
class StrongAlone:
    """The strong model without a draft (chain of thought)."""

    strong: ChatModel
    frames: Frames
    sampling: Sampling
    name: str = "strong"

    async def answer(self, example: Example) -> Prediction:
        """One answer; a failed call gives ``text=None`` and the reason."""
        done = await solo(self.strong, self.frames, example, self.sampling)
        return Prediction(
            example_id=example.id,
            system=self.name,
            text=done.text,
            truncated=done.truncated,
            error=done.error,
            usage=done.usage,
            latency_s=done.latency_s,
        )
