"""Intervals and paired tests: against exact values, as invariants, and how often the interval covers."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap
from sklearn.metrics import f1_score

from cowest.errors import ConfigError
from cowest.scoring.metrics import token_f1
from cowest.scoring.statistics import RESAMPLES, Outcome, compare, pool, summarise

LABELS = ("yes", "no", "maybe")
ALL = ("em", "f1", "accuracy", "macro_f1")


def outcomes(answers: list[str | None], truth: list[str]) -> list[Outcome]:
    pairs = enumerate(zip(answers, truth, strict=True))
    return [Outcome(example_id=f"q{i}", answer=a, references=(t,)) for i, (a, t) in pairs]


def right(flags: list[bool]) -> list[Outcome]:
    return outcomes(["yes" if flag else "no" for flag in flags], ["yes"] * len(flags))


labelled = st.lists(
    st.tuples(st.sampled_from([*LABELS, None]), st.sampled_from([*LABELS, None]), st.sampled_from(LABELS)),
    min_size=1,
    max_size=25,
)


def test_failed_calls_are_excluded_and_counted_but_missing_answers_are_wrong() -> None:
    rows = [*outcomes(["yes", None], ["yes", "yes"])]
    rows += [Outcome(example_id="x", answer=None, references=("yes",), failed=True)]
    value = summarise(["accuracy"], LABELS, rows, seed=0)["accuracy"]
    assert (value.mean, value.n, value.n_failed) == (0.5, 2, 1)


def test_nothing_scored_gives_none() -> None:
    rows = [Outcome(example_id="x", answer=None, references=("yes",), failed=True)]
    for value in summarise(ALL, LABELS, rows, seed=0).values():
        assert (value.mean, value.ci_low, value.ci_high, value.n, value.n_failed) == (None, None, None, 0, 1)
    assert summarise(["em"], (), [], seed=0)["em"].n == 0


def test_summary_agrees_with_scipy_bootstrap() -> None:
    rng = np.random.default_rng(1)
    answers = [" ".join(rng.choice(["a1", "b1", "c1", "d1"], size=3)) for _ in range(80)]
    rows = outcomes(list(answers), ["a1 b1 c1"] * 80)
    value = summarise(["f1"], (), rows, seed=3)["f1"]
    per_query = [token_f1(row.answer, row.references) for row in rows]
    theirs = bootstrap((per_query,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(5))
    assert value.mean == pytest.approx(np.mean(per_query))
    assert value.ci_low == pytest.approx(theirs.confidence_interval.low, abs=0.006)
    assert value.ci_high == pytest.approx(theirs.confidence_interval.high, abs=0.006)


def test_macro_f1_interval_agrees_with_resampling_queries() -> None:
    rng = np.random.default_rng(2)
    truth = rng.choice(LABELS, size=60, p=[0.6, 0.3, 0.1])
    answers = np.where(rng.random(60) < 0.7, truth, rng.choice(["yes", "no", "none"], size=60))
    rows = outcomes([None if a == "none" else str(a) for a in answers], [str(t) for t in truth])
    value = summarise(["macro_f1"], LABELS, rows, seed=0)["macro_f1"]
    draws = []
    for _ in range(400):
        index = rng.integers(0, 60, 60)
        draws.append(f1_score(truth[index], answers[index], labels=list(LABELS), average="macro", zero_division=0))
    low, high = np.quantile(draws, [0.025, 0.975])
    assert value.mean == pytest.approx(f1_score(truth, answers, labels=list(LABELS), average="macro", zero_division=0))
    assert value.ci_low == pytest.approx(low, abs=0.04)
    assert value.ci_high == pytest.approx(high, abs=0.04)


def test_interval_covers_the_true_mean_about_95_percent_of_the_time() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        value = summarise(["accuracy"], (), right(list(rng.random(100) < 0.7)), seed)["accuracy"]
        assert value.ci_low is not None and value.ci_high is not None
        hits += value.ci_low <= 0.7 <= value.ci_high
    assert 0.90 <= hits / 200 <= 0.99


def test_false_alarms_stay_near_five_percent() -> None:
    rng = np.random.default_rng(4)
    alarms = {"paired_bootstrap": 0, "mcnemar_exact": 0}
    for seed in range(200):
        a, b = right(list(rng.random(80) < 0.6)), right(list(rng.random(80) < 0.6))
        for result in compare("accuracy", (), "a", a, "b", b, seed):
            assert result.p is not None
            alarms[result.test] += result.p < 0.05
    assert alarms["paired_bootstrap"] / 200 < 0.10
    assert alarms["mcnemar_exact"] / 200 < 0.08


@settings(max_examples=25, deadline=None)
@given(labelled, st.sampled_from(ALL), st.integers(0, 5))
def test_swapping_flips_the_sign_and_keeps_p(
    rows: list[tuple[str | None, str | None, str]], metric: str, seed: int
) -> None:
    a, b = (outcomes([row[i] for row in rows], [row[2] for row in rows]) for i in (0, 1))
    for ab, ba in zip(
        compare(metric, LABELS, "a", a, "b", b, seed),
        compare(metric, LABELS, "b", b[::-1], "a", a, seed),  # nor does the order of the queries matter
        strict=True,
    ):
        assert ab.diff is not None and ba.diff is not None
        assert ba.ci_low is not None and ba.ci_high is not None
        assert ab.diff == pytest.approx(-ba.diff, abs=1e-12)
        assert ab.ci_low == pytest.approx(-ba.ci_high, abs=1e-9)
        assert ab.ci_high == pytest.approx(-ba.ci_low, abs=1e-9)
        assert ab.p == ba.p
        assert ab.p is not None and 0 < ab.p <= 1


@settings(max_examples=25, deadline=None)
@given(labelled, st.sampled_from(ALL))
def test_identical_systems_do_not_differ(rows: list[tuple[str | None, str | None, str]], metric: str) -> None:
    same = outcomes([a for a, _, _ in rows], [t for _, _, t in rows])
    for result in compare(metric, LABELS, "a", same, "b", same, seed=0):
        assert (result.diff, result.ci_low, result.ci_high, result.p) == (0.0, 0.0, 0.0, 1.0)


@settings(max_examples=25, deadline=None)
@given(labelled, st.sampled_from(ALL))
def test_summary_is_ordered_and_deterministic(rows: list[tuple[str | None, str | None, str]], metric: str) -> None:
    sample = outcomes([a for a, _, _ in rows], [t for _, _, t in rows])
    value = summarise([metric], LABELS, sample, seed=1)[metric]
    assert value == summarise([metric], LABELS, sample[::-1], seed=1)[metric]
    assert value.ci_low is not None and value.mean is not None and value.ci_high is not None
    assert 0 <= value.ci_low <= value.ci_high <= 1
    assert 0 <= value.mean <= 1


def test_mcnemar_is_the_exact_binomial() -> None:
    a, b = right([True] * 9 + [False] + [True] * 5), right([False] * 9 + [True] + [True] * 5)
    boot, mcnemar = compare("em", (), "a", a, "b", b, seed=0)
    assert (boot.test, mcnemar.test) == ("paired_bootstrap", "mcnemar_exact")
    assert mcnemar.p == pytest.approx(2 * (1 + 10) / 2**10)  # 9 against 1 of 10 discordant
    assert (mcnemar.diff, mcnemar.ci_low, mcnemar.ci_high, mcnemar.n) == (boot.diff, boot.ci_low, boot.ci_high, 15)
    assert boot.diff == pytest.approx(8 / 15)


def test_no_discordant_pairs_give_p_one() -> None:
    same = right([True, False])
    assert [result.p for result in compare("accuracy", (), "a", same, "b", same, seed=0)] == [1.0, 1.0]


def test_strong_effect_reaches_small_p_and_never_zero() -> None:
    (result,) = compare("f1", (), "a", right([True] * 60), "b", right([False] * 60), seed=0)
    assert result.p == pytest.approx(2 / (RESAMPLES + 1))
    assert result.p is not None and 0 < result.p < 0.001


def test_only_shared_scored_queries_count() -> None:
    a = right([True, True, True])
    b = right([False, True, True, True])
    b[1] = b[1].model_copy(update={"failed": True})
    result = compare("f1", (), "a", a, "b", b, seed=0)[0]
    assert (result.n, result.diff) == (2, 0.5)


def test_nothing_shared_gives_none() -> None:
    a, b = pool({"x": right([True])}), pool({"y": right([True])})
    results = compare("em", (), "a", a, "b", b, seed=0)
    assert [result.test for result in results] == ["paired_bootstrap", "mcnemar_exact"]
    for result in results:
        assert (result.diff, result.ci_low, result.ci_high, result.p, result.n) == (None, None, None, None, 0)


def test_pool_prefixes_ids_and_sharpens_the_test() -> None:
    rng = np.random.default_rng(7)
    worlds = {str(seed): (rng.random(60) < 0.8, rng.random(60) < 0.65) for seed in range(3)}
    a = pool({seed: right(list(flags[0])) for seed, flags in worlds.items()})
    b = pool({seed: right(list(flags[1])) for seed, flags in worlds.items()})
    assert [outcome.example_id for outcome in a[:2]] == ["0/q0", "0/q1"]
    pooled = compare("accuracy", (), "a", a, "b", b, seed=0)[1]
    assert pooled.n == 180
    assert pooled.diff == pytest.approx(np.mean([flags[0].mean() - flags[1].mean() for flags in worlds.values()]))


def test_misuse_is_named() -> None:
    twice = [*right([True]), *right([False])]
    with pytest.raises(ValueError, match="twice"):
        summarise(["em"], (), twice, seed=0)
    with pytest.raises(ValueError, match="labels"):
        summarise(["macro_f1"], (), right([True]), seed=0)
    with pytest.raises(ConfigError, match="bleu"):
        compare("bleu", (), "a", [], "b", [], seed=0)


def test_a_thousand_queries_are_quick() -> None:
    rng = np.random.default_rng(0)
    truth = [str(t) for t in rng.choice(LABELS, size=1000)]
    rows = outcomes([str(a) for a in rng.choice(LABELS, size=1000)], truth)
    start = time.process_time()
    summarise(("accuracy", "macro_f1"), LABELS, rows, seed=0)
    assert time.process_time() - start < 1.0


def cut(rows: list[Outcome], *which: int) -> list[Outcome]:
    return [r.model_copy(update={"answer": None, "cut": True}) if i in which else r for i, r in enumerate(rows)]


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "em", "f1"])
def test_answers_that_were_cut_off_are_neither_right_nor_wrong(metric: str) -> None:
    rows = right([True, True, False, True])
    value = summarise([metric], LABELS, cut(rows, 0, 2), seed=0)[metric]
    kept = summarise([metric], LABELS, [rows[1], rows[3]], seed=0)[metric]
    assert (value.mean, value.ci_low, value.ci_high) == (kept.mean, kept.ci_low, kept.ci_high)
    assert (value.n, value.n_cut, value.n_failed) == (2, 2, 0)
    wrong = [r.model_copy(update={"cut": False}) for r in cut(rows, 0, 2)]
    assert value.mean_cut_wrong == pytest.approx(summarise([metric], LABELS, wrong, seed=0)[metric].mean)


def test_nothing_cut_means_no_second_mean() -> None:
    value = summarise(["em"], (), right([True, False]), seed=0)["em"]
    assert (value.n_cut, value.mean_cut_wrong) == (0, None)


def test_all_cut_has_no_mean_but_one_that_counts_them_as_wrong() -> None:
    rows = [*cut(right([True, True]), 0, 1), Outcome(example_id="x", answer=None, references=("yes",), failed=True)]
    value = summarise(["em"], (), rows, seed=0)["em"]
    assert (value.mean, value.n, value.n_cut, value.n_failed, value.mean_cut_wrong) == (None, 0, 2, 1, 0.0)


def test_a_comparison_leaves_out_what_either_system_was_cut_off_on_and_says_so() -> None:
    a, b = right([True] * 6), cut(right([False] * 6), 0, 1, 2)
    for result in compare("accuracy", (), "a", a, "b", b, seed=0):
        assert (result.n, result.a_cut, result.b_cut, result.diff) == (3, 0, 3, 1.0)
    gone = compare("accuracy", (), "a", a, "b", cut(b, *range(6)), seed=0)[0]
    assert (gone.n, gone.diff, gone.p, gone.b_cut) == (0, None, None, 6)
