"""The promise: a test, valid for every sample size, that a policy loses at most ``risk`` against a model alone.

The loss of a query is 1 minus its score, in [0, 1]; ``D`` is the policy's loss minus the single model's on the same query.
The hypothesis to be rejected is E[D] > risk. A bet of ``nu`` in [0, 1/(1 - risk)] against it multiplies the capital by
``1 + nu (risk - D)`` at each query: under the hypothesis the expected factor is at most 1, so that by Markov's inequality the
capital exceeds 1/delta with probability at most delta, at any number of queries (Waudby-Smith & Ramdas 2024, "Estimating means of
bounded random variables by betting", section 4; Shafer 2021). The bet is chosen on other queries than those it is placed on.

Several policies are tested in an order that other queries have fixed, each at the level delta, until the first that fails: with
probability at least 1 - delta all of those that pass are safe (Angelopoulos, Bates, Candes, Jordan & Lei 2021, "Learn then Test",
arXiv 2110.01052: fixed sequence testing, theorem 2 and section 3.1).

"Against the better model alone" is against each of the models alone: the hypothesis that the policy loses against one or the other
is rejected where both parts are (intersection-union test, Berger 1982), which needs no correction, and not to know which is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

Floats = NDArray[np.float64]

CAUTION = 1.0
"""Standard errors by which the losses look worse when a bet is chosen than they did: it was chosen among many."""


@dataclass(frozen=True, slots=True)
class Bet:
    """A stake ``nu`` against E[D] > risk, and by how much the logarithm of the capital is expected to grow a query."""

    nu: float
    growth: float


def capital(differences: Floats, nu: float, risk: float) -> float:
    """The logarithm of the capital after these differences D (shape: queries); the p-value is exp(-that), at most 1."""
    return float(np.log1p(nu * (risk - differences)).sum()) if len(differences) else 0.0


def best_bet(differences: Floats, risk: float, caution: float = CAUTION) -> Bet:
    """The stake under which the capital would have grown most on these queries and a few losses more (:data:`CAUTION`)."""
    seen = np.append(differences, 1.0)
    weight = np.append(np.ones(len(differences)), 1.0 + caution * math.sqrt(float(differences @ differences)))
    most = (1.0 - 1e-6) / (1.0 - risk)

    def shrinks(nu: float) -> float:
        return -float(weight @ np.log1p(nu * (risk - seen)))

    found = minimize_scalar(shrinks, bounds=(0.0, most), method="bounded", options={"xatol": 1e-6})
    return Bet(float(found.x), -float(found.fun) / len(seen)) if found.fun < 0 else Bet(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Pilot:
    """A policy's differences to each model alone, on the queries on which bets are chosen. None: it is that model."""

    bets: Mapping[str, Bet | None]

    @classmethod
    def of(cls, differences: Mapping[str, Floats | None], risk: float, caution: float = CAUTION) -> Pilot:
        """The best bet against each model alone."""
        return cls({name: None if d is None else best_bet(d, risk, caution) for name, d in differences.items()})

    @property
    def growth(self) -> float:
        """Of the harder of the two bets; infinite where there is none to win."""
        return min((bet.growth for bet in self.bets.values() if bet is not None), default=math.inf)

    def needs(self, delta: float) -> int | None:
        """How many further queries would probably prove it; None where no number would."""
        if self.growth == math.inf:
            return 0
        return math.ceil(math.log(1 / delta) / self.growth) if self.growth > 0 else None


def p_value(pilot: Pilot, differences: Mapping[str, Floats | None], risk: float) -> float:
    """That the policy is no worse than each model alone by more than ``risk``, on queries that have chosen nothing."""
    worst = 0.0
    for name, bet in pilot.bets.items():
        found = differences[name]
        if bet is None or found is None:
            continue  # it is this model: there is nothing to show
        worst = max(worst, math.exp(-max(capital(found, bet.nu, risk), 0.0)))
    return min(worst, 1.0)


def certified(
    order: Sequence[int],
    pilots: Sequence[Pilot],
    differences: Sequence[Mapping[str, Floats | None]],
    risk: float,
    delta: float,
) -> list[tuple[int, float]]:
    """The policies (indexes, with their p-values) that pass, tested in this order up to the first that does not."""
    passed = []
    for index in order:
        p = p_value(pilots[index], differences[index], risk)
        if p > delta:
            break
        passed.append((index, p))
    return passed


def least_queries(risk: float, delta: float) -> int:
    """The fewest certifying queries with which anything can be promised that is not one of the models alone.

    A policy that never loses on them could still lose at once in a share ``risk`` of all queries: (1 - risk)^n <= delta.
    """
    return math.ceil(math.log(delta) / math.log1p(-risk))
