"""Several drafts for one answer: of one weak model, or of the weak models of several domains."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cowest.collaboration.calls import CallFailed
from cowest.errors import ConfigError
from cowest.models.window import Window
from cowest.protocols import ChatModel, Frames, Hear, InteractionFrames
from cowest.systems.calls import Tally, predict
from cowest.systems.interactions.turns import fitting, sampled_drafts
from cowest.systems.spec import Specialist
from cowest.types import Completion, Example, Prediction, Sampling


@dataclass(frozen=True, slots=True)
class Answering:
    """The strong model's one call with several drafts, each with who wrote it; a single one is refined as in the collaboration."""

    strong: ChatModel
    frames: Frames
    turns: InteractionFrames
    sampling: Sampling
    window: Window | None = None

    async def ask(self, tally: Tally, example: Example, drafts: Sequence[tuple[str, str]]) -> Completion:
        """``drafts`` are (who, text). Those that do not fit beside the first are left out. Raises CallFailed."""
        shown = drafts
        if self.window is not None and len(drafts) > 1:
            kept, cut = self.window.fit_passages(
                [text for _, text in drafts], lambda some: self.turns.several(example, drafts[: len(some)])
            )
            tally.truncated_context |= cut
            shown = drafts[: len(kept)] or drafts[:1]
        tally.draft = "\n\n".join(text for _, text in shown)
        if len(shown) == 1:
            text = (shown[0][1],)
            asked = fitting(tally, self.window, text, lambda t: self.frames.refine(example, t[0]))
        else:
            asked = self.turns.several(example, shown)
        return await tally.answer(self.strong, asked, self.sampling, "refine", self.window)


@dataclass(frozen=True, slots=True)
class SeveralDrafts:
    """``samples`` drafts of the weak model at once, equal ones shown once, for one call of the strong model.

    Self-consistency's samples (Wang et al. 2022, arXiv 2203.11171) with the strong model in the place of the vote. The drafts are
    those of best_of_k. Failed drafts are left out; when all failed, so has the query. Raises ConfigError for settings with which
    there is one draft.
    """

    weak: ChatModel
    answering: Answering
    frames: Frames
    draft_sampling: Sampling
    samples: int
    seed: int
    name: str
    weak_window: Window | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.samples < 2:
            raise ConfigError(f"{self.name}: samples is {self.samples}; at least 2 are needed")
        if self.draft_sampling.temperature == 0:
            raise ConfigError(f"{self.name}: at temperature 0 all {self.samples} drafts are the same; give one above 0")

    async def answer(self, example: Example) -> Prediction:
        """One answer; ``draft`` is all drafts that were shown."""
        return await predict(example, self.name, self._steps)

    async def tell(self, example: Example, hear: Hear) -> Prediction:
        """See StreamingSystem."""
        return await predict(example, self.name, self._steps, hear)

    async def _steps(self, example: Example, tally: Tally) -> Completion:
        drafts = await sampled_drafts(
            tally, self.weak, self.frames, example, self.draft_sampling, self.samples, self.seed, self.weak_window
        )
        return await self.answering.ask(tally, example, [(f"Draft {n}", text) for n, text in enumerate(drafts, 1)])


@dataclass(frozen=True, slots=True)
class Specialists:
    """One draft of each of several weak models, for one call of the strong model; equal drafts are shown once.

    Every draft is needed: without a model that never answers it would be another system, and nobody would know. Raises ConfigError
    for less than two models.
    """

    specialists: Mapping[str, Specialist]
    answering: Answering
    frames: Frames
    draft_sampling: Sampling
    name: str

    def __post_init__(self) -> None:
        """Check that there are several."""
        if len(self.specialists) < 2:
            raise ConfigError(
                f"{self.name}: table.specialists names no weak model beside the recipe's; name one or more"
            )

    async def answer(self, example: Example) -> Prediction:
        """One answer; ``error`` says whose draft failed and why. ``draft`` is all drafts that were shown."""
        return await predict(example, self.name, self._steps)

    async def tell(self, example: Example, hear: Hear) -> Prediction:
        """See StreamingSystem."""
        return await predict(example, self.name, self._steps, hear)

    async def _steps(self, example: Example, tally: Tally) -> Completion:
        asked = self.frames.draft(example)
        tried = await asyncio.gather(
            *(
                tally.attempt(one.model, asked, self.draft_sampling, f"draft of {who}", one.window)
                for who, one in self.specialists.items()
            )
        )
        by_text: dict[str, tuple[list[str], str]] = {}
        for who, done in zip(self.specialists, tried, strict=True):
            if isinstance(done, CallFailed):
                raise done
            by_text.setdefault(done.text.strip(), ([], done.text))[0].append(who)
        return await self.answering.ask(
            tally, example, [(f"Draft of {' and '.join(who)}", text) for who, text in by_text.values()]
        )
