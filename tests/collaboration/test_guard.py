"""The guard: its promise holds where it is hardest, it tunes on nothing that it certifies, and it routes as it was certified."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.guard_rows import rows_of

from cowest.collaboration.guard.evidence import ARMS, Answered, Arm, Evidence, Said, agreement, features
from cowest.collaboration.guard.learn import (
    CANDIDATES,
    PENALTY,
    Numbers,
    expected_of,
    fitted,
    halves,
    learn,
    outcome,
    regression,
)
from cowest.collaboration.guard.many import walk_all
from cowest.collaboration.guard.policy import Candidate, Judgements, next_step, reason_of, walk
from cowest.collaboration.guard.promise import Pilot, best_bet, capital, certified, least_queries, p_value

RISK, DELTA = 0.02, 0.05
FREE_ONLY: tuple[Arm, ...] = ("weak",)


def losses(rng: np.random.Generator, n: int, worse: float, better: float) -> np.ndarray:
    """Differences of loss: 1 with probability ``worse``, -1 with ``better``, else 0."""
    return rng.choice([1.0, -1.0, 0.0], size=n, p=[worse, better, 1 - worse - better])


@pytest.mark.parametrize(("worse", "better"), [(RISK, 0.0), (0.12, 0.10), (0.51, 0.49)])
def test_at_the_edge_of_the_hypothesis_it_is_rejected_at_most_as_often_as_promised(worse: float, better: float) -> None:
    rng, rejected, tries = np.random.default_rng(0), 0, 2000
    for _ in range(tries):
        pilot = Pilot.of({"weak": losses(rng, 150, worse, better)}, RISK)
        rejected += p_value(pilot, {"weak": losses(rng, 300, worse, better)}, RISK) <= DELTA
    assert rejected <= tries * DELTA + 3 * math.sqrt(tries * DELTA * (1 - DELTA))


def test_the_capital_grows_by_no_more_than_nothing_on_average_under_the_hypothesis() -> None:
    for nu in (0.1, 0.5, 1.0):
        mean = sum(p * (1 + nu * (RISK - d)) for d, p in ((1.0, 0.12), (-1.0, 0.10), (0.0, 0.78)))
        assert mean == pytest.approx(1.0)
    assert capital(np.array([0.0, -1.0]), 0.5, RISK) == pytest.approx(math.log(1.01) + math.log(1.51))


def test_a_policy_that_never_loses_needs_as_many_queries_as_the_risk_says() -> None:
    assert least_queries(RISK, DELTA) == 149 == math.ceil(math.log(DELTA) / math.log(1 - RISK))
    pilot = Pilot.of({"weak": np.zeros(100_000)}, RISK)
    assert p_value(pilot, {"weak": np.zeros(160)}, RISK) < DELTA < p_value(pilot, {"weak": np.zeros(140)}, RISK)


def test_no_bet_is_placed_on_a_policy_that_loses_and_none_is_ever_everything() -> None:
    assert best_bet(np.full(50, 1.0), RISK).nu == pytest.approx(0.0, abs=1e-4)
    assert best_bet(np.zeros(1000), RISK).nu < 1 / (1 - RISK)
    assert Pilot.of({"weak": np.full(50, 1.0)}, RISK).needs(DELTA) is None


def test_both_single_models_are_tested_and_a_policy_is_safe_against_itself() -> None:
    better, worse = np.full(400, -0.2), np.full(400, 0.2)
    pilot = Pilot.of({"weak": better, "strong": better}, RISK)
    assert p_value(pilot, {"weak": better, "strong": better}, RISK) < DELTA
    assert p_value(pilot, {"weak": better, "strong": worse}, RISK) == 1.0
    alone = Pilot.of({"weak": None, "strong": better}, RISK)
    assert p_value(alone, {"weak": None, "strong": better}, RISK) < DELTA


def test_the_sequence_ends_with_the_first_that_fails() -> None:
    good, bad = {"weak": np.full(400, -0.2)}, {"weak": np.full(400, 0.2)}
    pilots = [Pilot.of(good, RISK)] * 3
    assert [i for i, _ in certified([2, 0, 1], pilots, [good, bad, good], RISK, DELTA)] == [2, 0]
    assert certified([1, 0, 2], pilots, [good, bad, good], RISK, DELTA) == []


def numbers(n: int = 600, seed: int = 0, **world: float) -> Numbers:
    return Numbers.of(rows_of(n, seed, **world), ())


def test_where_the_weak_model_knows_what_it_knows_the_whole_is_better_than_each() -> None:
    learned, pool = learn(numbers(), 0, RISK, DELTA), numbers(1000, 9)
    assert learned.best is not None and learned.cheapest is not None
    ahead = expected_of(pool, learned.judged)
    best, cheap = (outcome(pool, learned.judged, one.candidate, ahead) for one in (learned.best, learned.cheapest))
    alone = max(pool.scores["weak"].mean(), pool.scores["strong"].mean())
    assert best.scores.mean() > alone + 0.1
    assert cheap.calls.mean() <= best.calls.mean() <= 2 and cheap.scores.mean() > alone - RISK


def test_a_pair_that_is_better_than_each_is_among_the_policies() -> None:
    learned = learn(numbers(450, both=0.8, informed=0.0, helped=0.0), 0, RISK, DELTA)
    assert "both" in [one.candidate.only for one in learned.passed]
    assert learned.best is not None and learned.best.testing.scores.mean() > 0.7


def test_without_a_promise_the_model_that_did_better_on_all_queries_answers() -> None:
    pool = numbers(60, 11, weak=0.5, strong=0.5, both=0.2)
    for seed in range(8):
        learned = learn(pool, seed, RISK, DELTA)
        assert learned.better == ("weak" if pool.scores["weak"].mean() >= pool.scores["strong"].mean() else "strong")
        assert learned.alone.candidate.only == learned.better


def test_what_certifies_has_chosen_nothing() -> None:
    rows = rows_of(300, 1)
    before = Numbers.of(rows, ())
    first, second = halves(len(rows), 4)
    assert not set(first) & set(second) and len(first) + len(second) == len(rows)
    turned = [
        row.model_copy(update={"scores": {arm: 1 - s for arm, s in row.scores.items()}}) if i in set(second) else row
        for i, row in enumerate(rows)
    ]
    one, other = learn(before, 4, RISK, DELTA), learn(Numbers.of(turned, ()), 4, RISK, DELTA)
    assert one.judged == other.judged
    assert [t.candidate for t in one.tried] == [t.candidate for t in other.tried]
    assert [t.pilot for t in one.tried] == [t.pilot for t in other.tried]
    assert [t.p for t in one.tried] != [t.p for t in other.tried]


def test_the_same_queries_and_seed_give_the_same_guard() -> None:
    one, other = learn(numbers(300), 2, RISK, DELTA), learn(numbers(300), 2, RISK, DELTA)
    assert [t.certificate for t in one.tried] == [t.certificate for t in other.tried] and one.judged == other.judged


def test_a_query_is_routed_as_it_was_certified() -> None:
    rows = rows_of(200, 3)
    judged = fitted(Numbers.of(rows, ()))
    expected = expected_of(Numbers.of(rows, ()), judged)
    for candidate in CANDIDATES:
        who, all_asked = walk_all(judged, candidate, expected)
        for i, row in enumerate(rows[:60]):
            seen = {name: {arm: float(values[i]) for arm, values in each.items()} for name, each in expected.items()}
            assert row.evidence is not None
            evidence = row.evidence.model_copy(update={"arms": {"weak": row.evidence.arms["weak"]}})
            asked = []
            while not (step := next_step(judged, candidate, evidence)).done:
                asked.append(step.arm)
                evidence = evidence.model_copy(
                    update={"arms": {**evidence.arms, step.arm: row.evidence.arms[step.arm]}}
                )
            assert (step.arm, tuple(asked)) == walk(judged, candidate, seen)
            assert (ARMS[who[i]], set(asked)) == (step.arm, {arm for arm in ARMS if all_asked[arm][i]})
            assert len(asked) <= 2 and reason_of(evidence)


def test_a_price_buys_fewer_calls_and_none_at_all_where_it_is_high() -> None:
    pool = numbers(800, 5)
    judged = fitted(pool)
    expected = expected_of(pool, judged)
    calls = [outcome(pool, judged, Candidate(price=price), expected).calls.mean() for price in (0.0, 0.1, 0.3, 2.0)]
    assert calls == sorted(calls, reverse=True) and calls[-1] == 0


def test_too_few_queries_are_refused_and_too_few_for_a_promise_are_told() -> None:
    with pytest.raises(ValueError, match=r"at least 40 are needed, and 224 for a promise"):
        learn(numbers(30), 0, RISK, DELTA)
    learned = learn(numbers(120, strong=0.5, both=0.5, informed=0.0, helped=0.0), 0, RISK, DELTA)
    assert learned.best is None and learned.more is not None and learned.more > 120
    assert learned.alone.candidate.only in ("weak", "strong")


def test_the_promise_is_kept_over_calibration_sets() -> None:
    """Where collaboration hurts and the models are equal, nothing certified is worse than allowed (delta of 16 sets: 0.8)."""
    pool, broken = numbers(1000, 7, weak=0.5, strong=0.5, both=0.44, informed=0.5), 0
    alone = max(pool.scores["weak"].mean(), pool.scores["strong"].mean())
    rng = np.random.default_rng(1)
    for seed in range(16):
        learned = learn(pool.part(rng.integers(0, len(pool), 300)), seed, 0.05, DELTA)
        expected = expected_of(pool, learned.judged)
        found = [outcome(pool, learned.judged, one.candidate, expected).scores.mean() for one in learned.passed]
        broken += any(mean < alone - 0.05 for mean in found)
    assert broken <= 3  # more, of 16 at a rate of 0.05, has a probability of 0.007


@pytest.mark.parametrize("scores", ["right or wrong", "shares", "nearly all right"])
def test_a_regression_is_scikit_learns_at_its_optimum(scores: str) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(3)
    x = rng.normal(size=(120, 7))
    x[:, 6] = x[:, 5]  # one feature twice, as where the draft is the weak model's answer
    sure = 1 / (1 + np.exp(-(2 * x[:, 0] - x[:, 1])))
    y = {
        "right or wrong": (rng.random(120) < sure).astype(float),
        "shares": sure,
        "nearly all right": (np.arange(120) > 0).astype(float),
    }[scores]
    model = linear.LogisticRegression(C=PENALTY, max_iter=10_000, tol=1e-10)
    right = np.repeat([1.0, 0.0], 120)
    model.fit(np.vstack([x, x]), right, sample_weight=np.concatenate([y, 1 - y]))
    found = regression(x, y)
    assert found.bias == pytest.approx(model.intercept_[0], abs=2e-4)
    assert found.weights == pytest.approx(model.coef_[0], abs=2e-4)


def evidence(**arms: Said) -> Evidence:
    return Evidence(
        question_words=3, draft=arms.get("draft", Said()), arms={k: v for k, v in arms.items() if k in ARMS}
    )


def test_features_are_of_what_is_known_and_missing_ones_count_as_their_mean() -> None:
    known = evidence(weak=Said(answer="Yes"), both=Said(answer="yes", words=2), draft=Said(answer="no", words=4))
    seen = features(known, FREE_ONLY, ("yes", "no"))
    assert seen["weak confidence"] is None and seen["draft is weak"] == 0.0
    assert (seen["weak says yes"], seen["weak says no"]) == (1.0, 0.0)
    assert "both is weak" not in seen and features(known, ("weak", "both"))["both is weak"] == 1.0
    judged = fitted(numbers(100))
    found = judged.states["weak"].standardised({})
    assert found == [0.0] * len(judged.states["weak"].names)
    assert agreement("a", ["A", "b", None]) == pytest.approx(1 / 3) and agreement("a", []) is None


def test_judgements_survive_a_file_and_all_right_or_wrong_is_no_error() -> None:
    judged = fitted(numbers(100))
    assert Judgements.model_validate_json(judged.model_dump_json()) == judged
    rows = [
        Answered(example_id=row.example_id, evidence=row.evidence, scores={"weak": 1.0, "strong": 0.0, "both": 1.0})
        for row in rows_of(60, 2)
    ]
    judged = fitted(Numbers.of(rows, ()))
    assert judged.base == "weak"
    expected = expected_of(Numbers.of(rows, ()), judged)["weak"]
    assert expected["weak"].min() > 0.9 > 0.1 > expected["strong"].max()
