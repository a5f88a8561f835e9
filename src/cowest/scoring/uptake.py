"""What the strong model does with a draft: is its answer the draft's, and what would it have said alone?

An accuracy cannot tell whether drafts help or are copied: a strong model that repeats every draft is as good as the weak one. So
the answers of a query are compared with each other: the draft's, the final one, and that of the same strong model alone.

Classes (the task's labels, or the query's own choices) are the same to the letter. Open answers are the same in the form in which
exact match compares them (:mod:`cowest.scoring.normal`); there is no threshold on F1, by which two different answers of many words
would be one. An answer is right by the task's first metric that calls an answer right or wrong, and by exact match (classes:
accuracy) where it has none.

That a final answer is the draft's may be no copy: both may be right. ``AgainstSolo.beyond`` therefore subtracts how often the
strong model says the same without having seen it, and ``AgainstSolo.follows`` looks at the other drafts alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cowest.results import AgainstSolo, Comparison, Share, Uptake
from cowest.scoring.metrics import accuracy, exact_match, get_metric
from cowest.scoring.normal import same_answer
from cowest.scoring.statistics import Outcome, compare, share

_T = TypeVar("_T")
Right = Callable[[str | None, Sequence[str]], float]


@dataclass(frozen=True, slots=True)
class Case:
    """One query with a draft: the answer read out of the draft (None: it names none), the final one, and that without a draft.

    ``closed``: answers are classes. ``solo`` is None where the strong model alone was not asked.
    """

    draft: str | None
    final: Outcome
    solo: Outcome | None
    closed: bool

    def same(self, answer: str | None, other: str | None) -> bool:
        """Whether two answers are the same; one that is not there is the same as no other."""
        return same(answer, other, self.closed)


def same(answer: str | None, other: str | None, closed: bool) -> bool:
    """Whether two answers to a query are the same: classes to the letter, open ones as exact match compares them."""
    if answer is None or other is None:
        return False
    return answer == other if closed else same_answer(answer, other)


def right_by(metrics: Sequence[str], closed: bool) -> Right:
    """What calls an answer right: the first of the metrics that is right or wrong for each query."""
    for metric in map(get_metric, metrics):
        if metric.binary and metric.per_query is not None:
            return metric.per_query
    return accuracy if closed else exact_match


def uptake_of(cases: Sequence[Case], right: Right, seed: int, name: str = "with a draft") -> Uptake | None:
    """The shares over the queries that have a draft; None where there is none. ``seed`` is of the bootstrap of ``beyond``."""
    if not cases:
        return None
    told = [c for c in cases if _told(c.final)]
    read = [c for c in told if c.draft is not None]

    def ok(answer: str | None, case: Case) -> bool:
        return right(answer, case.final.references) >= 1.0

    wrong_drafts = [c for c in read if not ok(c.draft, c)]
    right_drafts = [c for c in read if ok(c.draft, c)]
    alone = any(c.solo is not None for c in cases)
    return Uptake(
        drafts=len(cases),
        unread=sum(c.draft is None for c in cases),
        failed=sum(c.final.failed for c in cases),
        cut=sum(c.final.cut for c in cases),
        no_answer=sum(c.final.answer is None for c in told),
        copied=_of(read, lambda c: c.same(c.final.answer, c.draft)),
        adopts=_of(wrong_drafts, lambda c: c.same(c.final.answer, c.draft)),
        mends=_of(wrong_drafts, lambda c: ok(c.final.answer, c)),
        keeps=_of(right_drafts, lambda c: ok(c.final.answer, c)),
        solo=_against_solo(told, ok, seed, name) if alone else None,
    )


def _against_solo(told: Sequence[Case], ok: Callable[[str | None, Case], bool], seed: int, name: str) -> AgainstSolo:
    both = [(c, c.solo.answer) for c in told if c.solo is not None and _told(c.solo)]
    read = [(c, alone) for c, alone in both if c.draft is not None]
    helped = [(c, alone) for c, alone in both if not ok(alone, c) and ok(c.final.answer, c)]
    return AgainstSolo(
        missing=len(told) - len(both),
        same_alone=_of(read, lambda x: x[0].same(x[1], x[0].draft)),
        beyond=_beyond(read, seed, name),
        follows=_of(
            [(c, alone) for c, alone in read if not c.same(alone, c.draft)],
            lambda x: x[0].same(x[0].final.answer, x[0].draft),
        ),
        helps=share(len(helped), sum(not ok(alone, c) for c, alone in both)),
        helps_itself=_of(helped, lambda x: not ok(x[0].draft, x[0])),
        spoils=_of([(c, a) for c, a in both if ok(a, c)], lambda x: not ok(x[0].final.answer, x[0])),
    )


def _beyond(read: Sequence[tuple[Case, str | None]], seed: int, name: str) -> Comparison:
    """Agreement with the draft, with it minus without: a paired comparison like that of two systems."""

    def agreement(answers: Iterable[tuple[Case, str | None]]) -> list[Outcome]:
        return [
            Outcome(
                example_id=c.final.example_id,
                answer="same" if c.same(answer, c.draft) else "other",
                references=("same",),
            )
            for c, answer in answers
        ]

    with_draft, without = agreement((c, c.final.answer) for c, _ in read), agreement(read)
    tests = compare("accuracy", (), name, with_draft, "alone", without, seed)
    exact = next(c for c in tests if c.test == "mcnemar_exact")
    return exact.model_copy(update={"metric": "agreement with the draft"})


def _of(cases: Sequence[_T], holds: Callable[[_T], bool]) -> Share:
    return share(sum(map(holds, cases)), len(cases))


def _told(outcome: Outcome) -> bool:
    return not outcome.failed and not outcome.cut
