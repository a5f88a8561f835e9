"""Agreement with references, and intervals that hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from cowest.scoring.powered import Estimate, agreement, powered_mean

TRUE_MEAN = 0.1


def drawn(rng: np.random.Generator, n: int, noise: float, bias: float) -> tuple[list[float], list[float]]:
    """Gains of -1, 0 or 1 whose mean is TRUE_MEAN, and a judge's word in another unit, biased and noisy."""
    truth = rng.choice([-1.0, 0.0, 1.0], p=[0.2, 0.5, 0.3], size=n)
    said = np.clip(0.5 * truth + bias + rng.normal(0, noise, size=n), -0.5, 0.5)
    return truth.tolist(), said.tolist()


def estimates(noise: float, bias: float, times: int = 1000, labelled: int = 30, more: int = 300) -> list[Estimate]:
    rng, found = np.random.default_rng(0), list[Estimate]()
    for _ in range(times):
        truth, said = drawn(rng, labelled, noise, bias)
        _, beyond = drawn(rng, more, noise, bias)
        one = powered_mean(truth, said, beyond)
        assert one is not None
        found.append(one)
    return found


@pytest.mark.parametrize("noise", [0.05, 0.3, 3.0])
def test_the_interval_covers_the_truth_however_good_the_judge(noise: float) -> None:
    found = estimates(noise, bias=0.2)
    covered = sum(e.ci_low <= TRUE_MEAN <= e.ci_high for e in found) / len(found)
    assert 0.93 <= covered <= 0.975  # 95% +- three standard errors, some loss at n = 30 allowed


def test_a_good_judge_narrows_it_and_a_useless_one_does_no_harm() -> None:
    def width(noise: float) -> float:
        return float(np.mean([e.ci_high - e.ci_low for e in estimates(noise, bias=0.2, times=300)]))

    rng = np.random.default_rng(0)
    alone = [powered_mean(*drawn(rng, 30, 0.1, 0.2), []) for _ in range(300)]
    plain = float(np.mean([e.ci_high - e.ci_low for e in alone if e is not None]))
    assert width(0.05) < 0.6 * plain
    assert width(3.0) < 1.02 * plain


def test_by_hand() -> None:
    found = powered_mean([0.0, 1.0, 0.0, 1.0], [0.0, 0.5, 0.0, 0.5], [0.5] * 6 + [0.0] * 2)
    assert found is not None
    # cov(y, f) = 1/6, var of all twelve = 2/33, so the weight is (1/6) / ((1 + 4/8) * 2/33)
    weight = (1 / 6) / (1.5 * np.var([0.0, 0.5, 0.0, 0.5] + [0.5] * 6 + [0.0] * 2, ddof=1))
    assert found.weight == pytest.approx(weight)
    assert found.mean == pytest.approx(0.5 + weight * (0.375 - 0.25))
    assert (found.labelled, found.judged) == (4, 8)


def test_without_more_it_is_the_mean_with_students_interval() -> None:
    found = powered_mean([0.0, 1.0, 1.0], [0.5, 0.5, 0.5], [])
    assert found is not None and found.mean == pytest.approx(2 / 3) and found.weight == 0
    assert found.ci_high - found.mean == pytest.approx(4.302653 / 3, rel=1e-5)  # t of 2 degrees, s = 1/sqrt(3)
    same = powered_mean([0.0, 1.0, 1.0], [0.5, 0.5, 0.5], [0.5, 0.5])
    assert same is not None and same.weight == 0, "a judge that always says the same"
    against = powered_mean([0.0, 1.0, 1.0], [0.5, -0.5, -0.5], [0.5, -0.5])
    assert against is not None and against.weight == 0, "and one that says the opposite"
    assert powered_mean([1.0], [0.5], [0.5, 0.0]) is None
    with pytest.raises(ValueError, match="every labelled query"):
        powered_mean([1.0, 0.0], [0.5], [])


def test_agreement_counts_signs_and_takes_chance_off() -> None:
    truth = [1.0, 1.0, 0.0, -1.0, 0.0, 1.0]
    judged = [0.5, 0.25, 0.0, 0.5, -0.5, -0.1]
    found = agreement(truth, judged)
    assert (found.agree.n, found.agree.of, found.opposite) == (3, 6, 2)
    # chance: better 3/6 * 3/6, equal 2/6 * 1/6, worse 1/6 * 2/6
    chance = (9 + 2 + 2) / 36
    assert found.kappa == pytest.approx((0.5 - chance) / (1 - chance))
    assert agreement([0.0, 0.0], [0.0, 0.0]).kappa is None and agreement([], []).agree.share is None
