"""Feedback on a budget: drafts are asked for until a query has its contrast, and no more, and where one is likely first.

What can be asked is a *step*: the first two drafts of a query (with the strong model's answer alone, where the signal needs it;
that by itself first, where rule ``paper`` may then ask for nothing), or its next one. Steps are taken in lots. After each lot the
chance that a step gives its query a pair is known a little better, by kind of step: what the drafts score by themselves (all right,
all wrong, or some of both), whether the next one's own answer is new, and how many were asked for. Of a limited number of calls
those with the best chance a call are spent first, once a few steps of each kind were taken; of equals those of earlier queries. The
chance is a rate among the steps of a kind, smoothed by that of a coarser kind, and that by the rate of all (a table of rates with
back-off, as of n-grams: MacKay and Peto 1995, A hierarchical Dirichlet language model); of what nobody has tried it is even.

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
Kind = tuple[object, ...]
"""What a step has in common with others, from coarse to fine: each beginning of it is a kind, too."""
HALF: Final = 0.5
"""Of the highest score: from here on a draft counts as right."""
TRIED: Final = 8
"""So many steps of a kind (by its first three parts) are taken before it is judged: else the first kinds are all that is tried."""
SMOOTH: Final = 8.0
"""So many steps of a kind weigh as much as all that is known of the coarser one."""


@dataclass(frozen=True, slots=True)
class Said:
    """A draft: its id, its text, the answer in it (None where there is none), and the score of that (in [0, 1], None as well)."""

    id: str
    text: str
    answer: str | None
    score: float | None = None


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
    """Which steps are taken, in lots.

    Attributes:
        queries: Each query's drafts, in the order in which they are asked for (:func:`ordered`).
        skipped: Drafts that are like one of those, by id.
        asks_alone: Whether the signal needs the strong model's answer alone.
        known_alone: Queries for which an earlier round has it.
        rule: Of pairs.
        calls: Calls behind a request (samples beside it, readings), by query; 1 where a query is not named.
        limit: Most calls; None: as many as it takes.
        lot: Most steps between two looks.
    """

    queries: Mapping[str, Sequence[Said]]
    skipped: frozenset[str]
    asks_alone: bool
    rule: Rule
    known_alone: frozenset[str] = frozenset()
    calls: Mapping[str, int] = field(default_factory=dict)
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
        best = self._best()
        found: list[Step] = []
        for one in best:
            step = self._step(one)
            cost = self._calls(step)
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
                for end in range(len(one.kind) + 1):
                    self._tried[one.kind[:end]] += 1
                    self._came[one.kind[:end]] += look.contrast
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

    def not_alone(self) -> dict[str, Why]:
        """Why the strong model was not asked alone, where the signal would have it, by query."""
        if not self.asks_alone:
            return {}
        left = [one for one in self._of.values() if not one.alone and one.id not in self.known_alone]
        return {one.id: one.over or "the limit" for one in left}

    def _step(self, one: _Query) -> Step:
        if one.asked:
            return Step(one.id, False, (one.left[0].id,))
        alone = self.asks_alone and not one.alone
        if alone and self.rule == "paper":
            return Step(one.id, True, ())
        return Step(one.id, alone, tuple(said.id for said in one.left[:2]))

    def _best(self) -> list[_Query]:
        """The queries that are open: first those of kinds of which too little is known, as many as that takes, then by chance."""
        best = sorted((one for one in self._of.values() if one.over is None), key=lambda one: -self._chance(one))
        taken, untried, rest = Counter[Kind](), list[tuple[int, _Query]](), list[_Query]()
        for one in best:
            kind = self._kind(one)[:3]
            if self._tried[kind] + taken[kind] < TRIED:
                untried.append((taken[kind], one))
                taken[kind] += 1
            else:
                rest.append(one)
        return [one for _, one in sorted(untried, key=lambda pair: pair[0])] + rest  # of each kind in turn

    def _kind(self, one: _Query) -> Kind:
        """What the chance of a pair is learned by."""
        ahead = one.order[one.asked : one.asked + (1 if one.asked else 2)]
        seen = one.order[: one.asked + len(ahead)]
        before = {said.answer for said in seen[:-1]}
        return (one.asked > 0, _standing(seen), ahead[-1].answer not in before, one.asked)

    def _chance(self, one: _Query) -> float:
        kind, rate = self._kind(one), 0.5
        for end in range(len(kind) + 1):
            rate = (self._came[kind[:end]] + SMOOTH * rate) / (self._tried[kind[:end]] + SMOOTH)
        whole = Step(one.id, self.asks_alone and not one.alone, ("",) if one.asked else ("", ""))
        return rate / max(1, self._calls(whole))

    def _calls(self, step: Step) -> int:
        requests = (step.alone and step.query not in self.known_alone) + len(step.drafts)
        return requests * self.calls.get(step.query, 1)


def _standing(drafts: Sequence[Said]) -> str:
    """What drafts score by themselves: one that is right beside one that is wrong moves the strong model most."""
    known = [said.score for said in drafts if said.score is not None]
    if not known:
        return "unknown"
    if max(known) - min(known) >= HALF:
        return "both"
    return "right" if min(known) >= HALF else "wrong"


def ordered(drafts: Sequence[Said], alike: float) -> tuple[list[Said], list[Said]]:
    """The drafts in the order in which to ask for them, the most unlike those before it next; and those that are like one of them.

    Two are alike that say the same but for case, punctuation and articles, or give the same answer in words that overlap by
    ``alike`` (F1 of words) or more. The first stays first. Unlike are those whose own scores differ, then those of another answer,
    then those in other words.
    """
    kept, same = list[Said](), list[Said]()
    for said in drafts:
        (same if any(_alike(said, other, alike) for other in kept) else kept).append(said)
    found, rest = kept[:1], kept[1:]
    while rest:
        best = min(rest, key=lambda said: _nearness(said, found))  # of equals the earliest
        found.append(best)
        rest.remove(best)
    return found, same


def _alike(a: Said, b: Said, least: float) -> bool:
    return answer_key(a.text) == answer_key(b.text) or (a.answer == b.answer and token_f1(a.text, [b.text]) >= least)


def _nearness(a: Said, others: Sequence[Said]) -> tuple[float, bool, float]:
    """To those before it: a right draft and a wrong one are far apart, as long as only one of the kind is among them."""
    gap = min(_gap(a, b) for b in others)
    return -gap, any(a.answer == b.answer for b in others), max(token_f1(a.text, [b.text]) for b in others)


def _gap(a: Said, b: Said) -> float:
    return 0.0 if a.score is None or b.score is None else abs(a.score - b.score)


def saved(reasons: Mapping[str, Why], keys: Mapping[str, str], calls: Mapping[str, int]) -> dict[str, int]:
    """Calls that were not made, by reason, as counts of the stage.

    ``reasons``: of drafts and queries that were not asked for, by id. ``keys``: the key of each draft's call. ``calls``: how many
    are behind it (1 where it is not named). A draft whose text was asked for as another one saves nothing: they share a call.
    """
    made = {key for id, key in keys.items() if id not in reasons}
    found = Counter[Why]()
    for id, why in reasons.items():
        key = keys.get(id, id)
        if key not in made:
            made.add(key)
            found[why] += calls.get(id, 1)
    return {f"calls_saved_{why.replace(' ', '_')}": n for why, n in sorted(found.items())}
