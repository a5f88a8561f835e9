"""What is said of few pairs: how many queries had a contrast, why the others had none, and what gives more."""

from __future__ import annotations

from cowest.stages.advice import agreement, contrast, thin_contrast
from cowest.types import Feedback, Score

REAL = {  # the counts of a first real run
    "pairs": 15,
    "queries_with_pairs": 5,
    "queries_without_contrast": 145,
    "no_contrast_equal_worth": 120,
    "no_contrast_equal_drafts": 25,
}


def feedback(solo: float | None, refined: float | None) -> Feedback:
    return Feedback(
        example_id="q", draft_id="q#0", refined=Score(value=refined), solo=Score(value=solo), weak=Score(value=0.0)
    )


def test_few_queries_with_pairs_are_a_warning_with_a_way_out() -> None:
    (said,) = thin_contrast(REAL, {}, [], 400)
    assert said.startswith(
        "15 pairs from 5 of 150 queries (without: 120: their drafts differ and are worth the same; 25: all "
    )
    assert "more draft.samples" in said and "feedback.judge" in said and "draft.sampling.temperature (or top_p)" in said


def test_enough_of_them_are_none_and_without_any_pair_other_words_are_said() -> None:
    assert thin_contrast(REAL | {"queries_with_pairs": 20, "queries_without_contrast": 130}, {}, [], 400) == ()
    assert thin_contrast({"queries_without_contrast": 150}, {}, [], 400) == ()
    assert contrast({"pairs": 4, "queries_with_pairs": 2}) == "4 pairs from 2 of 2 queries"


def test_unscored_drafts_are_told_by_side_with_the_setting_to_raise() -> None:
    records = [feedback(None, 1.0)] * 33 + [feedback(1.0, 1.0)] * 3
    (said,) = thin_contrast({}, {"cut off": 30, "refused": 3}, records, 160)
    assert said.startswith("33 of 36 drafts are unscored and make no pair (cut off 30, refused 3; ")
    assert "alone is missing for 33, the one with the draft for 0" in said
    assert "raise feedback.sampling.max_tokens from 160 to 320 or more; the strong model refuses" in said
    assert thin_contrast({}, {"cut off": 1}, [feedback(None, 1.0), *[feedback(1.0, 1.0)] * 35], 160) == ()


def test_agreement_with_outcomes_is_told_where_outcomes_differ() -> None:
    counts = {"pairs": 3, "queries_with_pairs": 2, "queries_without_contrast": 2}
    assert agreement(counts) == "0.75 a query"
    counts |= {"outcomes_differ": 9, "outcomes_agree": 5, "outcomes_tied": 3}
    assert agreement(counts).endswith("the signal orders 5 of 9 pairs of drafts as their outcomes do, 3 tied")
