"""The policy's steps for many queries at once, as arrays: what :func:`~cowest.collaboration.guard.policy.walk` says of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from cowest.collaboration.guard.evidence import ARMS, Arm
from cowest.collaboration.guard.policy import FREE, Candidate, Judgements, state_name
from cowest.collaboration.guard.promise import Floats

Indexes = NDArray[np.int64]
Flags = NDArray[np.bool_]
Expected = Mapping[str, Mapping[Arm, Floats]]
"""By state what is expected of each arm there (shape: queries)."""


def walk_all(judged: Judgements, candidate: Candidate, expected: Expected) -> tuple[Indexes, dict[Arm, Flags]]:
    """:func:`walk` for many queries at once: who answers each, as an index of :data:`ARMS`, and by arm whether it was asked.

    ``expected`` has an array (shape: queries) where :func:`walk` takes a number.
    """
    n = len(expected[state_name((FREE,))][FREE])
    asked: dict[Arm, Flags] = {arm: np.zeros(n, dtype=bool) for arm in ARMS}
    if candidate.only is not None:
        asked[candidate.only][:] = candidate.only != FREE
        return np.full(n, ARMS.index(candidate.only)), asked
    who: Indexes = np.zeros(n, dtype=np.int64)
    there: list[tuple[tuple[Arm, ...], Indexes]] = [((FREE,), np.arange(n))]
    while there:
        known, rows = there.pop()
        seen = {arm: values[rows] for arm, values in expected[state_name(known)].items()}
        best = _choose_all(judged, candidate, known, seen)
        for index, arm in enumerate(ARMS):
            chosen = rows[best == index]
            if arm in known:
                who[chosen] = index
            elif len(chosen):
                asked[arm][chosen] = True
                there.append(((*known, arm), chosen))
    return who, asked


def _choose_all(
    judged: Judgements, candidate: Candidate, known: Collection[Arm], expected: Mapping[Arm, Floats]
) -> Indexes:
    """:func:`choose` for many queries in one state, as indexes of :data:`ARMS`; the first of equals, in its order of arms."""
    order = sorted(range(len(ARMS)), key=lambda i: (ARMS[i] not in known, judged.costs[ARMS[i]], i))
    bonus = candidate.margin
    worth = [
        expected[arm]
        + (bonus if arm == judged.base else 0.0)
        - (0.0 if arm in known else candidate.price * judged.costs[arm])
        for arm in (ARMS[i] for i in order)
    ]
    best: Indexes = np.array(order)[np.argmax(worth, axis=0)]
    return best
