"""Feedback on a budget: drafts are asked for until a query has its contrast, and no more, and where one is likely first.

What can be asked is a *step*: the first two drafts of a query (with the strong model's answer alone, where the signal needs it;
that by itself first, where rule ``paper`` may then ask for nothing), or its next one. Steps are taken in lots. After each lot the
chance that a step gives its query a pair is known a little better, by kind of step: how many drafts were asked for, and whether the
next one's own answer is new. Of a limited number of calls those with the best chance a call are spent first (the mean of a
Beta(1, 1) posterior, so that a kind nobody has tried counts as even); of equals those of earlier queries.

Decisions follow from answers alone, and are made between lots only, when all of a lot's answers are there: whatever the timing, and
however often a run was stopped, they are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from cowest.collaboration.preference import Rule
from cowest.scoring.metrics import token_f1
from cowest.scoring.normal import answer_key

LOT: Final = 64
"""Steps between two looks: requests enough to keep an endpoint busy, and few enough to learn from."""
Why = Literal["contrast", "alike", "no hope", "the limit"]
"""Why a draft is not asked for: its query has a pair, it says the same as another, no pair can come of it, calls are used up."""
Kind = tuple[str, int, bool]


@dataclass(frozen=True, slots=True)
class Said:
    """A draft: its id, its text, and the answer in it (None where there is none)."""

    id: str
    text: str
    answer: str | None


@dataclass(frozen=True, slots=True)
class Step:
    """What is asked together for a query: the strong model alone, and these drafts."""

    query: str
    alone: bool
    drafts: tuple[str, ...]


@dataclass(slots=True)
class _Query:
    id: str
    order: tuple[Said, ...]
    asked: int = 0
    alone: bool = False
    over: Why | None = None
    kind: Kind | None = None  # of the step under way

    @property
    def left(self) -> tuple[Said, ...]:
        return self.order[self.asked :]


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a query after a step: whether it has a pair, and whether one can still come."""

    contrast: bool
    hope: bool = True


@dataclass(slots=True)
class Plan:
    """Which steps are taken, in lots. ``calls`` are those of one request (samples beside it are calls, too).

    Attributes:
        queries: Each query's drafts, in the order in which they are asked for (:func:`ordered`).
        skipped: Drafts that are like one of those, by id.
        asks_alone: Whether the signal needs the strong model's answer alone.
        known_alone: Queries for which an earlier round has it.
        rule: Of pairs.
        calls: Calls behind a request.
        limit: Most calls; None: as many as it takes.
    """

    queries: Mapping[str, Sequence[Said]]
    skipped: frozenset[str]
    asks_alone: bool
    rule: Rule
    known_alone: frozenset[str] = frozenset()
    calls: int = 1
    limit: int | None = None
    lot: int = LOT
    spent: int = 0
    _of: dict[str, _Query] = field(default_factory=dict)
    _tried: Counter[Kind] = field(default_factory=Counter)
    _came: Counter[Kind] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._of = {id: _Query(id, tuple(drafts)) for id, drafts in self.queries.items()}
        for one in self._of.values():
            if len(one.order) < 2:
                one.over = "alike"

    def next_lot(self) -> list[Step]:
        """The next steps; none when all is done, or no step is within the limit."""
        best = sorted((one for one in self._of.values() if one.over is None), key=lambda one: -self._chance(one))
        found: list[Step] = []
        for one in best:
            step = self._step(one)
            cost = self._requests(step) * self.calls
            if self.limit is not None and self.spent + cost > self.limit:
                continue
            one.kind, self.spent = self._kind(one), self.spent + cost
            one.alone |= step.alone
            one.asked += len(step.drafts)
            found.append(step)
            if len(found) == self.lot:
                break
        return found

    def tell(self, looks: Mapping[str, Look]) -> None:
        """What came of the steps of a lot, by query."""
        for id, look in looks.items():
            one = self._of[id]
            if one.kind is not None and one.asked:
                self._tried[one.kind] += 1
                self._came[one.kind] += look.contrast
            one.kind = None
            if look.contrast:
                one.over = "contrast"
            elif not look.hope or not one.left:
                one.over = "no hope"

    def not_asked(self) -> dict[str, Why]:
        """Why each draft that was not asked for was not, by its id."""
        found: dict[str, Why] = dict.fromkeys(sorted(self.skipped), "alike")
        for one in self._of.values():
            for said in one.left:
                found[said.id] = one.over or "the limit"
        return found

    def _step(self, one: _Query) -> Step:
        if one.asked:
            return Step(one.id, False, (one.left[0].id,))
        alone = self.asks_alone and not one.alone
        if alone and self.rule == "paper":
            return Step(one.id, True, ())
        return Step(one.id, alone, tuple(said.id for said in one.left[:2]))

    def _kind(self, one: _Query) -> Kind:
        """What the chance of a pair is learned by."""
        ahead = one.order[one.asked : one.asked + (1 if one.asked else 2)]
        before = {said.answer for said in one.order[: one.asked]} if one.asked else {ahead[0].answer}
        return ("next" if one.asked else "first", one.asked, ahead[-1].answer not in before)

    def _chance(self, one: _Query) -> float:
        kind = self._kind(one)
        whole = Step(one.id, self.asks_alone and not one.alone, ("",) if one.asked else ("", ""))
        return (self._came[kind] + 1) / (self._tried[kind] + 2) / self._requests(whole)

    def _requests(self, step: Step) -> int:
        return (step.alone and step.query not in self.known_alone) + len(step.drafts)


def ordered(drafts: Sequence[Said], alike: float) -> tuple[list[Said], list[Said]]:
    """The drafts in the order in which to ask for them, the most unlike those before it next; and those that are like one of them.

    Two are alike that say the same but for case, punctuation and articles, or give the same answer in words that overlap by
    ``alike`` (F1 of words) or more. The first stays first.
    """
    kept, same = list[Said](), list[Said]()
    for said in drafts:
        (same if any(_alike(said, other, alike) for other in kept) else kept).append(said)
    found, rest = kept[:1], kept[1:]
    while rest:
        best = min(rest, key=lambda said: max(_nearness(said, other) for other in found))  # of equals the earliest
        found.append(best)
        rest.remove(best)
    return found, same


def _alike(a: Said, b: Said, least: float) -> bool:
    return answer_key(a.text) == answer_key(b.text) or (a.answer == b.answer and token_f1(a.text, [b.text]) >= least)


def _nearness(a: Said, b: Said) -> tuple[bool, float]:
    return a.answer == b.answer, token_f1(a.text, [b.text])


def saved(reasons: Mapping[str, Why], calls: int) -> dict[str, int]:
    """Calls that were not made, by reason, as counts of the stage."""
    found = Counter(reasons.values())
    return {f"calls_saved_{why.replace(' ', '_')}": n * calls for why, n in sorted(found.items())}
