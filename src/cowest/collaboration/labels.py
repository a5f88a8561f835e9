"""Single drafts with a label, for objectives that need no pairs: KTO (arXiv 2402.01306) and rejection sampling.

A draft is one to write (``label`` True) where it is worth more than a baseline, and one not to write where it is worth less. With
rule ``ordered`` the baseline is the mean worth of its query's distinct drafts, with no draft at all among them where the signal has
a zero (a gain: the strong model alone). So a query whose drafts all help, or all hurt, teaches too, where it gives no pair. With
rule ``paper`` the baseline is that zero, and what is not above it is not to be written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from cowest.collaboration.preference import GAIN, Candidate, Rule, distinct, some
from cowest.collaboration.signals import worth
from cowest.protocols import Frames, Signal
from cowest.types import Draft, Example, Feedback, LabelledDraft, Message, PreferencePair


@dataclass(frozen=True, slots=True)
class Labelling:
    """The labelled drafts, and how many were given which label or none."""

    drafts: tuple[LabelledDraft, ...]
    counts: Mapping[str, int]


def label_drafts(
    examples: Sequence[Example],
    drafts: Sequence[Draft],
    feedback: Sequence[Feedback],
    frames: Frames,
    *,
    rule: Rule = "ordered",
    min_margin: float = 0.05,
    limit: int | None = None,
    signal: Signal = GAIN,
    price_per_word: float = 0.0,
    toll: Callable[[str], float] | None = None,
    seed: int = 0,
) -> Labelling:
    """Label each query's distinct, scored drafts; the settings are those of pairs.

    Rule ``ordered`` leaves drafts out that are within ``min_margin`` of the baseline. ``limit`` keeps so many at random.
    """
    scored = {f.draft_id: f for f in feedback}
    by_query: dict[str, list[Draft]] = {}
    for draft in drafts:
        by_query.setdefault(draft.example_id, []).append(draft)
    value = partial(worth, signal, price_per_word=price_per_word, toll=toll)
    found: list[LabelledDraft] = []
    same = 0
    for example in examples:
        candidates = distinct(by_query.get(example.id, ()), scored, value, Counter())
        if not candidates:
            continue
        prompt, baseline = frames.draft(example), _baseline(candidates, rule, signal)
        for candidate in candidates:
            above = candidate.gain - baseline
            if rule == "ordered" and abs(above) < min_margin:
                same += 1
                continue
            found.append(_labelled(example.id, prompt, candidate.text, above > 0, candidate.gain, baseline))
    if limit is not None and len(found) > limit:
        found = some(found, limit, seed)
    good = sum(draft.label for draft in found)
    counts = {"labels_desirable": good, "labels_undesirable": len(found) - good, "labels_dropped_at_baseline": same}
    return Labelling(tuple(found), counts)


def _baseline(candidates: Sequence[Candidate], rule: Rule, signal: Signal) -> float:
    if rule == "paper":
        return 0.0
    no_draft = [0.0] if "solo" in signal.asks else []  # what is compared with the strong model alone has its zero there
    return fmean([*(c.gain for c in candidates), *no_draft])


def labels_of(pair: PreferencePair) -> tuple[LabelledDraft, LabelledDraft]:
    """A pair's two sides by themselves, each compared with the middle of both."""
    middle = (pair.chosen_gain + pair.rejected_gain) / 2
    better, worse = pair.chosen[-1].content, pair.rejected[-1].content
    return (
        _labelled(pair.example_id, pair.prompt, better, True, pair.chosen_gain, middle),
        _labelled(pair.example_id, pair.prompt, worse, False, pair.rejected_gain, middle),
    )


def best_of_each(drafts: Sequence[LabelledDraft]) -> list[LabelledDraft]:
    """Of each query's drafts to write the one that is worth most, of equals the first; in the order of the queries."""
    best: dict[str, LabelledDraft] = {}
    for draft in drafts:
        if draft.label and (draft.example_id not in best or draft.worth > best[draft.example_id].worth):
            best[draft.example_id] = draft
    return list(best.values())


def _labelled(
    example: str, prompt: tuple[Message, ...], text: str, label: bool, worth: float, baseline: float
) -> LabelledDraft:
    said = (Message(role="assistant", content=text),)
    return LabelledDraft(
        example_id=example, prompt=prompt, completion=said, label=label, worth=worth, baseline=baseline
    )
