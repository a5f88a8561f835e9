"""How much may be asked at once: an adaptive limit on concurrency, and a pace for requests and tokens a minute.

Additive increase, multiplicative decrease, as in TCP: an endpoint that says it is overloaded (429, 503, 529) halves the
limit, once for all the calls that were under way together; every round of successes raises it by one again. After a pause the
calls begin one by one and not all together (no thundering herd).
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

RAMP_S: Final = 0.05  # between two starts in the first round after a pause


class LimiterClosedError(Exception):
    """No new call may begin."""


class Pace:
    """At most ``per_minute`` a minute, evenly: a generic cell rate algorithm with ``burst_s`` seconds' worth in hand.

    A bucket of a whole minute's worth would let twice the limit through in the first minute.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic, burst_s: float = 1.0) -> None:
        self._interval, self._clock, self._burst_s = 60.0 / per_minute, clock, burst_s
        self._next = clock()

    def take(self, amount: float) -> float:
        """Take ``amount`` from the account; returns how many seconds to wait before it may be used."""
        now = self._clock()
        at = max(self._next, now - self._burst_s)
        self._next = at + amount * self._interval
        return max(0.0, at - now)

    def give(self, amount: float) -> None:
        """Correct the account: give back what was not used, or (negative) take what was used beyond."""
        self._next -= amount * self._interval


class Slot:
    """A place among the calls under way."""

    def __init__(self, round_: int, tokens: int, pace: Pace | None) -> None:
        self.round, self._tokens, self._pace = round_, tokens, pace

    def used(self, tokens: int) -> None:
        """What the call really took, in place of what was expected."""
        if self._pace is not None:
            self._pace.give(self._tokens - tokens)
        self._tokens = tokens


class Limiter:
    """Shared by all calls of a model. First come, first served; cancelling one that waits leaves no slot behind."""

    def __init__(
        self,
        concurrency: int,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        longest_pause_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._longest_pause_s, self._clock = concurrency, longest_pause_s, clock
        self._limit = float(concurrency)
        self._requests = Pace(requests_per_minute, clock) if requests_per_minute else None
        self._tokens = Pace(tokens_per_minute, clock) if tokens_per_minute else None
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._sleepers: set[asyncio.Future[None]] = set()
        self._paused_until = self._ramp_until = 0.0
        self._last_ramped = 0.0
        self._round = 0
        self.in_flight = 0
        self._closed = False

    @property
    def limit(self) -> int:
        """How many calls may be under way now."""
        return max(1, int(self._limit))

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return sum(not w.done() for w in self._waiters)

    @asynccontextmanager
    async def slot(self, tokens: int = 0) -> AsyncIterator[Slot]:
        """Wait for a place, and for its pace; ``tokens`` are what the call is expected to take. Raises LimiterClosedError."""
        await self._enter()
        try:
            await self._keep_pace(tokens)
            slot = Slot(self._round, tokens, self._tokens)
            yield slot
        finally:
            self._leave()

    def overloaded(self, slot: Slot, retry_after_s: float | None = None) -> None:
        """The endpoint said that it is too much: halve the limit, unless a call of the same round has done so."""
        if slot.round == self._round:
            self._round += 1
            self._limit = max(1.0, min(self._limit, float(self.in_flight)) / 2)
        self.pause(retry_after_s or 0.0)

    def pause(self, seconds: float) -> None:
        """Begin nothing new for so long, and then one after the other."""
        if seconds > 0:
            self._paused_until = max(self._paused_until, self._clock() + min(seconds, self._longest_pause_s))
            self._ramp_until = self._paused_until + RAMP_S * self.limit

    def succeeded(self) -> None:
        """An answer came: after ``limit`` of them the limit is one higher."""
        if self._limit < self._most:
            self._limit = min(float(self._most), self._limit + 1.0 / self._limit)
            self._wake()

    def note(self, headers: Mapping[str, str], now: datetime | None = None) -> None:
        """Heed the endpoint's rate-limit headers: when nothing remains, wait for the reset."""
        for what in ("-requests", "-tokens", ""):
            for prefix in ("x-ratelimit-", "anthropic-ratelimit", "ratelimit-"):
                remaining, reset = _header_names(prefix, what)
                left = headers.get(remaining)
                if left is not None and left.strip() in ("0", "0.0"):
                    self.pause(parse_reset(headers.get(reset), now) or 0.0)

    def close(self) -> None:
        """Let nothing new begin: those that wait get LimiterClosedError."""
        self._closed = True
        for waiter in (*self._waiters, *self._sleepers):
            if not waiter.done():
                waiter.set_exception(LimiterClosedError())
        self._waiters.clear()

    async def _enter(self) -> None:
        if self._closed:
            raise LimiterClosedError
        if self.in_flight < self.limit and not self._waiters:
            self.in_flight += 1
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._leave()  # the place was given at the very moment of the cancellation
            raise

    def _leave(self) -> None:
        self.in_flight -= 1
        self._wake()

    def _wake(self) -> None:
        while self._waiters and self.in_flight < self.limit:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self.in_flight += 1
                waiter.set_result(None)

    async def _keep_pace(self, tokens: int) -> None:
        wait = max(
            self._requests.take(1) if self._requests else 0.0,
            self._tokens.take(tokens) if self._tokens else 0.0,
        )
        if wait:
            await self._sleep(wait)
        while True:
            now = self._clock()
            if now >= self._paused_until:
                break
            await self._sleep(self._paused_until - now)
        if now < self._ramp_until:
            at = max(now, self._last_ramped + RAMP_S)
            self._last_ramped = at
            await self._sleep(at - now)
        if self._closed:
            raise LimiterClosedError

    async def _sleep(self, seconds: float) -> None:
        """Wait, or until the limiter is closed: then LimiterClosedError."""
        loop = asyncio.get_running_loop()
        sleeper: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds, _wake_up, sleeper)
        self._sleepers.add(sleeper)
        try:
            await sleeper
        finally:
            timer.cancel()
            self._sleepers.discard(sleeper)


def _wake_up(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)


def _header_names(prefix: str, what: str) -> tuple[str, str]:
    if prefix == "anthropic-ratelimit":
        return f"{prefix}{what}-remaining", f"{prefix}{what}-reset"
    return f"{prefix}remaining{what}", f"{prefix}reset{what}"


_DURATION: Final = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")


def parse_reset(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds until a reset: ``6m0s``, ``1s``, ``20ms``, plain seconds, or an RFC 3339 time; None for anything else."""
    text = (value or "").strip()
    if not text:
        return None
    found = _DURATION.fullmatch(text)
    if found:
        hours, minutes, seconds, millis = (float(part or 0) for part in found.groups())
        return 3600 * hours + 60 * minutes + seconds + millis / 1000
    plain = _seconds(text)
    if plain is not None:
        return plain
    try:
        return _until(datetime.fromisoformat(text), now)
    except ValueError:
        return None


def parse_retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """``Retry-After`` as seconds or as an HTTP date, or ``retry-after-ms``; None where there is none that makes sense."""
    millis = _seconds(headers.get("retry-after-ms"))
    if millis is not None:
        return millis / 1000
    value = headers.get("Retry-After")
    seconds = _seconds(value)
    if seconds is not None or value is None:
        return seconds
    try:
        return _until(parsedate_to_datetime(value), now)
    except ValueError:
        return None


def _seconds(value: str | None) -> float | None:
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _until(moment: datetime, now: datetime | None) -> float:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
