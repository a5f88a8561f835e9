"""Several tasks as one figure: the mean over the tasks, its interval, and a paired test that keeps to the strata.

Each task weighs the same, however many queries it has (a macro-average, as GLUE reports: Wang et al. 2018, arXiv 1804.07461), and
within a task each query, whichever seed it belongs to, as in the task's own table.

- Intervals: a stratified bootstrap (Davison & Hinkley 1997, section 3.2). Queries are resampled within their task and seed, so
  that every resample has as many of each as there are; 95% percentile interval. ``at_least`` is the 5% quantile of the same
  resampled differences: the one-sided 95% lower bound, which answers "not worse by more than m" (non-inferiority) for any m.
- p: a stratified sign-flip permutation test of the macro-averaged difference (Fisher 1935; Dror et al. 2018 for its use here).
  Under the null hypothesis which answer of a pair is whose is chance, for every query of every task by itself. Two-sided, drawn
  by Monte Carlo with the +1 correction. Of right and wrong in tasks of one size it is exact McNemar pooled over the strata.

It speaks of these tasks and worlds: neither is resampled, so nothing is said of others. Queries count as independent, also those
that several seeds share. How the draws are made is told in :mod:`cowest.scoring.statistics`; scipy's ``permutation_test`` would
want an array of (draws x queries) for the same p.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cowest.results import Comparison, MetricValue
from cowest.scoring.metrics import Metric, get_metric
from cowest.scoring.statistics import (
    CHUNK,
    TIE,
    Floats,
    Outcome,
    cells_of,
    features,
    interval,
    pool,
    reduce_sums,
    resampled_sums,
    scored_by_id,
    summarise,
)
from cowest.types import Record

TEST: Final = "stratified_sign_flip"
MEAN_OVER_TASKS: Final = "mean over tasks"
"""In the place of a metric's name: tasks may have different ones."""
FEWEST_FLIPS: Final = 10_000
MOST_FLIPS: Final = 1_000_000
"""Draws of the permutation test, as many as take about a second: the smallest p is 1e-6 for right and wrong, at most 1e-4."""
_WORK = 20_000_000  # flips times the different pairs of values that can be flipped


@dataclass(frozen=True, slots=True)
class TaskOutcomes:
    """What one system made of one task's queries, by seed. ``labels`` are the task's classes, for macro_f1."""

    metric: str
    labels: Sequence[str]
    by_seed: Mapping[str, Sequence[Outcome]]


class PairedMean(Record):
    """A difference of means over tasks, and ``at_least``: the one-sided 95% lower bound of it, None where it is not known."""

    comparison: Comparison
    at_least: float | None


def mean_over_tasks(tasks: Sequence[TaskOutcomes], seed: int) -> MetricValue:
    """The mean of the tasks' own means with its 95% interval; None where some task has no outcome that was scored.

    ``n``, ``n_failed`` and ``n_cut`` are summed. Raises what :func:`cowest.scoring.statistics.summarise` does.
    """
    own = [summarise((t.metric,), t.labels, pool(t.by_seed), seed)[t.metric] for t in tasks]
    means = [value.mean for value in own if value.mean is not None]
    known = bool(tasks) and len(means) == len(tasks)
    low, high = interval(_resampled([_alone(task) for task in tasks], seed)) if known else (None, None)
    with_cut = [value.mean if value.mean_cut_wrong is None else value.mean_cut_wrong for value in own]
    n_cut = sum(value.n_cut for value in own)
    return MetricValue(
        mean=fmean(means) if known else None,
        ci_low=low,
        ci_high=high,
        n=sum(value.n for value in own),
        n_failed=sum(value.n_failed for value in own),
        n_cut=n_cut,
        mean_cut_wrong=fmean(v for v in with_cut if v is not None) if known and n_cut else None,
    )


def compare_over_tasks(
    a: str, a_tasks: Sequence[TaskOutcomes], b: str, b_tasks: Sequence[TaskOutcomes], seed: int
) -> PairedMean:
    """``a`` minus ``b``, the mean over tasks of the differences on the queries that both scored.

    Swapping the systems flips the signs and keeps p. Values are None where some task has no query that both scored.

    Raises:
        ConfigError: unknown metric. ValueError: an example twice in one system, other tasks or seeds in ``b``, no labels.
    """
    strata = [_pairs(mine, theirs) for mine, theirs in zip(a_tasks, b_tasks, strict=True)]
    n = [sum(len(rows) for rows in seeds) for _, seeds in strata]
    diff = low = high = p = at_least = None
    if strata and all(n):
        diff = fmean(float(_difference(metric, np.vstack(seeds).sum(axis=0, keepdims=True), many)[0])
                     for (metric, seeds), many in zip(strata, n, strict=True))  # fmt: skip
        drawn = _resampled(strata, seed, paired=True)
        low, high = interval(drawn)
        at_least, p = float(np.quantile(drawn, 0.05)), _sign_flip(strata, diff, seed)
    found = Comparison(
        a=a, b=b, metric=MEAN_OVER_TASKS, diff=diff, ci_low=low, ci_high=high, p=p, test=TEST, n=sum(n),
        a_cut=_cut(a_tasks), b_cut=_cut(b_tasks),
    )  # fmt: skip
    return PairedMean(comparison=found, at_least=at_least)


Strata = Sequence[tuple[Metric, Sequence[Floats]]]
"""Tasks: the metric, and by seed the (n, k) feature rows of the queries; a pair has those of both systems side by side."""


def _rows(task: TaskOutcomes, outcomes: Sequence[Outcome]) -> Floats:
    return features(get_metric(task.metric), task.labels, outcomes)


def _alone(task: TaskOutcomes) -> tuple[Metric, Sequence[Floats]]:
    scored = [list(scored_by_id(outcomes).values()) for outcomes in task.by_seed.values()]
    return get_metric(task.metric), [_rows(task, outcomes) for outcomes in scored if outcomes]


def _pairs(a: TaskOutcomes, b: TaskOutcomes) -> tuple[Metric, Sequence[Floats]]:
    if (a.metric, list(a.by_seed)) != (b.metric, list(b.by_seed)):
        raise ValueError("systems are compared on the same tasks and seeds")
    seeds = []
    for key, outcomes in a.by_seed.items():
        mine, theirs = scored_by_id(outcomes), scored_by_id(b.by_seed[key])
        shared = [id_ for id_ in mine if id_ in theirs]
        if shared:
            seeds.append(np.hstack([_rows(a, [mine[i] for i in shared]), _rows(b, [theirs[i] for i in shared])]))
    return get_metric(a.metric), seeds


def _difference(metric: Metric, sums: Floats, n: int) -> Floats:
    """(draws, 2 k) sums of both systems' features over ``n`` queries -> (draws,) differences."""
    width = sums.shape[1] // 2
    return reduce_sums(metric, sums[:, :width], n) - reduce_sums(metric, sums[:, width:], n)


def _resampled(strata: Strata, seed: int, paired: bool = False) -> Floats:
    """(resamples,) means over tasks, each of a metric (or a difference of two) over queries drawn within their stratum."""
    values = []
    for i, (metric, seeds) in enumerate(strata):
        # A stream for each stratum: with one for all, strata that look alike would be drawn alike, and not independently.
        drawn = [resampled_sums(rows, np.random.default_rng([seed, i, j])) for j, rows in enumerate(seeds)]
        n, sums = sum(map(len, seeds)), np.sum(drawn, axis=0)
        values.append(_difference(metric, sums, n) if paired else reduce_sums(metric, sums, n))
    return np.asarray(np.mean(values, axis=0), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class _Flips:
    """A task's pairs: the sums of both systems' features, and what moves from one to the other where a pair is swapped."""

    metric: Metric
    n: int
    total: Floats
    """(1, 2 k)"""
    deltas: Floats
    """(cells, k), the first system's features less the second's, of the different pairs that are not equal."""
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, metric: Metric, rows: Floats) -> _Flips:
        cells, counts = cells_of(rows)
        width = cells.shape[1] // 2
        deltas = cells[:, :width] - cells[:, width:]
        differ = deltas.any(axis=1)
        return cls(metric, len(rows), rows.sum(axis=0, keepdims=True), deltas[differ], counts[differ])

    def draw(self, many: int, rng: np.random.Generator) -> Floats:
        """(many,) differences, each pair swapped with probability 1/2."""
        moved = rng.binomial(self.counts, 0.5, size=(many, len(self.counts))) @ self.deltas
        return _difference(self.metric, self.total + np.hstack([-moved, moved]), self.n)


def _sign_flip(strata: Strata, observed: float, seed: int) -> float:
    """How often the difference is as large, whichever sign it has, when the answers of each pair are swapped by chance."""
    tasks = [_Flips.of(metric, np.vstack(seeds)) for metric, seeds in strata]
    flippable = sum(len(task.deltas) for task in tasks)
    if not flippable:
        return 1.0  # the systems say the same everywhere
    draws = max(FEWEST_FLIPS, min(MOST_FLIPS, _WORK // flippable))
    step = max(1, CHUNK // flippable)
    rngs = [np.random.default_rng([seed, i]) for i in range(len(tasks))]
    as_large = 0
    for start in range(0, draws, step):
        many = min(step, draws - start)
        drawn = np.mean([task.draw(many, rng) for task, rng in zip(tasks, rngs, strict=True)], axis=0)
        as_large += int(np.sum(np.abs(drawn) >= abs(observed) - TIE))
    return (1 + as_large) / (draws + 1)


def _cut(tasks: Sequence[TaskOutcomes]) -> int:
    return sum(outcome.cut for task in tasks for outcomes in task.by_seed.values() for outcome in outcomes)
