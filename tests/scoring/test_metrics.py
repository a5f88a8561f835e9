"""Metrics on nasty literal cases, as invariants, and against scikit-learn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from cowest.errors import ConfigError
from cowest.scoring.metrics import METRICS, accuracy, exact_match, get_metric, macro_f1, normalise, token_f1

LABELS = ("yes", "no", "maybe")
words = st.text(alphabet="abthe né-.,5½ \u2019", max_size=20)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Eiffel\tTower!", "eiffel tower"),
        ("an apple, a day", "apple day"),
        ("\uff34\uff4f\uff4b\uff59\uff4f", "tokyo"),  # full width
        ("cafe\u0301", "café"),  # combining accent
        ("\u201cD\u2019Arc\u201d", "darc"),
        ("1,000", "1000"),
        ("1.5 kg.", "1.5 kg"),
        ("-5", "-5"),
        ("\u22125", "-5"),  # a typographic minus
        ("½", "1/2"),
        ("well-known", "wellknown"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("the", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("The Beatles.", ("beatles",), 1.0),
        ("B", ("A", "b"), 1.0),
        ("5", ("-5",), 0.0),
        ("15", ("1.5",), 0.0),
        ("The", ("A",), 0.0),  # nothing is left of either; they still differ
        ("a", ("A",), 1.0),
        ("", ("x",), 0.0),
        (None, ("x",), 0.0),
        ("x", (), 0.0),
    ],
)
def test_exact_match(answer: str | None, references: tuple[str, ...], expected: float) -> None:
    assert exact_match(answer, references) == expected


def test_token_f1_values() -> None:
    assert token_f1("the red house", ("red house",)) == 1.0
    assert token_f1("red red house", ("red house",)) == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert token_f1("blue", ("red house",)) == 0.0
    assert token_f1("house", ("red house", "small house boat", "dog")) == pytest.approx(2 / 3)  # the best one counts
    assert token_f1("the", ("A",)) == 0.0
    assert token_f1(None, ("x",)) == 0.0


@given(words, words)
def test_f1_is_symmetric_bounded_and_at_least_em(a: str, b: str) -> None:
    assert token_f1(a, (b,)) == pytest.approx(token_f1(b, (a,)))
    assert exact_match(a, (b,)) <= token_f1(a, (b,)) <= 1.0
    assert exact_match(a, (a,)) == token_f1(a, (a,)) == 1.0


@given(words, st.lists(words, min_size=1, max_size=4))
def test_more_references_never_hurt(answer: str, references: list[str]) -> None:
    for metric in (exact_match, token_f1):
        assert metric(answer, references) == max(metric(answer, [reference]) for reference in references)


def test_accuracy_is_to_the_letter() -> None:
    assert accuracy("A", ("A",)) == 1.0
    assert accuracy("A", ("B", "A")) == 1.0
    assert accuracy("a", ("A",)) == 0.0
    assert accuracy(None, ("A",)) == 0.0


@given(st.lists(st.tuples(st.sampled_from([*LABELS, "other", None]), st.sampled_from([*LABELS, "gone"])), min_size=1))
def test_macro_f1_agrees_with_scikit_learn(rows: list[tuple[str | None, str]]) -> None:
    answers, truth = [a for a, _ in rows], [t for _, t in rows]
    filled = ["<none>" if a is None else a for a in answers]
    theirs = f1_score(truth, filled, labels=list(LABELS), average="macro", zero_division=0)
    assert macro_f1(answers, [(t,) for t in truth], LABELS) == pytest.approx(theirs, abs=1e-12)


def test_macro_f1_counts_any_reference_as_right() -> None:
    assert macro_f1(["no"], [("yes", "no")], ("no",)) == 1.0


def test_macro_f1_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        macro_f1([], [], LABELS)


def test_registry() -> None:
    assert set(METRICS) == {"em", "f1", "accuracy", "macro_f1"}
    assert [name for name, metric in METRICS.items() if metric.kind == "set"] == ["macro_f1"]
    assert all((metric.per_query is None) == (metric.kind == "set") for metric in METRICS.values())
    with pytest.raises(ConfigError, match="'bleu'; known are em"):
        get_metric("bleu")
