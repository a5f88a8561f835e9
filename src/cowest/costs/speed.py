"""How fast the models of this machine are: as the finished stages of a run tell, or as :mod:`cowest.costs.measure` has measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Final

from cowest.assembly.context import Context
from cowest.costs.systems import known_as
from cowest.costs.work import Range
from cowest.costs.workload import current_stages
from cowest.types import Draft, Record, Refinement, Usage

ENOUGH: Final = 20
"""Answers of a stage from which a speed is told: fewer are mostly the loading of the model."""
FORWARD: Final = 1 / 3
"""What a token costs that only goes forward, of one that also goes back: one of three products with the weights."""


class Speed(Record):
    """Of one model on this machine, in tokens a second; None: not known.

    ``answer_tokens`` is the mean of what it wrote, where it was not cut off. ``how`` says where the numbers are from.
    """

    model: str
    how: str
    prompt_tokens_per_s: float | None = None
    new_tokens_per_s: float | None = None
    training_tokens_per_s: float | None = None
    answer_tokens: float | None = None

    def answering(self, read: Range, written: Range) -> Range | None:
        """Seconds for so many tokens of prompts and of answers."""
        if self.prompt_tokens_per_s is None or self.new_tokens_per_s is None:
            return None
        return read * _each(1 / self.prompt_tokens_per_s) + written * _each(1 / self.new_tokens_per_s)

    def training(self, learned: Range, read: Range) -> Range | None:
        """Seconds of a training on so many tokens, with so many more that only go forward."""
        if self.training_tokens_per_s is None:
            return None
        return (learned + read * _each(FORWARD)) * _each(1 / self.training_tokens_per_s)

    def filled(self, other: Speed | None) -> Speed:
        """With what the other knows and this one does not."""
        if other is None:
            return self
        new = {key: value for key, value in other if key not in ("model", "how") and getattr(self, key) is None}
        new = {key: value for key, value in new.items() if value is not None}
        return self.model_copy(update={**new, "how": f"{self.how}; {other.how}"}) if new else self


def _each(factor: float) -> Range:
    return Range(low=factor, expected=factor, high=factor)


@dataclass(slots=True)
class _Seen:
    """What stages of a model have read and written, and in how long."""

    name: str
    tokens: int = 0
    seconds: float = 0.0
    answers: list[int] = field(default_factory=list)
    stages: dict[str, None] = field(default_factory=dict)
    learned: float = 0.0
    learning_s: float = 0.0


def noted(contexts: Iterable[Context], sft_tokens: Mapping[str, float]) -> dict[str, Speed]:
    """The speeds that finished stages of these run directories tell, by what a model is known as.

    Of drafting and feedback only prompts and answers together are known: the same rate stands for both. ``sft_tokens``: how many
    tokens the SFT of a context learns from, by the context's name.
    """
    seen: dict[str, _Seen] = {}
    counted = defaultdict[str, set[str]](set)
    for context in contexts:
        current, entries = current_stages(context), context.run.manifest().stages
        judged = context.models.sources.judge is not None or bool(context.models.sources.compare)
        for stage, source in (("sft", context.weak), ("sample", context.weak), ("feedback", context.strong)):
            if source.paid or stage not in current or not current[stage].settled:
                continue
            if (stage == "feedback" and judged) or entries[stage].seconds <= 0:
                continue
            note = seen.setdefault(known_as(source), _Seen(source.name))
            print_ = str(entries[stage].made_with) + str(entries[stage].seconds)
            if print_ in counted[stage]:
                continue  # taken over from another folder of the table
            counted[stage].add(print_)
            _note(note, context, stage, entries[stage].seconds, sft_tokens)
    return {key: found for key, note in seen.items() if (found := _speed(note)) is not None}


def _note(note: _Seen, context: Context, stage: str, seconds: float, sft_tokens: Mapping[str, float]) -> None:
    if stage == "sft":
        note.learned, note.learning_s = note.learned + sft_tokens.get(context.name, 0.0), note.learning_s + seconds
        note.stages["sft"] = None
        return
    usages = [u for u in _usages(context, stage) if u.calls]
    if len(usages) < ENOUGH:
        return
    note.tokens += sum(u.input_tokens + u.output_tokens for u in usages)
    note.seconds += seconds
    note.answers += [u.output_tokens for u in usages]
    note.stages[stage] = None


def _usages(context: Context, stage: str) -> Iterator[Usage]:
    if stage == "sample":
        yield from (d.usage for d in context.run.file("drafts.jsonl", Draft).load() if d.error is None)
        return
    for name in ("solo.jsonl", "refinements.jsonl"):
        yield from (r.usage for r in context.run.file(name, Refinement).load() if r.error is None)


def _speed(note: _Seen) -> Speed | None:
    if not note.stages:
        return None
    rate = note.tokens / note.seconds if note.tokens else None
    return Speed(
        model=note.name,
        how=f"noted by {', '.join(note.stages)} of this run (prompts and answers together)",
        prompt_tokens_per_s=rate,
        new_tokens_per_s=rate,
        training_tokens_per_s=note.learned / note.learning_s if note.learned else None,
        answer_tokens=fmean(note.answers) if note.answers else None,
    )


def together(first: Mapping[str, Speed], second: Mapping[str, Speed]) -> dict[str, Speed]:
    """The first's, and what only the second knows."""
    return {
        key: first[key].filled(second.get(key)) if key in first else second[key] for key in first.keys() | second.keys()
    }
