"""What the strong model does with a draft: shares against cases that are counted by hand."""

from __future__ import annotations

from typing import Final

import pytest
from scipy.stats import binomtest

from cowest.results import Share, Uptake
from cowest.scoring.statistics import Outcome, chance_of_as_many, share
from cowest.scoring.uptake import Case, right_by, same, uptake_of

LOST: Final = "(cut)"
FAILED: Final = "(failed)"


def outcome(number: int, answer: str | None, right: str) -> Outcome:
    lost, failed = answer == LOST, answer == FAILED
    said = None if lost or failed else answer
    return Outcome(example_id=str(number), answer=said, references=(right,), cut=lost, failed=failed)


def cases(*rows: tuple[str, str | None, str | None, str | None], closed: bool = True) -> list[Case]:
    """(right, draft, alone, final) a query."""
    return [
        Case(draft=draft, final=outcome(i, final, right), solo=outcome(i, alone, right), closed=closed)
        for i, (right, draft, alone, final) in enumerate(rows)
    ]


def of(rows: list[Case], metrics: tuple[str, ...] = ("accuracy", "macro_f1")) -> Uptake:
    found = uptake_of(rows, right_by(metrics, rows[0].closed), seed=0)
    assert found is not None
    return found


def counts(share: Share) -> tuple[int, int]:
    return share.n, share.of


# right, draft, alone, final
BY_HAND = cases(
    ("yes", "yes", "no", "yes"),  # copied, helped by copying, kept
    ("yes", "yes", "yes", "yes"),  # copied, and said so alone
    ("yes", "no", "yes", "no"),  # adopted a wrong one, spoiled
    ("yes", "no", "no", "yes"),  # mended, helped not by copying
    ("yes", "no", "no", "no"),  # adopted, as alone
    ("yes", "no", "yes", "yes"),  # mended, stayed as alone
    ("no", "maybe", "yes", "yes"),  # a wrong draft, not adopted, not mended
    ("no", None, "yes", "no"),  # a draft without an answer: helped, not by copying
    ("no", "no", "no", None),  # a whole text without an answer: wrong; a right draft not kept; spoiled
    ("no", "no", LOST, "no"),  # alone cut off: nothing against it; copied, kept
    ("no", "no", "no", LOST),  # left out
    ("no", "no", "no", FAILED),  # left out
)


def test_every_share_as_counted_by_hand() -> None:
    found = of(BY_HAND)
    assert (found.drafts, found.unread, found.failed, found.cut, found.no_answer) == (12, 1, 1, 1, 1)
    assert counts(found.copied) == (5, 9)
    assert counts(found.adopts) == (2, 5)
    assert counts(found.mends) == (2, 5)
    assert counts(found.keeps) == (3, 4)
    solo = found.solo
    assert solo is not None and solo.missing == 1
    assert counts(solo.same_alone) == (4, 8)
    assert counts(solo.follows) == (2, 4)
    assert counts(solo.helps) == (3, 5)
    assert counts(solo.helps_itself) == (2, 3)
    assert counts(solo.spoils) == (2, 4)
    assert solo.beyond.n == 8 and solo.beyond.diff == pytest.approx((4 - 4) / 8) and solo.beyond.p == 1.0


def test_a_copier_and_a_helper_of_one_accuracy_are_told_apart() -> None:
    drafts = ["yes"] * 30 + ["no"] * 20  # right in 30 of 50
    copier = cases(*(("yes", d, "maybe", d) for d in drafts))
    itself = cases(*(("yes", d, "maybe", "yes" if i >= 20 else "maybe") for i, d in enumerate(drafts)))
    one, other = of(copier), of(itself)
    assert one.solo is not None and other.solo is not None
    assert counts(one.solo.helps) == counts(other.solo.helps) == (30, 50)
    assert counts(one.solo.helps_itself) == (0, 30) and counts(other.solo.helps_itself) == (20, 30)
    assert one.solo.beyond.diff == 1.0 and other.solo.beyond.diff == pytest.approx(0.2)


def test_agreement_that_was_there_without_the_draft_is_none() -> None:
    found = of(cases(*[("yes", "yes", "yes", "yes")] * 20))
    assert found.copied.share == 1.0 and found.solo is not None
    assert found.solo.same_alone.share == 1.0 and found.solo.beyond.diff == 0.0
    assert found.solo.follows.share is None and found.solo.follows.of == 0


def test_open_answers_are_the_same_as_exact_match_has_it() -> None:
    rows = cases(("the 4,200 m", "4200 m.", "5 m", "The 4,200 m"), ("Paris", "London", "Rome", "london!"), closed=False)
    found = of(rows, ("squad_em", "squad_f1"))
    assert counts(found.copied) == (2, 2) and counts(found.adopts) == (1, 1)
    assert same("A", "a", closed=False) and not same("A", "a", closed=True) and not same(None, None, closed=True)


def test_without_the_strong_model_alone_nothing_is_said_against_it() -> None:
    rows = [Case(draft="yes", final=outcome(0, "yes", "yes"), solo=None, closed=True)]
    assert of(rows).solo is None
    assert uptake_of([], right_by(("accuracy",), True), 0) is None


def test_right_is_the_first_metric_that_is_right_or_wrong() -> None:
    assert right_by(("squad_f1", "squad_em"), False)("Paris", ["paris"]) == 1.0
    assert right_by(("f1",), False)("the Paris", ["paris"]) == 1.0  # none is: exact match
    assert right_by(("macro_f1",), True)("a", ["A"]) == 0.0


def test_wilsons_interval() -> None:
    found = share(7, 10)  # Wilson 1927: 0.397 to 0.892
    assert found.ci_low == pytest.approx(0.3968, abs=1e-4) and found.ci_high == pytest.approx(0.8922, abs=1e-4)
    assert share(0, 0) == Share(n=0, of=0, share=None, ci_low=None, ci_high=None)
    assert chance_of_as_many(0, 0, 0.5) == 1.0
    assert chance_of_as_many(8, 10, 0.5) == pytest.approx(binomtest(8, 10, 0.5, alternative="greater").pvalue)
