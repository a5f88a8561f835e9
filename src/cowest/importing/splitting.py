"""Which rows are for training, validation and test: whole groups, classes alike, the same for a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cowest.errors import ConfigError, DataError
from cowest.tasks.base import SPLITS

NOWHERE = 255


def parse_shares(text: str) -> tuple[float, ...]:
    """``80/10/10`` as shares of train, validation and test. Raises ConfigError."""
    try:
        found = [float(part) for part in text.replace(":", "/").replace(",", "/").split("/")]
    except ValueError:
        found = []
    if len(found) != 3 or min(found, default=-1) <= 0 or not np.isfinite(found).all():
        raise ConfigError(f"--split {text}: write three shares above 0, of train, validation and test: 80/10/10")
    return tuple(share / sum(found) for share in found)


def assign(group: NDArray[np.int32], label: NDArray[np.int32], shares: Sequence[float], seed: int) -> NDArray[np.uint8]:
    """The split (0, 1, 2: train, validation, test) of each row.

    Groups are taken class by class (that of their first row) in an order of the seed, and each goes where its class and the whole
    lack most. A split without a share gets nothing. Raises DataError for fewer groups than splits.
    """
    n, needed = int(group.max()) + 1 if len(group) else 0, [s for s, share in enumerate(shares) if share > 0]
    if n < len(needed):
        names = ", ".join(SPLITS[s] for s in needed)
        raise DataError(f"too few different questions ({n}): each of {names} needs one")
    size = np.bincount(group, minlength=n)
    first = np.full(n, -1, dtype=np.int64)
    first[group[::-1]] = np.arange(len(group))[::-1]
    of_class = label[first]
    order = np.random.default_rng([seed, n]).permutation(n)
    order = order[np.argsort(of_class[order], kind="stable")]
    split = np.zeros(n, dtype=np.uint8)
    whole, all_seen, part, seen, now = [0.0] * 3, 0.0, [0.0] * 3, 0.0, None
    for at in range(0, n, 4096):
        some = order[at : at + 4096]
        for g, z, c in zip(some.tolist(), size[some].tolist(), of_class[some].tolist(), strict=True):
            if c != now:
                now, part, seen = c, [0.0] * 3, 0.0
            seen, all_seen = seen + z, all_seen + z
            lacking = [share * (seen + all_seen) - part[s] - whole[s] for s, share in enumerate(shares)]
            s = lacking.index(max(lacking))
            split[g] = s
            part[s] += z
            whole[s] += z
    _none_empty(split, size, needed)
    return split[group]


def _none_empty(split: NDArray[np.uint8], size: NDArray[np.int64], needed: Sequence[int]) -> None:
    """Give a split without a group the smallest one of the split that has most."""
    for s in needed[::-1]:
        if not (split == s).any():
            most = int(np.bincount(split, minlength=3).argmax())
            theirs = np.flatnonzero(split == most)
            split[theirs[size[theirs].argmin()]] = s


def complete(
    given: NDArray[np.uint8], group: NDArray[np.int32], label: NDArray[np.int32], shares: Sequence[float], seed: int
) -> NDArray[np.uint8]:
    """The source's own splits, and those that it lacks taken from its training rows (or whichever it has most of)."""
    counts = np.bincount(given, minlength=NOWHERE + 1)[:3]
    if counts.all():
        return given
    source = 0 if counts[0] else int(counts.argmax())
    rows = np.flatnonzero(given == source)
    wanted = [share if s == source or not counts[s] else 0.0 for s, share in enumerate(shares)]
    wanted = [share / sum(wanted) for share in wanted]
    out = given.copy()
    _, inside = np.unique(group[rows], return_inverse=True)
    out[rows] = assign(inside.astype(np.int32), label[rows], wanted, seed)
    return out
