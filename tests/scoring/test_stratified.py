"""Means and differences over tasks: against scipy, McNemar and exact enumeration; strata are kept, tasks weigh the same."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap, permutation_test
from sklearn.metrics import f1_score

from cowest.scoring.metrics import token_f1
from cowest.scoring.statistics import Outcome, compare, summarise
from cowest.scoring.stratified import TEST, TaskOutcomes, compare_over_tasks, mean_over_tasks

LABELS = ("yes", "no", "maybe")
Flags = Sequence[bool | int]


def right(flags: Flags, by_seed: int = 1) -> TaskOutcomes:
    """Right or wrong, dealt to so many seeds."""
    rows = [Outcome(example_id=str(i), answer=str(bool(f)), references=("True",)) for i, f in enumerate(flags)]
    return TaskOutcomes("accuracy", (), {str(s): rows[s::by_seed] for s in range(by_seed)})


def texts(answers: Sequence[str]) -> TaskOutcomes:
    rows = [Outcome(example_id=str(i), answer=a, references=("a1 b1 c1",)) for i, a in enumerate(answers)]
    return TaskOutcomes("f1", (), {"0": rows})


def test_each_task_weighs_the_same_however_many_queries_it_has() -> None:
    many, few = [True] * 90 + [False] * 10, [True] + [False] * 9
    value = mean_over_tasks([right(many), right(few)], seed=0)
    assert value.mean == pytest.approx((0.9 + 0.1) / 2) and value.n == 110
    found = compare_over_tasks("a", [right(many), right(few)], "b", [right([False] * 100), right(few)], 0).comparison
    assert found.diff == pytest.approx(0.45)
    assert (found.n, found.test, found.metric) == (110, TEST, "mean over tasks")


def test_the_interval_agrees_with_scipys_over_independent_samples() -> None:
    rng = np.random.default_rng(1)
    found = [[" ".join(rng.choice(["a1", "b1", "c1"], size=3)) for _ in range(n)] for n in (70, 30)]
    values = [[token_f1(t, ("a1 b1 c1",)) for t in task] for task in found]
    mine = mean_over_tasks([texts(task) for task in found], seed=0)

    def over_tasks(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray((x.mean(axis=axis) + y.mean(axis=axis)) / 2)

    theirs = bootstrap(values, over_tasks, n_resamples=10_000, method="percentile", rng=np.random.default_rng(2))
    assert mine.mean == pytest.approx(np.mean([np.mean(v) for v in values]))
    assert mine.ci_low == pytest.approx(theirs.confidence_interval.low, abs=0.004)
    assert mine.ci_high == pytest.approx(theirs.confidence_interval.high, abs=0.004)


def test_seeds_are_strata_of_their_own() -> None:
    """One world all right and the other all wrong: how many of each is no matter of chance, though pooled it would be."""
    task = TaskOutcomes("accuracy", (), {"1": right([True] * 40).by_seed["0"], "2": right([False] * 40).by_seed["0"]})
    value = mean_over_tasks([task], seed=0)
    assert (value.mean, value.ci_low, value.ci_high) == (0.5, 0.5, 0.5)
    pooled = summarise(("accuracy",), (), right([True] * 40 + [False] * 40).by_seed["0"], 0)["accuracy"]
    assert pooled.ci_low is not None and pooled.ci_low < 0.45


def test_strata_that_look_alike_are_drawn_independently() -> None:
    flags = [True, False] * 50
    one, four = (mean_over_tasks([right(flags)] * n, seed=0) for n in (1, 4))
    widths = [(v.ci_high or 0) - (v.ci_low or 0) for v in (one, four)]
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.1)  # as the square root of four times the queries


@pytest.mark.parametrize(("wins", "losses"), [((9, 4), (2, 3)), ((30, 5), (12, 10)), ((1, 1), (1, 1))])
def test_of_right_and_wrong_in_tasks_of_one_size_it_is_mcnemar_pooled(
    wins: tuple[int, int], losses: tuple[int, int]
) -> None:
    a = [right([1] * w + [0] * lo + [1] * (60 - w - lo), 2) for w, lo in zip(wins, losses, strict=True)]
    b = [right([0] * w + [1] * lo + [1] * (60 - w - lo), 2) for w, lo in zip(wins, losses, strict=True)]
    exact = binomtest(sum(wins), sum(wins) + sum(losses), 0.5).pvalue
    p = compare_over_tasks("a", a, "b", b, 0).comparison.p
    assert p == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 1e6) ** 0.5 + 2e-6)


def test_p_is_that_of_every_flip_where_tasks_differ_in_size() -> None:
    """Enumerated: 2**9 ways to swap, with weights that McNemar on the pooled counts has not."""
    signs: Mapping[int, Sequence[int]] = {5: [1, 1, 1, -1], 40: [1, 1, 1, 1, -1]}
    weights = [1 / (2 * n) for n, moved in signs.items() for _ in moved]
    observed = sum(w * s for w, s in zip(weights, [s for moved in signs.values() for s in moved], strict=True))
    all_ = [sum(w * s for w, s in zip(weights, flips, strict=True)) for flips in itertools.product((1, -1), repeat=9)]
    exact = np.mean([abs(d) >= abs(observed) - 1e-12 for d in all_])
    a = [right([s > 0 for s in moved] + [1] * (n - len(moved))) for n, moved in signs.items()]
    b = [right([s < 0 for s in moved] + [1] * (n - len(moved))) for n, moved in signs.items()]
    found = compare_over_tasks("a", a, "b", b, 3).comparison
    assert found.diff == pytest.approx(observed) and found.p == pytest.approx(exact, abs=0.002)
    assert abs(exact - binomtest(7, 9, 0.5).pvalue) > 0.01, "or this would show nothing"


def test_p_agrees_with_scipys_permutation_test_on_scores_between() -> None:
    rng = np.random.default_rng(5)
    words = [
        [[" ".join(rng.choice(["a1", "b1", "c1", *side], size=3)) for _ in range(n)] for n in (25, 60)]
        for side in ([], ["x"])
    ]
    values = [[np.array([token_f1(t, ("a1 b1 c1",)) for t in task]) for task in system] for system in words]
    weighted = np.concatenate([(x - y) / (2 * len(x)) for x, y in zip(*values, strict=True)])
    theirs = permutation_test(
        (weighted,), np.sum, permutation_type="samples", n_resamples=20_000, vectorized=True,
        rng=np.random.default_rng(6), batch=2_000,
    )  # fmt: skip
    mine = compare_over_tasks("a", [texts(t) for t in words[0]], "b", [texts(t) for t in words[1]], 0).comparison
    assert mine.diff == pytest.approx(theirs.statistic)
    assert 0.001 < theirs.pvalue < 0.9 and mine.p == pytest.approx(theirs.pvalue, rel=0.15)


def test_macro_f1_is_that_of_the_whole_task() -> None:
    rng = np.random.default_rng(8)
    truth, a, b = ([str(x) for x in rng.choice(LABELS, size=60)] for _ in range(3))
    a = [t if rng.random() < 0.5 else x for t, x in zip(truth, a, strict=True)]

    def task(answers: Sequence[str]) -> TaskOutcomes:
        rows = [
            Outcome(example_id=f"{i:02}", answer=x, references=(t,))
            for i, (x, t) in enumerate(zip(answers, truth, strict=True))
        ]
        return TaskOutcomes("macro_f1", LABELS, {"1": rows[:30], "2": rows[30:]})

    found = compare_over_tasks("a", [task(a)], "b", [task(b)], 0)
    expected = [f1_score(truth, x, average="macro", labels=LABELS, zero_division=0) for x in (a, b)]
    assert found.comparison.diff == pytest.approx(expected[0] - expected[1])
    assert mean_over_tasks([task(a)], 0).mean == pytest.approx(expected[0])
    assert found.comparison.p is not None and found.comparison.p < 0.01


def test_a_swap_flips_the_signs_and_keeps_p_and_equals_differ_in_nothing() -> None:
    rng = np.random.default_rng(4)
    a, b = ([right(list(rng.random(50) < rate), 2), right(list(rng.random(20) < rate))] for rate in (0.6, 0.5))
    there, back = compare_over_tasks("a", a, "b", b, 1).comparison, compare_over_tasks("b", b, "a", a, 1).comparison
    assert there.p == back.p and there.diff == pytest.approx(-(back.diff or 0)) and there.diff
    assert there.ci_low == pytest.approx(-(back.ci_high or 0)) and there.ci_high == pytest.approx(-(back.ci_low or 0))
    same = compare_over_tasks("a", a, "b", a, 1)
    assert (same.comparison.diff, same.comparison.p, same.at_least) == (0.0, 1.0, 0.0)


def test_the_one_sided_bound_lies_between_the_two_sided_one_and_the_difference() -> None:
    rng = np.random.default_rng(9)
    a, b = ([right(list(rng.random(300) < 0.6)), right(list(rng.random(300) < 0.7))] for _ in range(2))
    found = compare_over_tasks("a", a, "b", b, 1)
    c = found.comparison
    assert c.diff is not None and c.ci_low is not None and found.at_least is not None
    assert c.ci_low < found.at_least < c.diff
    assert (c.diff - found.at_least) / (c.diff - c.ci_low) == pytest.approx(1.645 / 1.96, abs=0.06)


def test_one_task_with_one_seed_is_what_its_own_comparison_says() -> None:
    rng = np.random.default_rng(2)
    a, b = (right(list(rng.random(200) < rate)) for rate in (0.6, 0.5))
    mine = compare_over_tasks("a", [a], "b", [b], 0).comparison
    boot, exact = compare("accuracy", (), "a", a.by_seed["0"], "b", b.by_seed["0"], 0)
    assert mine.diff == boot.diff and mine.p == pytest.approx(exact.p, abs=0.003)
    assert mine.ci_low == pytest.approx(boot.ci_low, abs=0.006)


def test_failed_and_cut_answers_are_left_out_and_a_task_without_any_leaves_no_figure() -> None:
    rows = [
        Outcome(example_id="0", answer="True", references=("True",)),
        Outcome(example_id="1", answer=None, references=("True",), cut=True),
        Outcome(example_id="2", answer=None, references=("True",), failed=True),
    ]
    holes = TaskOutcomes("accuracy", (), {"1": rows, "2": rows[2:]})
    value = mean_over_tasks([holes, right([1, 0])], 0)
    assert (value.mean, value.n, value.n_failed, value.n_cut) == (0.75, 3, 2, 1)
    assert value.mean_cut_wrong == pytest.approx((0.5 + 0.5) / 2)
    whole = TaskOutcomes("accuracy", (), {"1": right([0, 0, 1]).by_seed["0"], "2": right([0] * 4).by_seed["0"]})
    found = compare_over_tasks("a", [holes, right([1, 0])], "b", [whole, right([0, 0])], 0).comparison
    assert found.diff == pytest.approx((1 + 0.5) / 2) and (found.n, found.a_cut, found.b_cut) == (3, 1, 0)
    nothing = TaskOutcomes("accuracy", (), {"1": rows[1:], "2": []})
    lost = mean_over_tasks([nothing, right([1, 0])], 0)
    assert (lost.mean, lost.ci_low, lost.mean_cut_wrong, lost.n) == (None, None, None, 2)
    none = compare_over_tasks("a", [nothing, right([1])], "b", [nothing, right([0])], 0)
    assert (none.comparison.diff, none.comparison.p, none.at_least, none.comparison.a_cut) == (None, None, None, 1)
    with pytest.raises(ValueError, match="the same tasks and seeds"):
        compare_over_tasks("a", [right([1], 1)], "b", [right([1, 1], 2)], 0)


def test_scores_between_of_many_queries_take_seconds_at_most() -> None:
    rng = np.random.default_rng(3)
    words = [[" ".join(rng.choice(list("abcdefgh"), size=6)) for _ in range(900)] for _ in range(6)]
    found = compare_over_tasks("a", [texts(t) for t in words[:3]], "b", [texts(t) for t in words[3:]], 0)
    assert found.comparison.p is not None and found.comparison.n == 2700
