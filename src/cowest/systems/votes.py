"""Self-consistency: several sampled answers, and the one that most of them come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cowest.errors import ConfigError
from cowest.models.window import Window
from cowest.protocols import ChatModel
from cowest.scoring import answer_key
from cowest.systems.calls import Ask, Series, Tally, predict
from cowest.types import Completion, Example, Prediction, Sampling

Extract = Callable[[str, Example], str | None]
"""``Task.extract``: the answer in a text."""


@dataclass(frozen=True, slots=True)
class SelfConsistency:
    """Wang et al. 2022 (arXiv 2203.11171): ``samples`` sampled chains of thought, the majority of their answers.

    The text returned is the first one with that answer; of equally frequent answers the one seen first wins. Open answers are
    compared as exact match compares them, a class (one of ``labels`` or of the query's choices) to the letter. A text without an
    answer has no vote; when none has an answer, the first text is returned. Failed samples are left out; only when all failed
    has the query failed.

    Departures: the paper reads answers with a rule for each benchmark, here it is ``extract``; it draws 40 samples, here it is a
    setting. Raises ConfigError for fewer than 1 sample, or several greedy ones, which would all be the same.
    """

    model: ChatModel
    ask: Ask
    extract: Extract
    sampling: Sampling
    samples: int
    seed: int
    name: str
    labels: Sequence[str] = ()
    window: Window | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.samples < 1:
            raise ConfigError(f"{self.name}: samples is {self.samples}; at least 1 is needed")
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ConfigError(
                f"{self.name}: at temperature 0 all {self.samples} samples are the same; give one above 0"
            )

    async def answer(self, example: Example) -> Prediction:
        """The majority's answer; ``error`` only when every sample failed."""
        return await predict(example, self.name, self._steps)

    async def _steps(self, example: Example, tally: Tally) -> Completion:
        series = Series(self.seed, "self-consistency", example.id)
        found = await tally.sample(
            self.model, self.ask(example), self.sampling, series, self.samples, window=self.window
        )
        answers = [self.extract(done.text, example) for done in found]
        votes = Counter(self._key(answer, example) for answer in answers if answer is not None)
        if not votes:
            return found[0]
        winner = votes.most_common(1)[0][0]  # of a tie the first that was entered
        return next(d for d, a in zip(found, answers, strict=True) if a is not None and self._key(a, example) == winner)

    def _key(self, answer: str, example: Example) -> tuple[str, str]:
        return ("", answer) if answer in self.labels or answer in example.choices else answer_key(answer)
