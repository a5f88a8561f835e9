"""Learning whom to ask from calibration queries, and certifying it on others of them.

The queries are dealt into two parts. On the first: one logistic regression an arm and state, candidates (how much better than the
better model alone an arm has to look, and what a call is worth), their cross-fitted losses, their bets, and the order in which they
are tested. On the second part, which has chosen nothing: the tests (:mod:`cowest.collaboration.guard.promise`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from cowest.collaboration.guard.evidence import ARMS, Answered, Arm, features
from cowest.collaboration.guard.many import Expected, Indexes, walk_all
from cowest.collaboration.guard.policy import (
    STATES,
    Candidate,
    Certificate,
    Judgement,
    Judgements,
    Predictor,
    state_name,
)
from cowest.collaboration.guard.promise import Floats, Pilot, certified, least_queries, p_value
from cowest.types import Usage

ALONE: tuple[Arm, ...] = ("weak", "strong")
"""The single models that the promise is about."""
TO_LEARN_FROM = 1 / 3
"""Share of the queries that are learned from; the others certify."""
FOLDS = 5
PENALTY = 0.3
"""Inverse strength of the regressions' ridge, scikit-learn's C, on standardised features."""
CANDIDATES: tuple[Candidate, ...] = (
    *(Candidate(only=arm) for arm in ARMS),
    *(Candidate(margin=margin) for margin in (0.3, 0.2, 0.1, 0.05, 0.0)),
    *(Candidate(price=price) for price in (0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)),
    *(Candidate(margin=0.05, price=price) for price in (0.05, 0.1, 0.2)),
)
"""What is tried; the first three are no choice at all."""
MORE = 1.5
"""Where these were not enough, so many times as many are the least that is advised."""
MOST_STEPS = 100
"""Of Newton's method; it takes about six."""
FEWEST = 20
"""Queries of each part, fewer than which nothing is learned from."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """Queries as arrays: by state their features (shape: queries, names; nan: cannot be told), by arm scores and costs.

    A cost is that of the arm's calls to the strong model, in USD where all prices are known, else in tokens.
    """

    labels: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]]
    features: Mapping[str, Floats]
    scores: Mapping[Arm, Floats]
    costs: Mapping[Arm, Floats]

    @classmethod
    def of(cls, rows: Sequence[Answered], labels: Sequence[str]) -> Numbers:
        """Of rows that have evidence and a score of each arm, in their order; ``labels`` are the task's classes."""
        names, found = dict[str, tuple[str, ...]](), dict[str, Floats]()
        for known in STATES:
            told = [features(row.evidence, known, labels) for row in rows if row.evidence is not None]
            state = state_name(known)
            names[state] = tuple(told[0]) if told else ()
            values = [[np.nan if (value := one[name]) is None else value for name in names[state]] for one in told]
            found[state] = np.array(values, dtype=float)
        scores = {arm: np.array([row.scores[arm] for row in rows], dtype=float) for arm in ARMS}
        return cls(tuple(labels), names, found, scores, _costs(rows))

    def __len__(self) -> int:
        """How many queries."""
        return len(self.scores["weak"])

    def part(self, which: Indexes) -> Numbers:
        """Some of the queries."""
        return Numbers(
            self.labels,
            self.names,
            {state: table[which] for state, table in self.features.items()},
            {arm: scores[which] for arm, scores in self.scores.items()},
            {arm: costs[which] for arm, costs in self.costs.items()},
        )


def _costs(rows: Sequence[Answered]) -> dict[Arm, Floats]:
    paid: tuple[Arm, ...] = ("strong", "both")
    priced = all(arm in row.usage and row.usage[arm].cost_usd for row in rows for arm in paid)

    def cost(row: Answered, arm: Arm) -> float:
        usage = row.usage.get(arm, Usage())
        return usage.cost_usd or 0.0 if priced else float(usage.input_tokens + usage.output_tokens)

    return {"weak": np.zeros(len(rows))} | {arm: np.array([cost(row, arm) for row in rows]) for arm in paid}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy comes to on some queries: each query's score, cost, strong calls and who answered it (shape: queries)."""

    scores: Floats
    costs: Floats
    calls: Floats
    arms: tuple[Arm, ...]

    def differences(self, numbers: Numbers, only: Arm | None) -> dict[str, Floats | None]:
        """The policy's loss less that of each model alone; None for the model that it always is (``only``)."""
        return {arm: None if arm == only else numbers.scores[arm] - self.scores for arm in ALONE}


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate on both parts: cross-fitted where it was learned, and where it was tested (``p`` whether it was or not).

    ``pilot`` has the bets, by the first part; ``seen`` what they would be by all queries, for saying how many more are needed.
    """

    candidate: Candidate
    pilot: Pilot
    seen: Pilot
    learning: Outcome
    testing: Outcome
    p: float
    passed: bool

    @property
    def certificate(self) -> Certificate:
        """For the guard's file."""
        seen = self.testing
        return Certificate(
            candidate=self.candidate,
            kept=self.passed,
            p=self.p,
            score=float(seen.scores.mean()),
            calls=float(seen.calls.mean()),
            cost=float(seen.costs.mean()),
            answered={arm: seen.arms.count(arm) / len(seen.arms) for arm in ARMS},
        )


@dataclass(frozen=True, slots=True)
class Learned:
    """The judgements and every candidate, in the order of the tests; which queries are in which part.

    ``better`` is the model alone that did better on all queries; without a promise, nothing forbids to look at all of them.
    """

    judged: Judgements
    better: Arm
    risk: float
    delta: float
    tried: tuple[Tried, ...]
    learning: Indexes
    testing: Indexes

    @property
    def passed(self) -> list[Tried]:
        """Those for which the promise holds."""
        return [one for one in self.tried if one.passed]

    @property
    def best(self) -> Tried | None:
        """Of those that passed the one with the best cross-fitted score on the learning half; of equals the cheaper."""
        return max(self.passed, key=lambda t: (t.learning.scores.mean(), -t.learning.costs.mean()), default=None)

    @property
    def cheapest(self) -> Tried | None:
        """Of those that passed, with a score there within ``risk`` of the best's, the one that paid least; of equals the better."""
        if self.best is None:
            return None
        least = self.best.learning.scores.mean() - self.risk
        good = [t for t in self.passed if t.learning.scores.mean() >= least]
        return min(good, key=lambda t: (t.learning.costs.mean(), -t.learning.scores.mean()))

    @property
    def alone(self) -> Tried:
        """The model alone that did better on all queries, which is what is left where nothing passed."""
        return next(t for t in self.tried if t.candidate.only == self.better)

    @property
    def more(self) -> int | None:
        """How many calibration queries in all would probably do, where these did not; None: they do not tell."""
        needed = [n for t in self.tried if (n := t.seen.needs(self.delta)) is not None]
        if not needed:
            return None
        enough = max(min(needed), least_queries(self.risk, self.delta)) / (1 - TO_LEARN_FROM)
        return math.ceil(max(enough, MORE * (len(self.learning) + len(self.testing))))


def halves(n: int, seed: int) -> tuple[Indexes, Indexes]:
    """The queries dealt by the seed: those to learn from, and the others, which certify."""
    dealt = np.random.default_rng(seed).permutation(n)
    cut = max(round(n * TO_LEARN_FROM), min(FEWEST, n))
    return dealt[:cut], dealt[cut:]


def learn(numbers: Numbers, seed: int, risk: float, delta: float) -> Learned:
    """Learn and certify; ``risk`` is in units of the score. Raises ValueError for too few queries."""
    first, second = halves(len(numbers), seed)
    if len(second) < FEWEST:
        raise ValueError(
            f"{len(numbers)} calibration queries are too few to learn anything from; at least {2 * FEWEST} are needed, and "
            f"{math.ceil(least_queries(risk, delta) / (1 - TO_LEARN_FROM))} for a promise"
        )
    learning, testing = numbers.part(first), numbers.part(second)
    judged = fitted(learning)
    crossed, ahead = _cross_fitted(learning, seed), expected_of(testing, judged)
    outcomes, found = list[tuple[Outcome, Outcome]](), list[dict[str, Floats | None]]()
    pilots, seen = list[Pilot](), list[Pilot]()
    for candidate in CANDIDATES:
        both = outcome(learning, judged, candidate, crossed), outcome(testing, judged, candidate, ahead)
        outcomes.append(both)
        before = both[0].differences(learning, candidate.only)
        found.append(both[1].differences(testing, candidate.only))
        pilots.append(Pilot.of(before, risk))
        seen.append(Pilot.of(_together(before, found[-1]), risk, caution=0.0))
    order = sorted(range(len(pilots)), key=lambda i: (-pilots[i].growth, i))
    passed = dict(certified(order, pilots, found, risk, delta))
    tried = tuple(
        Tried(CANDIDATES[i], pilots[i], seen[i], *outcomes[i], p_value(pilots[i], found[i], risk), i in passed)
        for i in order
    )
    return Learned(judged, _better(numbers), risk, delta, tried, first, second)


def _together(one: Mapping[str, Floats | None], other: Mapping[str, Floats | None]) -> dict[str, Floats | None]:
    found = dict[str, Floats | None]()
    for name, first in one.items():
        second = other[name]
        found[name] = None if first is None or second is None else np.concatenate([first, second])
    return found


def _better(numbers: Numbers) -> Arm:
    """The model alone with the higher mean score; of equals the weak one, which costs no call."""
    return max(ALONE, key=lambda arm: numbers.scores[arm].mean())


def fitted(numbers: Numbers) -> Judgements:
    """The regressions of every state, what the arms cost, and which model alone is better."""
    costs: dict[Arm, float] = {arm: float(costs.mean()) for arm, costs in numbers.costs.items()}
    dearest = max(costs.values()) or 1.0
    return Judgements(
        labels=numbers.labels,
        states={
            name: _judgement(numbers.names[name], table, numbers.scores) for name, table in numbers.features.items()
        },
        costs={arm: cost / dearest for arm, cost in costs.items()},
        base=_better(numbers),
    )


def _judgement(names: tuple[str, ...], raw: Floats, scores: Mapping[Arm, Floats]) -> Judgement:
    there = ~np.isnan(raw)
    counts = np.maximum(there.sum(axis=0), 1)
    means = np.nansum(raw, axis=0) / counts
    centred = np.where(there, raw - means, 0.0)
    scales = np.sqrt((centred**2).sum(axis=0) / counts)
    scales = np.where(scales > 1e-9, scales, 1.0)
    arms = {arm: regression(centred / scales, scores[arm]) for arm in ARMS}
    return Judgement(names=names, means=tuple(map(float, means)), scales=tuple(map(float, scales)), arms=arms)


def regression(x: Floats, scores: Floats) -> Predictor:
    """Logistic regression on scores in [0, 1]: a query is right with its score's weight and wrong with the rest's.

    Minimises the log-loss times :data:`PENALTY` plus half the squared weights (the bias is free) by Newton's method, which is
    scikit-learn's ``LogisticRegression(C=PENALTY)`` at its optimum, many times faster on so few queries.
    """
    if scores.min() >= 1 or scores.max() <= 0:  # all right, or all wrong: no finite bias is best
        share = (scores.sum() + 0.5) / (len(scores) + 1)
        return Predictor(bias=float(np.log(share / (1 - share))), weights=(0.0,) * x.shape[1])
    table = np.column_stack([np.ones(len(x)), x])
    ridge = np.append(0.0, np.ones(x.shape[1]))

    def loss(at: Floats) -> float:
        z = table @ at
        return float(PENALTY * (np.logaddexp(0, z) - scores * z).sum() + 0.5 * ridge @ at**2)

    at = np.zeros(table.shape[1])
    at[0] = logit(np.clip(scores.mean(), 1e-6, 1 - 1e-6))
    for _ in range(MOST_STEPS):
        right = expit(table @ at)
        slope = PENALTY * table.T @ (right - scores) + ridge * at
        if np.abs(slope).max() < 1e-9:
            break
        curvature = PENALTY * (table.T * (right * (1 - right))) @ table + np.diag(ridge)
        step, before = np.linalg.solve(curvature, slope), loss(at)
        while loss(at - step) > before and np.abs(step).max() > 1e-9:
            step = step / 2  # too far: the loss is convex, and some shorter step lowers it
        at = at - step
    return Predictor(bias=float(at[0]), weights=tuple(map(float, at[1:])))


def expected_of(numbers: Numbers, judged: Judgements) -> Expected:
    """What :meth:`Judgement.expected` says of each query, of all at once."""
    return {name: _all_expected(table, judged.states[name]) for name, table in numbers.features.items()}


def _all_expected(raw: Floats, judgement: Judgement) -> dict[Arm, Floats]:
    x = np.nan_to_num((raw - np.array(judgement.means)) / np.array(judgement.scales), nan=0.0)
    return {arm: expit(p.bias + x @ np.array(p.weights)) for arm, p in judgement.arms.items()}


def _cross_fitted(numbers: Numbers, seed: int) -> Expected:
    """What is expected of each query by regressions on the others' folds."""
    found = {name: {arm: np.zeros(len(numbers)) for arm in ARMS} for name in numbers.features}
    fold = np.random.default_rng(seed).permutation(len(numbers)) % FOLDS
    for k in range(FOLDS):
        outside = np.flatnonzero(fold == k)
        others = fitted(numbers.part(np.flatnonzero(fold != k)))
        for name, each in expected_of(numbers.part(outside), others).items():
            for arm, values in each.items():
                found[name][arm][outside] = values
    return found


def outcome(numbers: Numbers, judged: Judgements, candidate: Candidate, expected: Expected) -> Outcome:
    """What a candidate would have come to on these queries, by the policy's own steps."""
    who, asked = walk_all(judged, candidate, expected)
    table = np.column_stack([numbers.scores[arm] for arm in ARMS])
    calls = np.column_stack([asked[arm] for arm in ARMS]).astype(np.float64)
    return Outcome(
        scores=table[np.arange(len(numbers)), who],
        costs=calls @ np.array([judged.costs[arm] for arm in ARMS]),
        calls=calls.sum(axis=1),
        arms=tuple(ARMS[i] for i in who),
    )
