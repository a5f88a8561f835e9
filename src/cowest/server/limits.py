"""How much may come in: a place for each request, and a rate for each key."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from cowest.server.errors import ApiError


class TokenBucket:
    """``per_minute`` requests a minute, of which ten seconds' worth (at least one) may come at once."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = per_minute / 60, clock
        self._most = max(1.0, self._rate * 10)
        self._left, self._at = self._most, clock()

    def take(self) -> float:
        """0 when the request may pass; else the seconds until one may, and nothing is taken."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) / self._rate


class Admission:
    """Counts the requests that are worked on or wait, and turns away what comes beyond ``places + queue``."""

    def __init__(
        self, places: int, queue: int, per_minute: float | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._per_minute, self._clock = places + queue, per_minute, clock
        self._buckets: dict[str, TokenBucket] = {}
        self.inside = 0

    def admitted(self, who: str) -> AbstractContextManager[None]:
        """A place for one request, to be entered at once. Raises ApiError 429 with Retry-After; ``who`` is a key's number."""
        if self._per_minute is not None:
            bucket = self._buckets.setdefault(who, TokenBucket(self._per_minute, self._clock))
            wait = bucket.take()
            if wait:
                raise _too_many("this key's rate limit is reached", "rate_limit_exceeded", wait)
        if self.inside >= self._most:
            raise _too_many("the queue is full", "queue_full", 1.0)
        return self._place()

    @contextmanager
    def _place(self) -> Iterator[None]:
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1


def _too_many(message: str, code: str, wait_s: float) -> ApiError:
    headers = {"Retry-After": str(max(1, -int(-wait_s // 1)))}
    return ApiError(429, f"{message}; try again later", type_="rate_limit_error", code=code, headers=headers)
