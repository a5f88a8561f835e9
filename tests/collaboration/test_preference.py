from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import question

from cowest.collaboration.preference import Pairing, build_pairs
from cowest.collaboration.prompts import DefaultFrames
from cowest.collaboration.signals import DraftScore
from cowest.run.store import JsonlFile
from cowest.types import Draft, Feedback, PreferencePair, Score

FRAMES = DefaultFrames("Answer yes or no.")
# (text, refined, solo); None is no text, or no score
Row = tuple[str | None, float | None, float | None]


def pairing(rows: Sequence[Row], **settings) -> Pairing:  # type: ignore[no-untyped-def]
    drafts = [Draft(id=f"q1#{i}", example_id="q1", index=i, text=text) for i, (text, _, _) in enumerate(rows)]
    scores = [
        Feedback(
            example_id="q1",
            draft_id=f"q1#{i}",
            refined=Score(value=refined),
            solo=Score(value=solo),
            weak=Score(value=0.0),
        )
        for i, (text, refined, solo) in enumerate(rows)
        if text is not None
    ]
    return build_pairs([question()], drafts, scores, FRAMES, **settings)


def texts(made: Pairing) -> list[tuple[str, str]]:
    return [(p.chosen[0].content, p.rejected[0].content) for p in made.pairs]


def test_a_helpful_draft_is_preferred_to_a_useless_one() -> None:
    made = pairing([("bad", 0, 0), ("good", 1, 0)], rule="paper")
    assert texts(made) == [("good", "bad")]
    (pair,) = made.pairs
    assert pair.prompt == FRAMES.draft(question()) and pair.example_id == "q1"
    assert [m.role for m in (*pair.chosen, *pair.rejected)] == ["assistant", "assistant"]
    assert (pair.chosen_gain, pair.rejected_gain, pair.margin) == (1.0, 0.0, 1.0)
    assert texts(pairing([("bad", 0, 0), ("good", 1, 0)], rule="ordered")) == [("good", "bad")]


def test_only_the_ordered_rule_learns_where_the_strong_model_is_right_alone() -> None:
    rows: list[Row] = [("harmless", 1, 1), ("harmful", 0, 1)]
    assert texts(pairing(rows, rule="paper")) == []
    assert texts(pairing(rows, rule="ordered")) == [("harmless", "harmful")]


def test_the_paper_rule_takes_no_pair_of_two_helpful_drafts() -> None:
    rows: list[Row] = [("fair", 0.6, 0.2), ("best", 1.0, 0.2)]
    assert texts(pairing(rows, rule="paper")) == []
    assert texts(pairing(rows, rule="ordered")) == [("best", "fair")]


def test_equal_gains_give_no_pair() -> None:
    made = pairing([("a", 1, 0), ("b", 1, 0), ("c", 1, 0)])
    assert made.pairs == ()
    assert made.counts["queries_without_contrast"] == 1 and made.counts["gain_positive"] == 3


def test_margins_are_kept() -> None:
    rows: list[Row] = [("a", 0.50, 0), ("b", 0.46, 0), ("c", 0.40, 0)]
    assert texts(pairing(rows, min_margin=0.05)) == [("a", "c"), ("b", "c")]
    assert texts(pairing(rows, min_margin=0.08)) == [("a", "c")]
    assert texts(pairing(rows, min_margin=0.2)) == []


def test_the_widest_margins_come_first_and_the_rest_is_counted() -> None:
    rows: list[Row] = [("low", 0.1, 0.5), ("mid", 0.5, 0.5), ("high", 0.9, 0.5), ("higher", 1.0, 0.5)]
    made = pairing(rows, max_per_query=2)
    assert texts(made) == [("higher", "low"), ("high", "low")]
    assert made.counts["dropped_over_maximum"] == 4 and made.counts["pairs"] == 2


def test_what_has_no_score_never_becomes_a_label_and_is_counted() -> None:
    rows: list[Row] = [
        (None, None, None),
        ("no refinement", None, 0),
        ("no solo", 1, None),
        ("good", 1, 0),
        ("bad", 0, 0),
    ]
    made = pairing(rows)
    assert texts(made) == [("good", "bad")]
    expected = {"drafts": 5, "dropped_failed_draft": 1, "dropped_unscored": 2, "scored": 2, "pairs": 1}
    assert expected.items() <= made.counts.items()


def test_a_draft_without_any_feedback_is_unscored() -> None:
    lone = Draft(id="q1#0", example_id="q1", index=0, text="x")
    made = build_pairs([question()], [lone], [], FRAMES)
    assert made.pairs == () and made.counts["dropped_unscored"] == 1


def test_equal_texts_count_once() -> None:
    made = pairing([("good", 1, 0), (" good\n", 1, 0), ("bad", 0, 0), ("bad", 0, 0)])
    assert texts(made) == [("good", "bad")]
    assert made.counts["dropped_duplicate"] == 2 and made.counts["scored"] == 2


def test_pairs_stay_within_their_query() -> None:
    examples = [question("q1"), question("q2", text="And this?")]
    drafts = [Draft(id=f"{q}#0", example_id=q, index=0, text=f"draft of {q}") for q in ("q1", "q2")]
    zero = Score(value=0.0)
    scores = [
        Feedback(example_id=q, draft_id=f"{q}#0", refined=Score(value=v), solo=zero, weak=zero)
        for q, v in (("q1", 1.0), ("q2", 0.0))
    ]
    made = build_pairs(examples, drafts, scores, FRAMES)
    assert made.pairs == () and made.counts["queries_without_contrast"] == 2


def test_queries_without_drafts_are_counted() -> None:
    assert build_pairs([question()], [], [], FRAMES).counts["queries_without_contrast"] == 1


def test_why_a_query_gives_no_pair_is_counted() -> None:
    def why(rows: list[Row], rule: str = "ordered") -> list[str]:
        counts = pairing(rows, rule=rule).counts
        return [key for key in counts if key.startswith("no_contrast")]

    assert why([("good", 1, 0), ("bad", 0, 0)]) == []
    assert why([("one", 1, 0), ("two", 1, 0)]) == ["no_contrast_equal_worth"]
    assert why([("one", 1, 0), (" one", 1, 0)]) == ["no_contrast_equal_drafts"]
    assert why([("one", None, 0), ("two", 1, 0)]) == ["no_contrast_unscored"]
    assert why([(None, None, 0), ("two", 1, 0)]) == ["no_contrast_too_few_drafts"]
    assert why([("one", 0.52, 0), ("two", 0.5, 0)]) == ["no_contrast_by_the_rule"]
    assert why([("one", 1, 1), ("two", 0, 1)], "paper") == ["no_contrast_by_the_rule"]


scores = st.one_of(st.none(), st.sampled_from([0.0, 0.3, 0.33, 0.5, 1.0]))
some_rows = st.lists(
    st.tuples(st.one_of(st.none(), st.sampled_from(["a", " a", "b", "c", "d"])), scores, scores), max_size=7
)


@given(some_rows, st.sampled_from(["paper", "ordered"]), st.sampled_from([0.01, 0.05, 0.5]), st.integers(1, 5))
def test_always(rows: list[Row], rule: str, min_margin: float, max_per_query: int) -> None:
    made = pairing(rows, rule=rule, min_margin=min_margin, max_per_query=max_per_query)
    assert len(made.pairs) <= max_per_query
    for pair in made.pairs:
        assert pair.chosen_gain > pair.rejected_gain
        assert pair.chosen[0].content.strip() != pair.rejected[0].content.strip()
        if rule == "paper":
            assert pair.chosen_gain > 0 >= pair.rejected_gain
        else:
            assert pair.margin >= min_margin
    found = texts(made)
    assert len(set(found)) == len(found)
    assert not {(worse, better) for better, worse in found} & set(found)
    c = made.counts
    kept = ("scored", "dropped_failed_draft", "dropped_unscored", "dropped_duplicate")
    assert sum(c.get(key, 0) for key in kept) == c["drafts"] == len(rows)
    assert sum(c.get(f"gain_{sign}", 0) for sign in ("positive", "zero", "negative")) == c.get("scored", 0)


@pytest.mark.slow
def test_pairs_on_disk_load_in_trl_unmodified(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data_utils = pytest.importorskip("trl.data_utils")
    made = pairing([("good", 1, 0), ("bad", 0, 0), ("worse", 0, 1)])
    file = JsonlFile(tmp_path / "pairs.jsonl", PreferencePair)
    file.replace(made.pairs)
    loaded = datasets.load_dataset("json", data_files=str(file.path), split="train", cache_dir=str(tmp_path / "cache"))
    assert {"prompt", "chosen", "rejected"} <= set(loaded.column_names)
    assert len(loaded) == len(made.pairs) >= 2
    assert all(data_utils.is_conversational(row) for row in loaded)
    row = loaded[0]
    assert row["prompt"] == [m.model_dump() for m in made.pairs[0].prompt]
    assert row["chosen"] == [{"role": "assistant", "content": "good"}]
    assert json.loads(file.path.read_text().splitlines()[0])["chosen_gain"] == 1.0


def test_a_smaller_limit_keeps_a_part_of_a_larger_one() -> None:
    rows: list[Row] = [(f"draft {i}", i / 10, 0) for i in range(8)]
    whole = texts(pairing(rows, max_per_query=28))
    some = {n: texts(pairing(rows, max_per_query=28, limit=n, seed=1)) for n in (3, 10, 28)}
    assert [len(found) for found in some.values()] == [3, 10, len(whole)] and some[28] == whole
    assert set(some[3]) < set(some[10]) < set(whole)
    assert set(texts(pairing(rows, max_per_query=28, limit=10, seed=2))) != set(some[10])
    assert pairing(rows, max_per_query=28, limit=3).counts["dropped_over_limit"] == len(whole) - 3


def test_rlwf_prefers_the_draft_that_is_right_itself() -> None:
    drafts = [Draft(id=f"q1#{i}", example_id="q1", index=i, text=text) for i, text in enumerate(("right", "helpful"))]
    scores = [
        Feedback(
            example_id="q1", draft_id=d.id, refined=Score(value=refined), solo=Score(value=0.0), weak=Score(value=weak)
        )
        for d, refined, weak in zip(drafts, (0.0, 1.0), (1.0, 0.0), strict=True)
    ]
    assert texts(build_pairs([question()], drafts, scores, FRAMES)) == [("helpful", "right")]
    made = build_pairs([question()], drafts, scores, FRAMES, signal=DraftScore())
    assert texts(made) == [("right", "helpful")]
    assert (made.pairs[0].chosen_gain, made.pairs[0].rejected_gain) == (1.0, 0.0)


def test_of_two_that_help_alike_the_shorter_is_chosen_where_words_have_a_price() -> None:
    rows: list[Row] = [("one two three four", 1, 0), ("one two", 1, 0)]
    assert texts(pairing(rows)) == []
    made = pairing(rows, price_per_word=0.05)
    assert texts(made) == [("one two", "one two three four")]
    assert made.pairs[0].chosen_gain == pytest.approx(0.9)


def test_a_toll_for_a_drafts_text_is_taken_off_what_it_is_worth() -> None:
    rows: list[Row] = [("one two three four", 1, 0), ("one two", 1, 0), ("one", 0, 0)]
    made = pairing(rows, toll=lambda text: len(text) / 100, price_per_word=0.01)
    assert texts(made)[-1] == ("one two", "one two three four")
    assert made.pairs[-1].chosen_gain == pytest.approx(1 - 0.07 - 0.02)


def test_how_often_a_signal_orders_drafts_as_their_outcomes_do_is_counted() -> None:
    rows: list[Row] = [("a", 1, 0), ("b", 0, 0), ("c", 0, 0), ("d", None, 0)]
    made = pairing(rows)
    assert (made.counts["outcomes_differ"], made.counts["outcomes_agree"], made.counts["outcomes_tied"]) == (2, 2, 0)
    blind = pairing(rows, signal=DraftScore())  # every draft scores 0 by itself
    assert (blind.counts["outcomes_differ"], blind.counts["outcomes_agree"], blind.counts["outcomes_tied"]) == (2, 0, 2)
