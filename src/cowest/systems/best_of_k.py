"""Best of K: the strong model chooses among sampled drafts, then refines the chosen one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cowest.collaboration.refine import ask_to_refine
from cowest.errors import ConfigError
from cowest.models.window import Window
from cowest.protocols import ChatModel, Frames
from cowest.systems.calls import Tally, predict
from cowest.systems.interactions.turns import sampled_drafts
from cowest.tasks.answers import marked_answer
from cowest.types import Completion, Example, Message, Prediction, Sampling


@dataclass(frozen=True, slots=True)
class BestOfK:
    """Best-of-N selection (Stiennon et al. 2020, arXiv 2009.01325) with the strong model as the judge, by a listwise choice.

    Of ``samples`` drafts of the weak model the strong one names by number the one that helps it most, and refines it as in the
    collaboration. It is the control for alignment: choosing a helpful draft at inference instead of learning to write one.

    Departures: the paper ranks by a trained reward model; here the choice is one more call. Equal drafts are shown once; a
    single one is refined without a choice. A choice that cannot be read is the first draft. Failed drafts are left out; when all
    failed, or a later call did, so has the query. Raises ConfigError for settings with which there is nothing to choose.
    """

    weak: ChatModel
    strong: ChatModel
    frames: Frames
    choose: Callable[[Example, Sequence[str]], Sequence[Message]]
    draft_sampling: Sampling
    answer_sampling: Sampling
    samples: int
    seed: int
    name: str
    window: Window | None = None
    weak_window: Window | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.samples < 1:
            raise ConfigError(f"{self.name}: samples is {self.samples}; at least 1 is needed")
        if self.samples > 1 and self.draft_sampling.temperature == 0:
            raise ConfigError(f"{self.name}: at temperature 0 all {self.samples} drafts are the same; give one above 0")

    async def answer(self, example: Example) -> Prediction:
        """The refinement of the chosen draft, which is the prediction's ``draft``."""
        return await predict(example, self.name, self._steps)

    async def _steps(self, example: Example, tally: Tally) -> Completion:
        drafts = await sampled_drafts(
            tally, self.weak, self.frames, example, self.draft_sampling, self.samples, self.seed, self.weak_window
        )
        tally.draft = await self._chosen(example, drafts, tally)
        return await ask_to_refine(
            tally, self.strong, self.frames, example, tally.draft, self.answer_sampling, self.window
        )

    async def _chosen(self, example: Example, drafts: Sequence[str], tally: Tally) -> str:
        """The draft that the strong model chooses; those that do not fit its window beside the first are not shown."""
        shown = drafts
        if self.window is not None and len(drafts) > 1:
            shown, cut = self.window.fit_passages(drafts, lambda kept: self.choose(example, kept))
            tally.truncated_context |= cut
        if len(shown) < 2:
            return drafts[0]
        said = await tally.ask(self.strong, self.choose(example, shown), self.answer_sampling, "choose", self.window)
        return drafts[(number_in(said.text, len(shown)) or 1) - 1]


def number_in(text: str, most: int) -> int | None:
    """The number from 1 to ``most`` that a text chooses: the first marked one, else the only one in it; None if unreadable."""
    marked = marked_answer(text)
    numbers = [int(n) for n in re.findall(r"(?<![\w.])\d{1,6}(?!\w|\.\d)", text if marked is None else marked)]
    chosen = numbers[:1] if marked is not None else list(dict.fromkeys(numbers))
    return chosen[0] if len(chosen) == 1 and 1 <= chosen[0] <= most else None
