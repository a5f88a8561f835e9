"""A pool taken for the population: how often a promise that was made on a sample of it is broken on the whole of it.

Of a pool all is known, so that a policy's expected score is a mean and no estimate. Calibration sets are drawn from it with
replacement; each is learned from as `cowest guard` does, with a seed of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from cowest.collaboration.guard.evidence import Arm
from cowest.collaboration.guard.learn import ALONE, Learned, Numbers, expected_of, learn, outcome
from cowest.collaboration.guard.many import Indexes

EXACT = 1e-9
"""Of a mean's rounding: what is as bad as allowed breaks nothing."""


@dataclass(frozen=True)
class Row:
    """A row's expected score, and strong calls a query."""

    score: float
    calls: float


@dataclass(frozen=True)
class Draw:
    """What one calibration set has come to. ``passed`` has the expected score of every policy that passed, in their order.

    ``routes``: whether the row guarded is promised, and not just the single model that looked better. ``unseen``: by how much it
    is better than the better single model on the queries that were not drawn, of which nothing was learned.
    """

    promised: bool
    routes: bool
    guarded: Row
    cascade: Row
    passed: tuple[float, ...]
    unseen: float

    @property
    def worst(self) -> float:
        """The lowest expected score that something is promised of; that of the fallback where nothing is."""
        return min(self.passed, default=self.guarded.score)


def better_of(pool: Numbers) -> Arm:
    """The single model with the higher expected score."""
    return max(ALONE, key=lambda arm: float(pool.scores[arm].mean()))


def judged_on(pool: Numbers, learned: Learned, drawn: Indexes) -> Draw:
    """The exact expected scores on the whole pool of what was learned on the part of it that was drawn."""
    expected = expected_of(pool, learned.judged)
    best, cheapest = learned.best or learned.alone, learned.cheapest or learned.alone
    seen = {
        one.candidate: outcome(pool, learned.judged, one.candidate, expected)
        for one in (*learned.passed, best, cheapest)
    }
    rows = {candidate: Row(float(one.scores.mean()), float(one.calls.mean())) for candidate, one in seen.items()}
    gains = seen[best.candidate].scores - pool.scores[better_of(pool)]
    others = np.setdiff1d(np.arange(len(pool)), drawn)
    return Draw(
        promised=learned.best is not None,
        routes=learned.best is not None and best.candidate.only not in ALONE,
        guarded=rows[best.candidate],
        cascade=rows[cheapest.candidate],
        passed=tuple(rows[one.candidate].score for one in learned.passed),
        unseen=float(gains[others].mean()) if len(others) else 0.0,
    )


def draws(pool: Numbers, resamples: int, calibration: int, risk: float, delta: float, seed: int) -> Iterator[Draw]:
    """One for each calibration set, drawn from the pool with replacement; the set's number is its seed."""
    for number in range(resamples):
        drawn = np.random.default_rng([seed, number]).integers(0, len(pool), calibration)
        yield judged_on(pool, learn(pool.part(drawn), number, risk, delta), drawn)


def rate(broken: int, n: int) -> dict[str, Any]:
    """``broken`` of ``n``, with the exact (Clopper-Pearson) 95% interval of its probability."""
    if not n:
        return {"broken": 0, "n": 0, "rate": None, "ci": None}
    interval = binomtest(broken, n).proportion_ci(0.95, method="exact")
    return {"broken": broken, "n": n, "rate": broken / n, "ci": [float(interval.low), float(interval.high)]}


def described(pool: Numbers, found: Sequence[Draw], risk: float) -> dict[str, Any]:
    """A cell's numbers.

    ``violations``: of all calibration sets, those on which some policy passed that is worse than promised, for the promise is about
    sets (a set on which nothing passes breaks none); ``guarded_violations``: the same of the two rows alone. ``fallback``: of the
    sets without a promise, those whose fallback, the single model that looked better, is worse than that.
    """
    alone = {arm: float(scores.mean()) for arm, scores in pool.scores.items()}
    better = alone[better_of(pool)]
    least = better - risk - EXACT
    promised = [d for d in found if d.promised]
    without = [d for d in found if not d.promised]
    means = {
        name: {key: float(np.mean([value[key] for value in rows])) for key in ("score", "calls")}
        for name in ("guarded", "cascade")
        if (rows := [asdict(d)[name] for d in found])
    }
    return {
        "pool": len(pool),
        "alone": alone,
        "better": better,
        "sets": len(found),
        "promised": len(promised),
        "routes": sum(d.routes for d in found),
        "policies_passed": float(np.mean([len(d.passed) for d in found])),
        "violations": rate(sum(d.worst < least for d in promised), len(found)),
        "row_violations": rate(sum(min(d.guarded.score, d.cascade.score) < least for d in promised), len(found)),
        "fallback": rate(sum(d.guarded.score < least for d in without), len(without)),
        "rows": means,
        "unseen": float(np.mean([d.unseen for d in found])),
    }
