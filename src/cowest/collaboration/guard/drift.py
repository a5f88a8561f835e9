"""Whether served queries still look like those that the guard was certified on: the promise is about queries like these alone."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection

import numpy as np
from scipy.stats import ks_2samp

from cowest.collaboration.guard.evidence import Evidence, features
from cowest.collaboration.guard.policy import FREE, Guard
from cowest.collaboration.guard.promise import Floats

WINDOW = 500
"""The latest queries, which are compared with the calibration queries."""
FIRST, EVERY = 100, 50
"""Queries before the first comparison, and between two."""
ALARM = 0.01
"""Probability of ever raising a false alarm."""


class Drift:
    """Compares each feature of the latest served queries with the calibration queries', by Kolmogorov-Smirnov tests.

    The k-th comparison is made at the level ALARM * 6 / (pi^2 k^2), divided by the number of features: over all comparisons and
    features the levels add up to ALARM, so that a service whose queries do not change raises an alarm with that probability at
    most, however long it runs. Values that one side cannot tell are left out. ``drifted`` are those that differ, by the last
    comparison.
    """

    def __init__(self, guard: Guard) -> None:
        self._labels = guard.judged.labels
        self._names = guard.judged.states[FREE].names
        self._reference = _columns(guard.reference, len(self._names))
        self._latest: deque[list[float]] = deque(maxlen=WINDOW)
        self.seen, self._comparisons = 0, 0
        self.drifted: tuple[str, ...] = ()

    def see(self, evidence: Evidence) -> bool:
        """Take note of a query's evidence before any call to the strong model; whether ``drifted`` has changed."""
        found = features(evidence, (FREE,), self._labels)
        values = [found.get(name) for name in self._names]
        self._latest.append([math.nan if value is None else value for value in values])
        self.seen += 1
        if self.seen < FIRST or (self.seen - FIRST) % EVERY:
            return False
        before, self.drifted = self.drifted, self._compare()
        return before != self.drifted

    def _compare(self) -> tuple[str, ...]:
        self._comparisons += 1
        level = ALARM * 6 / (math.pi * self._comparisons) ** 2 / max(len(self._names), 1)
        latest = np.array(self._latest)
        return tuple(
            name
            for i, name in enumerate(self._names)
            if _differ(self._reference[i], latest[:, i][~np.isnan(latest[:, i])], level)
        )


def _columns(rows: Collection[tuple[float | None, ...]], n: int) -> list[Floats]:
    """Each feature's values, those that could not be told left out."""
    table = np.array([[math.nan if value is None else value for value in row] for row in rows], dtype=float)
    return [table[:, i][~np.isnan(table[:, i])] if len(table) else np.array([]) for i in range(n)]


def _differ(reference: Floats, latest: Floats, level: float) -> bool:
    if not len(reference) or not len(latest):
        return False
    return bool(ks_2samp(reference, latest, method="asymp").pvalue < level)
