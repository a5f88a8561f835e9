"""What a judge's word is worth where there are references: agreement, and a mean that both give together.

Prediction-powered inference (Angelopoulos, Bates, Fannjiang, Jordan and Zrnic 2023, arXiv 2301.09633) for a mean: the judge's mean
over the other queries, mended by how far it is off where the truth is known; its error there widens the interval. The weight of the
judge is chosen from the data ("power tuning": Angelopoulos, Duchi and Zrnic 2023, arXiv 2311.01453), so that one that knows nothing
does no harm, and its scale need not be that of the truth. Valid where chance says which queries have references.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from cowest.results import Share
from cowest.scoring.statistics import share
from cowest.types import Record

FEWEST: Final = 2
"""Labelled queries without which a variance cannot be told."""


class Estimate(Record):
    """A mean with its 95% interval, of ``labelled`` queries with references and ``judged`` ones without, in the references' unit.

    ``weight`` is the judge's: 0 where its word is of no use.
    """

    mean: float
    ci_low: float
    ci_high: float
    labelled: int
    judged: int
    weight: float


class Agreement(Record):
    """How often a judge says better, worse or equal as the references do, on answers that differ.

    ``agree`` counts all three, with Wilson's interval (drafts of one query count as independent, so it is somewhat narrow);
    ``kappa`` (Cohen 1960) takes chance off, None where it is 0/0. ``opposite``: better for worse, or worse for better.
    """

    agree: Share
    opposite: int
    kappa: float | None


def powered_mean(truth: Sequence[float], judged: Sequence[float], beyond: Sequence[float]) -> Estimate | None:
    """The mean of the truth over queries, of which some are only judged; None for fewer than two that are labelled.

    Args:
        truth: (n,) by the references, one value a query.
        judged: (n,) of the same queries by the judge, in any unit.
        beyond: (N,) by the judge, of the queries without references; may be empty.

    Raises:
        ValueError: ``truth`` and ``judged`` differ in length.
    """
    n, more = len(truth), len(beyond)
    if n != len(judged):
        raise ValueError("every labelled query needs the judge's value, too")
    if n < FEWEST:
        return None
    y, f, g = (np.asarray(values, dtype=np.float64) for values in (truth, judged, beyond))
    weight = _weight(y, f, g) if more >= FEWEST else 0.0
    mean = y.mean() + (weight * (g.mean() - f.mean()) if weight else 0.0)
    variance = np.var(y - weight * f, ddof=1) / n + (weight**2 * np.var(g, ddof=1) / more if weight else 0.0)
    width = float(t.ppf(0.975, n - 1) * np.sqrt(variance))  # t for normal: the labelled may be few
    mean = float(mean)
    return Estimate(mean=mean, ci_low=mean - width, ci_high=mean + width, labelled=n, judged=more, weight=weight)


def _weight(y: NDArray[np.float64], f: NDArray[np.float64], g: NDArray[np.float64]) -> float:
    """The weight of least variance; 0 for a judge that always says the same, or the opposite of the truth."""
    spread = float(np.var(np.concatenate([f, g]), ddof=1))
    if spread == 0:
        return 0.0
    together = float(np.cov(y, f, ddof=1)[0, 1])
    return max(0.0, together / ((1 + len(y) / len(g)) * spread))


def agreement(truth: Sequence[float], judged: Sequence[float]) -> Agreement:
    """Signs compared: above 0 is better, below 0 worse, 0 equal. Raises ValueError where the lengths differ."""
    cells = Counter((int(np.sign(y)), int(np.sign(f))) for y, f in zip(truth, judged, strict=True))
    n = cells.total()
    same = sum(count for (y, f), count in cells.items() if y == f)
    by_chance = sum(
        sum(c for (y, _), c in cells.items() if y == side) * sum(c for (_, f), c in cells.items() if f == side)
        for side in (-1, 0, 1)
    )
    # (observed - expected) / (1 - expected), both times n squared
    kappa = (n * same - by_chance) / (n * n - by_chance) if n * n != by_chance else None
    return Agreement(agree=share(same, n), opposite=sum(c for (y, f), c in cells.items() if y * f < 0), kappa=kappa)
