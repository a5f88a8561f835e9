"""Metrics on nasty literal cases, as invariants, and against scikit-learn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from cowest.errors import ConfigError
from cowest.scoring.metrics import (
    METRICS,
    accuracy,
    exact_match,
    get_metric,
    macro_f1,
    squad_exact_match,
    squad_f1,
    token_f1,
)
from cowest.scoring.normal import normalise

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


MEANING = [
    ("<42", "42", 0.0),
    ("< 42", "<42", 1.0),
    ("~42", "42", 0.0),
    ("≈42", "~ 42", 1.0),
    ("≥5", ">=5", 1.0),
    ("(3.14)", "3.14", 1.0),
    ("$3.14", "3.14", 1.0),
    ("−5", "-5", 1.0),
    ("1.0", "10", 0.0),
    ("10-20", "1020", 0.0),
    ("2–1", "2-1", 1.0),
    ("10 – 20", "10-20", 1.0),
    ("50%", "50", 0.0),
    ("50 %", "50%", 1.0),
    ("50 percent", "50%", 1.0),
    ("1,5", "15", 0.0),
    ("1,5", "1.5", 1.0),
    ("1,000", "1000", 1.0),
    ("1.234.567", "1234567", 1.0),
    ("1.234,56", "1234.56", 1.0),
    ("0,123", "0.123", 1.0),
    ("C#", "C", 0.0),
    ("C++", "C", 0.0),
    ("€5", "5", 1.0),
    ("€5", "$5", 0.0),
    ("5 €", "€5", 1.0),
    ("10⁵", "105", 0.0),
    ("10^5", "105", 0.0),
    ("10⁵", "10^5", 1.0),
    ("1½", "11/2", 0.0),
    ("1½", "1 1/2", 1.0),
    ("½", "1/2", 1.0),
    ("10:30", "1030", 0.0),
    ("1e-5", "1e5", 0.0),
    ("18+", "18", 0.0),
    ("A+", "A", 0.0),
    ("A-", "A", 0.0),
    ("O−", "O+", 0.0),
    ("5′", "5", 0.0),
    ("±5", "5", 0.0),
    (".5", "0.5", 1.0),
    ("1,2,3", "123", 0.0),
    ("1, 2, 3", "1,2,3", 1.0),
    ("٤٢", "42", 1.0),
    ("-$5", "-5", 1.0),
    ("US$5", "5", 0.0),
    ("1,00,000", "100000", 1.0),
    ("+5", "5", 1.0),
    ("10%-20%", "10-20", 0.0),
    ("3/4", "34", 0.0),
    ("2*3", "23", 0.0),
    ("2×3", "2*3", 1.0),
    ("p<0.05", "p < 0.05", 1.0),
    ("Answer.", "answer", 1.0),
    ("$5–$10", "5-10", 1.0),
    ("x²", "x2", 1.0),
    ("20°C", "20 °C", 0.0),
    ("-5", "5", 0.0),
    ("minus", "minus", 1.0),
    ("1'000", "1000", 1.0),
    ("a->5", "a 5", 0.0),
    ("１２％", "12%", 1.0),
    ("well-known", "wellknown", 1.0),
    ("10—20", "10-20", 1.0),
    ("O-", "O", 0.0),
    ("re-", "re", 0.0),
    ("COVID-19", "COVID19", 1.0),
    ("5km", "5 km", 0.0),
    ("v1.10", "v110", 0.0),
    ("+42", "42", 1.0),
    ("=42", "42", 1.0),
    (">42", "42", 0.0),
    (">=42", ">42", 0.0),
    ("≤42", "<=42", 1.0),
    ("≦42", "≤42", 1.0),
    ("≠42", "42", 0.0),
    ("about 42", "42", 0.0),
    ("ca. 42", "42", 0.0),
    ("± 3", "3", 0.0),
    ("5±3", "53", 0.0),
    ("5 ± 3", "5±3", 1.0),
    ("42.", "42", 1.0),
    ("42,", "42", 1.0),
    ("42!", "42", 1.0),
    ("'42'", "42", 1.0),
    ("[42]", "42", 1.0),
    ("{42}", "42", 1.0),
    ("#42", "42", 1.0),
    ("No. 42", "42", 0.0),
    ("42 km", "42", 0.0),
    ("42km", "42 km", 0.0),
    ("42°", "42", 0.0),
    ("42° C", "42°C", 1.0),
    ("42‰", "42", 0.0),
    ("42‰", "42%", 0.0),
    ("42'", "42", 0.0),
    ('42"', "42", 0.0),
    ("42″", "42", 0.0),
    ("5'10\"", "510", 0.0),
    ("5′10″", "5'10\"", 1.0),
    ("3:4", "34", 0.0),
    ("3:4", "3/4", 0.0),
    ("1/2", "0.5", 0.0),
    ("1.000", "1000", 0.0),
    ("1.000", "1", 0.0),
    ("1,000.50", "1000.50", 1.0),
    ("1.000,50", "1000.50", 1.0),
    ("1 000", "1000", 1.0),
    ("1\u202f000", "1000", 1.0),
    ("1\xa0000", "1000", 1.0),
    ("10 000 000", "10000000", 1.0),
    ("3 14", "314", 0.0),
    ("1_000", "1000", 1.0),
    ("1e3", "1000", 0.0),
    ("1e+3", "1e3", 1.0),
    ("1E-3", "1e-3", 1.0),
    ("1e-3", "1e3", 0.0),
    ("2^3", "23", 0.0),
    ("2**3", "2^3", 1.0),
    ("x+1", "x1", 0.0),
    ("2x", "2 x", 0.0),
    ("(5)", "-5", 0.0),
    ("(1,2)", "(12)", 0.0),
    ("(1, 2)", "1 2", 1.0),
    ("[1,2]", "(1,2)", 1.0),
    ("1;2", "12", 0.0),
    ("1–2", "12", 0.0),
    ("1 to 2", "1-2", 0.0),
    ("1~2", "12", 0.0),
    ("1～2", "1~2", 1.0),
    ("1…2", "12", 0.0),
    ("1..2", "12", 0.0),
    ("1...2", "1..2", 1.0),
    ("1⁄2", "1/2", 1.0),
    ("5¢", "5", 1.0),
    ("5¢", "$5", 0.0),
    ("£5", "$5", 0.0),
    ("¥500", "500", 1.0),
    ("₹500", "500", 1.0),
    ("5 USD", "5", 0.0),
    ("$5M", "5m", 1.0),
    ("$1,000", "1000", 1.0),
    ("$-5", "-5", 1.0),
    ("5€", "€5", 1.0),
    ("5,50 €", "5.50", 1.0),
    ("1,5 Mio.", "15 mio", 0.0),
    ("0,5", "05", 0.0),
    ("0.50", "0.5", 0.0),
    ("007", "7", 0.0),
    ("12-05-2020", "12052020", 0.0),
    ("2020-05-12", "20200512", 0.0),
    ("2020/05/12", "2020-05-12", 0.0),
    ("12:30 pm", "1230 pm", 0.0),
    ("1.2.3", "123", 0.0),
    ("192.168.1.1", "19216811", 0.0),
    ("v2.0", "v20", 0.0),
    ("F#", "F", 0.0),
    ("F♯", "F", 0.0),
    ("B♭", "B", 0.0),
    ("A−", "A-", 1.0),
    ("Na+", "Na", 0.0),
    ("Ca2+", "Ca2", 0.0),
    ("Ca²⁺", "Ca2+", 1.0),
    ("O−", "O", 0.0),
    ("Cl-", "Cl", 0.0),
    ("HIV-1", "HIV 1", 0.0),
    ("C", "C#", 0.0),
    (".NET", "NET", 1.0),
    ("@home", "home", 1.0),
    ("R&D", "RD", 1.0),
    ("A*", "A", 0.0),
    ("a*", "a", 0.0),
    ("f(x)", "fx", 1.0),
    ("½", "0.5", 0.0),
    ("2½", "2 1/2", 1.0),
    ("50 pct", "50%", 1.0),
    ("50 per cent", "50%", 1.0),
    ("50 percent", "50", 0.0),
    ("fifty", "50", 0.0),
    ("１２３", "123", 1.0),
    ("٣٫١٤", "3.14", 1.0),
    ("१२", "12", 1.0),
    ("一", "1", 0.0),
    ("٪50", "50", 0.0),
    ("50٪", "50%", 1.0),
    ("%50", "50%", 1.0),
    ("－5", "-5", 1.0),
    ("﹣5", "-5", 1.0),
    ("—5", "-5", 0.0),
    ("–5", "-5", 1.0),
    ("‐5", "-5", 1.0),
    ("T–2", "T-2", 1.0),
    ("<0.001", "0.001", 0.0),
    ("p<.001", "p<0.001", 1.0),
    ("p=0.05", "p = 0.05", 1.0),
    ("p=0.05", "0.05", 0.0),
    ("≈42", "42", 0.0),
    ("42+", "42", 0.0),
    ("42-ish", "42", 0.0),
    ("the 42", "42", 1.0),
    ("42 and 43", "4243", 0.0),
    ("4 2", "42", 0.0),
]


@pytest.mark.parametrize(("answer", "reference", "expected"), MEANING)
def test_marks_that_carry_meaning_are_kept(answer: str, reference: str, expected: float) -> None:
    assert exact_match(answer, (reference,)) == exact_match(reference, (answer,)) == expected


def test_squads_script_to_the_letter() -> None:
    pairs = [("<42", "42"), ("10-20", "1020"), ("50%", "50"), ("1,5", "15"), ("C#", "C"), ("The Beatles!", "beatles")]
    assert all(squad_exact_match(a, (b,)) == squad_f1(a, (b,)) == 1.0 for a, b in pairs)
    different = [("\u22125", "5"), ("caf\u00e9", "cafe"), ("a b", "b c"), ("東京都", "東京")]
    assert [squad_exact_match(a, (b,)) for a, b in different] == [0.0] * 4
    assert squad_f1("a red house", ("red house boat",)) == pytest.approx(2 * 2 / 5)
    assert squad_exact_match("the", ("a",)) == squad_f1("the", ("a",)) == 1.0, "as the script has it"
    assert squad_exact_match(None, ("x",)) == squad_f1(None, ("x",)) == 0.0


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("東京都", "東京", 2 * 2 / 5),
        ("東京", "京都", 2 * 1 / 4),
        ("แบร์เกน นอร์เวย์", "แบร์เกน", 2 * 6 / 18),  # a vowel sign counts with its letter
        ("ຫ້າ", "ຫ້າ", 1.0),
        ("東京 Tower", "東京 tower", 1.0),
        ("서울 특별시", "서울", 2 * 1 / 3),  # Korean has spaces
        ("नई दिल्ली", "दिल्ली", 2 * 1 / 3),
    ],
)
def test_f1_counts_characters_where_there_are_no_spaces(answer: str, reference: str, expected: float) -> None:
    assert token_f1(answer, (reference,)) == pytest.approx(expected)
    assert exact_match(answer, (reference,)) == (1.0 if expected == 1.0 else 0.0)


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
    assert set(METRICS) == {"em", "f1", "squad_em", "squad_f1", "accuracy", "macro_f1"}
    assert [name for name, metric in METRICS.items() if metric.kind == "set"] == ["macro_f1"]
    assert all((metric.per_query is None) == (metric.kind == "set") for metric in METRICS.values())
    with pytest.raises(ConfigError, match="no metric 'bleu'; there are: em"):
        get_metric("bleu")
