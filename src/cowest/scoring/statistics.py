"""Intervals and paired tests over queries; the paper reports none.

- ``summarise``: mean and 95% percentile bootstrap interval (Efron 1979) of each metric, over queries.
- ``compare``, test "paired_bootstrap": two systems on the same queries; queries are resampled in pairs (Koehn
  2004). The two-sided p is 2 min(P(d* <= 0), P(d* >= 0)) of the resampled difference d*, each with the +1
  correction of Davison & Hinkley (1997, eq. 4.11), so that it is never 0. Works for every metric.
- ``compare``, test "mcnemar_exact": for right/wrong metrics, McNemar (1947) in its exact form - a binomial test with
  probability 1/2 on the queries that only one system has right. Its diff and interval are the paired bootstrap's.

How: a query enters a statistic only through a short feature row (its value; for macro-F1 the indicators of true
class, predicted class and hit). Queries with equal rows are interchangeable, so a resample of n queries is exactly a
multinomial draw of counts over the distinct rows. That is why this is not ``scipy.stats.bootstrap``: it draws
(resamples x n) indices and would need the labels of each resample for macro-F1; here 2,000 resamples of 1,000 queries
take milliseconds. Limits: a percentile interval of identical values has no width, and queries count as independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from cowest.results import Comparison, MetricValue, Share
from cowest.scoring.metrics import PREFERRED, Metric, get_metric, true_label
from cowest.types import Record

Floats = NDArray[np.float64]

RESAMPLES = 10_000
"""Bootstrap resamples; the smallest p that the paired bootstrap can give is 2 / (RESAMPLES + 1)."""

CHUNK = 4_000_000  # counts drawn at a time: bounds memory at 32 MB where every query has its own row
TIE = 1e-12  # a resampled difference this small is rounding, and counts for both tails


class Outcome(Record):
    """What one system made of one query.

    ``failed`` means that the call failed, ``cut`` that the text was cut off at max_tokens before an answer: both are excluded
    from means and comparisons, and counted. A whole text in which no answer was found is neither; its ``answer`` is None
    and counts as wrong. ``preferred`` is what judges say of it, where that is what is measured.
    """

    example_id: str
    answer: str | None
    references: tuple[str, ...]
    failed: bool = False
    cut: bool = False
    preferred: float | None = None


def summarise(
    metrics: Sequence[str], labels: Sequence[str], outcomes: Sequence[Outcome], seed: int
) -> dict[str, MetricValue]:
    """Each metric with its 95% bootstrap interval over the outcomes that did not fail and were not cut off.

    ``labels`` are the classes, needed for macro_f1 only. Values are None where no outcome is left. So that nothing is
    flattered by being cut off, ``mean_cut_wrong`` is the mean with those outcomes as wrong, where there are any.

    Raises:
        ConfigError: unknown metric. ValueError: an example twice, or macro_f1 without labels.
    """
    scored = scored_by_id(outcomes)
    n_cut = sum(outcome.cut for outcome in outcomes)
    with_cut = [o for o in outcomes if not o.failed] if n_cut else []
    summary = {}
    for name in metrics:
        metric = get_metric(name)
        mean, low, high = None, None, None
        if scored:
            rows = features(metric, labels, list(scored.values()))
            mean = _mean(metric, labels, list(scored.values()))
            low, high = interval(reduce_sums(metric, resampled_sums(rows, np.random.default_rng(seed)), len(rows)))
        summary[name] = MetricValue(
            mean=mean,
            ci_low=low,
            ci_high=high,
            n=len(scored),
            n_failed=sum(outcome.failed for outcome in outcomes),
            n_cut=n_cut,
            mean_cut_wrong=_mean(metric, labels, with_cut),
        )
    return summary


def _mean(metric: Metric, labels: Sequence[str], outcomes: Sequence[Outcome]) -> float | None:
    if not outcomes:
        return None
    rows = features(metric, labels, outcomes)
    return float(reduce_sums(metric, rows.sum(axis=0, keepdims=True), len(rows))[0])


def compare(
    metric: str,
    labels: Sequence[str],
    a_name: str,
    a_outcomes: Sequence[Outcome],
    b_name: str,
    b_outcomes: Sequence[Outcome],
    seed: int,
) -> list[Comparison]:
    """``a`` minus ``b`` on the queries that both scored: paired bootstrap, and exact McNemar for em and accuracy.

    Swapping the systems flips the signs and keeps p. ``n`` is the number of shared queries; with none, values are None.

    Raises:
        ConfigError: unknown metric. ValueError: an example twice in one system, or macro_f1 without labels.
    """
    kind = get_metric(metric)
    tests = ["paired_bootstrap", "mcnemar_exact"] if kind.binary else ["paired_bootstrap"]
    a_scored, b_scored = scored_by_id(a_outcomes), scored_by_id(b_outcomes)
    shared = [key for key in a_scored if key in b_scored]
    n = len(shared)
    diff, low, high = None, None, None
    p_values: list[float | None] = [None] * len(tests)
    if n:
        a_rows = features(kind, labels, [a_scored[key] for key in shared])
        b_rows = features(kind, labels, [b_scored[key] for key in shared])
        width = a_rows.shape[1]

        def difference(sums: Floats) -> Floats:
            return reduce_sums(kind, sums[:, :width], n) - reduce_sums(kind, sums[:, width:], n)

        both = np.hstack([a_rows, b_rows])
        diff = float(difference(both.sum(axis=0, keepdims=True))[0])
        resampled = difference(resampled_sums(both, np.random.default_rng(seed)))
        low, high = interval(resampled)
        p_values = [_bootstrap_p(resampled)]
        if kind.binary:
            p_values.append(_mcnemar_p(a_rows[:, 0], b_rows[:, 0]))
    a_cut, b_cut = (sum(outcome.cut for outcome in outcomes) for outcomes in (a_outcomes, b_outcomes))
    return [
        Comparison(
            a=a_name,
            b=b_name,
            metric=metric,
            diff=diff,
            ci_low=low,
            ci_high=high,
            p=p,
            test=test,
            n=n,
            a_cut=a_cut,
            b_cut=b_cut,
        )
        for test, p in zip(tests, p_values, strict=True)
    ]


def share(n: int, of: int) -> Share:
    """``n`` of ``of`` with Wilson's (1927) 95% interval, which has a width also at none and at all."""
    if not of:
        return Share(n=n, of=of, share=None, ci_low=None, ci_high=None)
    low, high = binomtest(n, of).proportion_ci(0.95, method="wilson")
    return Share(n=n, of=of, share=n / of, ci_low=float(low), ci_high=float(high))


def chance_of_as_many(n: int, of: int, rate: float) -> float:
    """P(at least ``n`` of ``of``) where each of them happens at ``rate``: the p of the one-sided exact binomial test."""
    return float(binomtest(n, of, rate, alternative="greater").pvalue) if of else 1.0


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's (1979) step-down correction for as many tests as there are known p values; unknown ones stay None.

    The k-th smallest of m is multiplied by m - k + 1, and no corrected value is below that of a smaller p.
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    reached = 0.0
    for rank, (p, i) in enumerate(known):
        reached = max(reached, min(1.0, p * (len(known) - rank)))
        corrected[i] = reached
    return corrected


def pool(groups: Mapping[str, Sequence[Outcome]]) -> list[Outcome]:
    """The outcomes of several seeds or worlds as one list, ids prefixed ``group/``; pool each system, then compare.

    Queries are what is resampled, so the result speaks of these worlds, not of worlds in general.
    """
    return [
        outcome.model_copy(update={"example_id": f"{group}/{outcome.example_id}"})
        for group, outcomes in groups.items()
        for outcome in outcomes
    ]


def scored_by_id(outcomes: Sequence[Outcome]) -> dict[str, Outcome]:
    """By example id, without those that failed or were cut off, sorted: neither file order nor a swap changes the resamples."""
    by_id = {outcome.example_id: outcome for outcome in outcomes}
    if len(by_id) != len(outcomes):
        raise ValueError("an example occurs twice among the outcomes of one system; prefix the ids with pool()")
    return {key: by_id[key] for key in sorted(by_id) if not by_id[key].failed and not by_id[key].cut}


def features(metric: Metric, labels: Sequence[str], outcomes: Sequence[Outcome]) -> Floats:
    """(n, 1) per-query values, or (n, 3 classes) indicators of hit, predicted and true class; sums are sufficient."""
    if metric.per_query is not None:
        return np.array([[metric.per_query(o.answer, o.references)] for o in outcomes], dtype=np.float64)
    if metric.name == PREFERRED:
        if any(o.preferred is None for o in outcomes):
            raise ValueError("an outcome on which judges have said nothing is a failed one")
        return np.array([[o.preferred] for o in outcomes], dtype=np.float64)
    if not labels:
        raise ValueError(f"{metric.name} needs the labels of the task")
    index = {label: i for i, label in enumerate(labels)}
    rows = np.zeros((len(outcomes), 3, len(labels)))
    for row, outcome in zip(rows, outcomes, strict=True):
        truth = true_label(outcome.answer, outcome.references)
        if truth in index:
            row[2, index[truth]] = 1.0
            row[0, index[truth]] = float(outcome.answer == truth)
        if outcome.answer is not None and outcome.answer in index:
            row[1, index[outcome.answer]] = 1.0
    return rows.reshape(len(outcomes), -1)


def reduce_sums(metric: Metric, sums: Floats, n: int) -> Floats:
    """(resamples, features) sums over n queries -> (resamples,) values of the metric."""
    if metric.kind == "mean":
        return sums[:, 0] / n
    hits, predicted, actual = np.split(sums, 3, axis=1)
    sizes = predicted + actual
    # zero_division=0: a class that is neither predicted nor true counts 0, as in scikit-learn
    per_class: Floats = np.divide(2 * hits, sizes, out=np.zeros_like(sizes), where=sizes > 0)
    return np.asarray(per_class.mean(axis=1), dtype=np.float64)


def cells_of(rows: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """(n, k) rows -> the distinct ones and how often each occurs, by first appearance: swapping a and b must draw the same."""
    cells, first, counts = np.unique(rows, axis=0, return_index=True, return_counts=True)
    order = np.argsort(first)
    return cells[order], counts[order]


def resampled_sums(rows: Floats, rng: np.random.Generator) -> Floats:
    """(n, k) rows -> (RESAMPLES, k) sums of n rows drawn with replacement."""
    cells, counts = cells_of(rows)
    step = max(1, CHUNK // len(cells))
    sizes = [min(step, RESAMPLES - start) for start in range(0, RESAMPLES, step)]
    return np.vstack([rng.multinomial(len(rows), counts / len(rows), size=size) @ cells for size in sizes])


def interval(resampled: Floats) -> tuple[float, float]:
    """The 95% percentile interval of (resamples,) values."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)


def _bootstrap_p(differences: Floats) -> float:
    below = (1 + int(np.sum(differences <= TIE))) / (len(differences) + 1)
    above = (1 + int(np.sum(differences >= -TIE))) / (len(differences) + 1)
    return min(1.0, 2 * min(below, above))


def _mcnemar_p(a: Floats, b: Floats) -> float:
    """``a`` and ``b``: (n,) values 0 or 1."""
    only_a, only_b = int(np.sum(a > b)), int(np.sum(b > a))
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0
