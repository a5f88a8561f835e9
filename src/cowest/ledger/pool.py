"""Rows of ``reservations`` that go from call to call, for runs without a budget."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

Amount = tuple[int, int | None]
"""Tokens, and millionths of a dollar (None: the price is unknown)."""

_STEPS: Final = [0, *sorted({round(2 ** (k / 4)) for k in range(240)})]


def rounded(amount: Amount) -> Amount:
    """Up to a step of 19%, so that a pooled row fits many calls."""
    tokens, cost = amount
    return _STEPS[bisect_left(_STEPS, tokens)], None if cost is None else _STEPS[bisect_left(_STEPS, cost)]


class Pool:
    """Rows that exist in the file and go from call to call, by size. Taken in the loop's thread, given in the writer's."""

    def __init__(self) -> None:
        self._free: dict[Amount, deque[tuple[int, float]]] = {}
        self._sizes: dict[int, Amount] = {}

    def add(self, number: int, size: Amount) -> None:
        self._sizes[number] = size

    def take(self, size: Amount) -> int | None:
        """A free row of at least this size; the one that was used last, so that others get stale."""
        same = self._free.get(size)
        if same:
            with suppress(IndexError):  # the other thread took it
                return same.pop()[0]
        tokens, cost = size
        for (most, most_cost), free in sorted(self._free.items(), key=lambda item: item[0][0]):
            if most >= tokens and (most_cost is None) == (cost is None) and (most_cost or 0) >= (cost or 0):
                with suppress(IndexError):
                    return free.pop()[0]
        return None

    def give(self, number: int) -> bool:
        """Whether it is one of the pool, which is free now."""
        size = self._sizes.get(number)
        if size is None:
            return False
        if size not in self._free:
            self._free = {**self._free, size: deque()}  # replaced as a whole: the other thread may be looking
        self._free[size].append((number, time.monotonic()))
        return True

    def stale(self, age_s: float) -> list[int]:
        """Take out rows that were free for so long."""
        found, until = [], time.monotonic() - age_s
        for free in self._free.values():
            while free:
                try:
                    number, since = free.popleft()
                except IndexError:  # the other thread took it
                    break
                if since > until:
                    free.appendleft((number, since))
                    break
                found.append(number)
        self.drop(found)
        return found

    def drop(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._sizes.pop(number, None)
