"""How long texts of the models will be: what can be said of it before they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Final

from cowest.assembly.context import Context
from cowest.assembly.sources import Source
from cowest.costs.work import Range, spread
from cowest.stages.learn import sft_examples, sft_texts

SAMPLED: Final = 20
"""Queries whose prompts are measured in each stage; and answers of a purpose that a mean in the ledger needs."""

Counter = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Written:
    """Token counts of the SFT targets of one domain: what the weak model learns to write, and what a right answer needs."""

    drafts: Sequence[int]
    answers: Sequence[int]


@dataclass(frozen=True, slots=True)
class Texts:
    """How each model's tokens are counted, and in words how; a tokenizer is loaded once, targets are counted once."""

    counters: Mapping[str | None, tuple[Counter, str]]
    _written: dict[tuple[str, str | None], Written] = field(default_factory=dict)

    def of(self, model: Source) -> Counter:
        """The model's own."""
        return self.counters[model.tokenizer][0]

    def written(self, context: Context, model: Source) -> Written:
        """The SFT targets of a context, counted for this model."""
        key = (context.name, model.tokenizer)
        if key not in self._written:
            self._written[key] = _written(context, self.of(model))
        return self._written[key]


def _written(context: Context, count: Counter) -> Written:
    examples = spread(sft_examples(context), 10 * SAMPLED)
    targets = [t for e in examples if (t := context.task.target(e))] or [e.input for e in examples]  # no answers
    drafts = [text for e in examples for _, text in sft_texts(context, e)]
    answers = [count(t) for t in targets]
    return Written([count(d) for d in drafts if d is not None] or answers, answers)


def bounded(lengths: Sequence[int], expected: float, most: int) -> Range:
    """From the mean of the shortest quarter to the most that there can be."""
    shortest = fmean(sorted(lengths)[: max(1, len(lengths) // 4)])
    expected = min(expected, most)
    return Range(low=min(shortest, expected), expected=expected, high=most)
