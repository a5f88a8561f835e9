"""Step 6: preference pairs D_PT = {(x, y+, y-)} from the gains of a query's drafts.

Two rules. ``paper``: chosen has gain > 0, rejected has gain <= 0; a query on which the strong model is right alone gives no
pair. ``ordered``: any two drafts whose gains differ by at least a margin; this also teaches not to hurt. Unscored drafts never
become a label, equal texts count once, and ties give no pair (each is counted).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, permutations
from random import Random
from typing import Literal, TypeVar

from cowest.collaboration.feedback import NOT_ASKED
from cowest.collaboration.signals import Gain, worth
from cowest.protocols import Frames, Signal
from cowest.types import Draft, Example, Feedback, Message, PreferencePair

Rule = Literal["paper", "ordered"]
GAIN = Gain()
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pairing:
    """The pairs, and what became of every draft and query on the way."""

    pairs: tuple[PreferencePair, ...]
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A draft with what it is worth, and the plain score of its refined answer."""

    text: str
    gain: float
    outcome: float | None


def build_pairs(
    examples: Sequence[Example],
    drafts: Sequence[Draft],
    feedback: Sequence[Feedback],
    frames: Frames,
    *,
    rule: Rule = "ordered",
    min_margin: float = 0.05,
    max_per_query: int = 4,
    limit: int | None = None,
    signal: Signal = GAIN,
    price_per_word: float = 0.0,
    toll: Callable[[str], float] | None = None,
    seed: int = 0,
) -> Pairing:
    """Pair the drafts of each query, widest margin first, at most ``max_per_query`` a query.

    ``limit`` keeps so many of all pairs, chosen at random by ``seed``: a smaller choice is a part of a larger one. The
    gains of the pairs are the ``signal``'s values, less ``price_per_word`` for each word of the draft and the ``toll`` for its
    text; where those have no zero (scores of drafts or of outcomes alone), use rule ``ordered``.
    """
    counts: Counter[str] = Counter(drafts=len(drafts))
    scored = {f.draft_id: f for f in feedback}
    by_query: dict[str, list[Draft]] = {}
    for draft in drafts:
        by_query.setdefault(draft.example_id, []).append(draft)
    pairs: list[PreferencePair] = []
    for example in examples:
        of_query: Counter[str] = Counter()
        value = partial(worth, signal, price_per_word=price_per_word, toll=toll)
        candidates = distinct(by_query.get(example.id, ()), scored, value, of_query)
        found = _of_query(candidates, rule, min_margin)
        counts.update(of_query)
        counts.update(_agreement(candidates))
        counts["dropped_over_maximum"] += max(0, len(found) - max_per_query)
        if found:
            counts["queries_with_pairs"] += 1
        else:
            counts["queries_without_contrast"] += 1
            counts[_why_none(candidates, of_query)] += 1
        prompt = frames.draft(example)
        pairs.extend(_pair(example, prompt, better, worse) for better, worse in found[:max_per_query])
    if limit is not None and len(pairs) > limit:
        counts["dropped_over_limit"] = len(pairs) - limit
        pairs = some(pairs, limit, seed)
    counts["pairs"] = len(pairs)
    return Pairing(tuple(pairs), dict(counts))


def _agreement(candidates: Sequence[Candidate]) -> Counter[str]:
    """Of the query's pairs of drafts with different outcomes: how many the signal orders as these, and how many it ties."""
    counts: Counter[str] = Counter()
    for a, b in combinations(candidates, 2):
        if a.outcome is not None and b.outcome is not None and a.outcome != b.outcome:
            counts["outcomes_differ"] += 1
            counts["outcomes_agree"] += (a.outcome - b.outcome) * (a.gain - b.gain) > 0
            counts["outcomes_tied"] += a.gain == b.gain
    return counts


def _why_none(candidates: Sequence[Candidate], counts: Mapping[str, int]) -> str:
    """Why a query gives no pair, as a name of what is counted."""
    if len(candidates) > 1:
        equal = len({c.gain for c in candidates}) == 1
        return "no_contrast_equal_worth" if equal else "no_contrast_by_the_rule"
    if counts["dropped_unscored"]:
        return "no_contrast_unscored"
    if counts["not_asked"]:
        return "no_contrast_not_asked"
    if counts["dropped_duplicate"]:
        return "no_contrast_equal_drafts"
    return "no_contrast_too_few_drafts"


def some(pairs: Sequence[T], limit: int, seed: int) -> list[T]:
    """``limit`` of them at random, in their order; a smaller choice is a part of a larger one."""
    order = list(range(len(pairs)))
    Random(f"cowest-pairs/{seed}").shuffle(order)
    return [pairs[i] for i in sorted(order[:limit])]


def distinct(
    drafts: Sequence[Draft],
    scored: Mapping[str, Feedback],
    value: Callable[[Feedback, Draft], float | None],
    counts: Counter[str],
) -> list[Candidate]:
    """A query's drafts that say what they are worth, equal texts once; ``counts`` takes what became of the others."""
    unique: dict[str, Candidate] = {}
    for draft in sorted(drafts, key=lambda d: d.index):
        record = scored.get(draft.id)
        gain = None if record is None else value(record, draft)
        if draft.text is None:
            counts["dropped_cut_off_draft" if draft.truncated else "dropped_failed_draft"] += 1
        elif record is not None and gain is None and (record.refined.error or "").startswith(NOT_ASKED):
            counts["not_asked"] += 1
        elif record is None or gain is None:
            counts["dropped_unscored"] += 1
        elif draft.text.strip() in unique:
            counts["dropped_duplicate"] += 1
        else:
            counts["scored"] += 1
            counts["gain_positive" if gain > 0 else "gain_negative" if gain < 0 else "gain_zero"] += 1
            unique[draft.text.strip()] = Candidate(draft.text, gain, record.refined.value)
    return list(unique.values())


def _of_query(candidates: Sequence[Candidate], rule: Rule, min_margin: float) -> list[tuple[Candidate, Candidate]]:
    def fits(better: Candidate, worse: Candidate) -> bool:
        if rule == "paper":
            return better.gain > 0 >= worse.gain
        return better.gain - worse.gain >= min_margin

    found = [(better, worse) for better, worse in permutations(candidates, 2) if fits(better, worse)]
    return sorted(found, key=lambda pair: pair[1].gain - pair[0].gain)


def _pair(example: Example, prompt: tuple[Message, ...], better: Candidate, worse: Candidate) -> PreferencePair:
    return PreferencePair(
        example_id=example.id,
        prompt=prompt,
        chosen=(Message(role="assistant", content=better.text),),
        rejected=(Message(role="assistant", content=worse.text),),
        chosen_gain=better.gain,
        rejected_gain=worse.gain,
    )
