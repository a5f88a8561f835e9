from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.collaboration.test_preference import FRAMES, Row
from tests.helpers import question

from cowest.collaboration.labels import Labelling, best_of_each, label_drafts, labels_of
from cowest.collaboration.preference import build_pairs
from cowest.collaboration.signals import Outcome
from cowest.types import Draft, Feedback, Score


def records(rows: list[Row]) -> tuple[list[Draft], list[Feedback]]:
    drafts = [Draft(id=f"q1#{i}", example_id="q1", index=i, text=text) for i, (text, _, _) in enumerate(rows)]
    scores = [
        Feedback(
            example_id="q1", draft_id=f"q1#{i}", refined=Score(value=y), solo=Score(value=z), weak=Score(value=0.0)
        )
        for i, (text, y, z) in enumerate(rows)
        if text is not None
    ]
    return drafts, scores


def labelling(rows: list[Row], **settings) -> Labelling:  # type: ignore[no-untyped-def]
    return label_drafts([question()], *records(rows), FRAMES, **settings)


def labels(made: Labelling) -> dict[str, bool]:
    return {one.completion[0].content: one.label for one in made.drafts}


def test_a_draft_is_compared_with_its_query_s_mean_and_with_no_draft() -> None:
    made = labelling([("helps", 1, 0), ("no use", 0, 0)])
    assert labels(made) == {"helps": True, "no use": False}
    assert [one.baseline for one in made.drafts] == pytest.approx([1 / 3, 1 / 3])  # gains 1 and 0, and 0 for no draft
    assert made.drafts[0].prompt == FRAMES.draft(question()) and made.drafts[0].worth == 1


def test_queries_without_a_pair_teach_too() -> None:
    assert labels(labelling([("a", 1, 0), ("b", 1, 0)])) == {"a": True, "b": True}
    assert labels(labelling([("a", 0, 1), ("b", 0, 1)])) == {"a": False, "b": False}
    nothing = labelling([("a", 1, 1), ("b", 1, 1)])
    assert nothing.drafts == () and nothing.counts["labels_dropped_at_baseline"] == 2


def test_an_outcome_has_no_zero() -> None:
    assert labelling([("a", 1, None), ("b", 1, None)], signal=Outcome()).drafts == ()
    assert labels(labelling([("a", 1, None), ("b", 0, None)], signal=Outcome())) == {"a": True, "b": False}


def test_the_paper_rule_takes_what_is_not_above_zero_for_bad() -> None:
    assert labels(labelling([("a", 1, 0), ("b", 0, 0)], rule="paper")) == {"a": True, "b": False}


def test_equal_unscored_and_missing_drafts_are_left_out() -> None:
    made = labelling([("a", 1, 0), ("a", 1, 0), (None, None, None), ("c", None, 0), ("d", 0, 0)])
    assert labels(made) == {"a": True, "d": False}


def test_the_best_of_each_query_is_the_first_of_equals() -> None:
    made = labelling([("fair", 0.5, 0), ("best", 1, 0), ("also", 1, 0), ("bad", 0, 0)])
    assert [one.completion[0].content for one in best_of_each(made.drafts)] == ["best"]
    assert best_of_each(labelling([("a", 0, 1), ("b", 0, 1)]).drafts) == []


@given(st.lists(st.tuples(st.text("abc", min_size=1), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=6))
def test_the_best_of_a_pair_is_never_labelled_below_the_worst(drafts: list[tuple[str, float]]) -> None:
    rows: list[Row] = [(text, value, 0.5) for text, value in drafts]
    worth = {one.completion[0].content: one for one in labelling(rows).drafts}
    for pair in build_pairs([question()], *records(rows), FRAMES).pairs:
        better, worse = worth.get(pair.chosen[0].content), worth.get(pair.rejected[0].content)
        if better is not None and worse is not None:
            assert better.label >= worse.label and better.worth > worse.worth


def test_a_pair_of_people_is_one_to_write_and_one_not_to() -> None:
    (pair,) = build_pairs([question()], *records([("good", 1, 0), ("bad", 0, 0)]), FRAMES).pairs
    good, bad = labels_of(pair)
    assert (good.completion, good.label, bad.completion, bad.label) == (pair.chosen, True, pair.rejected, False)
    assert good.baseline == bad.baseline == 0.5
