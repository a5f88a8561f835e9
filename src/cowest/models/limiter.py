"""How much may be asked at once: an adaptive limit on concurrency, and a pace for requests and tokens a minute.

Additive increase, multiplicative decrease, as in TCP: an endpoint that says it is overloaded (429, 503, 529) halves the
limit, once for all the calls that were under way together; every round of successes raises it by one again. After a pause the
calls begin one by one and not all together (no thundering herd).

All that wait stand in one queue, and only its head is looked at: whatever changes meanwhile (a pause, a correction, a
cancellation) holds for everyone who has not begun.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

RAMP_GAP_S: Final = 0.05  # between two starts in the first round after a pause,
RAMP_MOST_S: Final = 2.0  # which takes no longer than this
LONGEST_DEBT_S: Final = 300.0  # a server may claim any number of tokens, and must not stop the run with it


class LimiterClosedError(Exception):
    """No new call may begin."""


class Pace:
    """At most ``per_minute`` a minute, evenly: a generic cell rate algorithm with ``burst_s`` seconds' worth in hand.

    A bucket of a whole minute's worth would let twice the limit through in the first minute.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic, burst_s: float = 1.0) -> None:
        self._interval, self._clock, self._burst_s = 60.0 / per_minute, clock, burst_s
        self._next = clock()

    def delay(self) -> float:
        """Seconds until something may be taken; 0 or less: now."""
        return self._next - self._clock()

    def take(self, amount: float) -> None:
        """Take ``amount`` from the account, once there is no delay."""
        self._next = max(self._next, self._clock() - self._burst_s) + amount * self._interval

    def give(self, amount: float) -> None:
        """Correct the account: give back what was not used, or (negative) take what was used beyond."""
        self._next = min(self._next - amount * self._interval, max(self._next, self._clock() + LONGEST_DEBT_S))


class Slot:
    """A place among the calls under way, held inside ``async with``."""

    __slots__ = ("_limiter", "_tokens", "round")

    def __init__(self, limiter: Limiter, tokens: int) -> None:
        self._limiter, self._tokens, self.round = limiter, tokens, -1

    async def __aenter__(self) -> Slot:
        await self._limiter._enter(self._tokens)
        self.round = self._limiter._round
        return self

    async def __aexit__(self, *_: object) -> None:
        self._limiter._leave()

    def used(self, tokens: int) -> None:
        """What the call really took, in place of what was expected."""
        self._limiter._correct(self._tokens - tokens)
        self._tokens = tokens


class Limiter:
    """Shared by all calls of a model. First come, first served; cancelling one that waits leaves nothing taken behind."""

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
        self._waiters: OrderedDict[asyncio.Future[None], int] = OrderedDict()  # with the tokens they expect to take
        self._timer: asyncio.TimerHandle | None = None
        self._paused_until = self._ramp_until = self._ramp_gap = self._last_start = -math.inf
        self._round = 0
        self.in_flight = 0
        self._closed = False

    @property
    def limit(self) -> int:
        """How many calls may be under way now."""
        return max(1, int(self._limit))

    @property
    def waiting(self) -> int:
        """How many wait to begin."""
        return len(self._waiters)

    def slot(self, tokens: int = 0) -> Slot:
        """Wait for a place and for the pace; ``tokens`` are what the call is expected to take. Raises LimiterClosedError."""
        return Slot(self, tokens)

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
            self._ramp_gap = min(RAMP_GAP_S, RAMP_MOST_S / self.limit)
            self._ramp_until = self._paused_until + self._ramp_gap * self.limit

    def succeeded(self) -> None:
        """An answer came: after ``limit`` of them the limit is one higher."""
        if self._limit < self._most:
            self._limit = min(float(self._most), self._limit + 1.0 / self._limit)
            self._wake()

    def note(self, headers: Mapping[str, str], now: datetime | None = None) -> None:
        """Heed the endpoint's rate-limit headers: when nothing remains, wait for the reset."""
        for remaining, reset in _HEADERS:
            left = headers.get(remaining)
            if left is not None and _number(left) <= 0:
                self.pause(parse_reset(headers.get(reset), now) or 0.0)

    def close(self) -> None:
        """Let nothing new begin: those that wait get LimiterClosedError."""
        self._closed = True
        self._disarm()
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_exception(LimiterClosedError())

    async def _enter(self, tokens: int) -> None:
        if self._closed:
            raise LimiterClosedError
        if not self._waiters and self.in_flight < self.limit and self._delay() <= 0:
            self._begin(tokens)
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = tokens
        if len(self._waiters) == 1:
            self._wake()
        try:
            await waiter
        except asyncio.CancelledError:
            if self._waiters.pop(waiter, None) is not None:
                if not self._waiters:
                    self._disarm()  # the next one may come in another event loop
            elif not waiter.cancelled() and waiter.exception() is None:
                self._take_back(tokens)  # the place was given at the very moment of the cancellation
            raise

    def _begin(self, tokens: int) -> None:
        self.in_flight += 1
        self._last_start = self._clock()
        if self._requests:
            self._requests.take(1)
        if self._tokens:
            self._tokens.take(tokens)

    def _take_back(self, tokens: int) -> None:
        if self._requests:
            self._requests.give(1)
        self._correct(tokens)
        self._leave()

    def _correct(self, tokens: int) -> None:
        if self._tokens:
            self._tokens.give(tokens)

    def _leave(self) -> None:
        self.in_flight -= 1
        self._wake()

    def _wake(self) -> None:
        """Let begin who may; for the others that only wait for time to pass, come back."""
        while self._waiters and self.in_flight < self.limit:
            wait = self._delay()
            if wait > 0:
                self._disarm()
                self._timer = asyncio.get_running_loop().call_later(wait, self._wake)
                return
            waiter, tokens = self._waiters.popitem(last=False)
            if not waiter.done():
                self._begin(tokens)
                waiter.set_result(None)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _delay(self) -> float:
        """Seconds until the next call may begin, a free place given; 0 or less: now."""
        now = self._clock()
        wait = self._paused_until - now
        if now < self._ramp_until:
            wait = max(wait, self._last_start + self._ramp_gap - now)
        for pace in (self._requests, self._tokens):
            if pace is not None:
                wait = max(wait, pace.delay())
        return wait


_HEADERS: Final = (
    *((f"x-ratelimit-remaining{what}", f"x-ratelimit-reset{what}") for what in ("-requests", "-tokens", "")),
    *(
        (f"anthropic-ratelimit-{what}-remaining", f"anthropic-ratelimit-{what}-reset")
        for what in ("requests", "tokens", "input-tokens", "output-tokens")
    ),
    ("ratelimit-remaining", "ratelimit-reset"),
)
_DURATION: Final = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")


def parse_reset(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds until a reset; None for what makes no sense.

    Servers write ``6m0s``, ``1s``, ``20ms``, plain seconds, an RFC 3339 time, or a Unix time in seconds or milliseconds.
    """
    text = (value or "").strip()
    found = _DURATION.fullmatch(text)
    if text and found:
        hours, minutes, seconds, millis = (float(part or 0) for part in found.groups())
        return _sensible(3600 * hours + 60 * minutes + seconds + millis / 1000)
    plain = _sensible(_number(text))
    try:
        if plain is None:
            return _until(datetime.fromisoformat(text), now)
        if plain < _UNIX_TIMES:
            return plain
        return _until(datetime.fromtimestamp(plain / 1000 if plain > 1000 * _UNIX_TIMES else plain, UTC), now)
    except (ValueError, OverflowError, OSError):
        return None


_UNIX_TIMES: Final = 1e9  # no reset is 30 years away


def parse_retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """``Retry-After`` as seconds or as an HTTP date, or ``retry-after-ms``; None where there is none that makes sense."""
    millis = _sensible(_number(headers.get("retry-after-ms")))
    if millis is not None:
        return millis / 1000
    value = headers.get("Retry-After")
    seconds = _sensible(_number(value))
    if seconds is not None or value is None:
        return seconds
    try:
        return _until(parsedate_to_datetime(value), now)
    except (ValueError, OverflowError):
        return None


_AMOUNT: Final = r"(\d+(?:\.\d+)?)\s*(milliseconds?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|h)(?![a-z])"
_TOLD: Final = re.compile(
    rf"(?:try again|retry|retrying|wait|resets?|available)\b[^.\d]{{0,40}}((?:{_AMOUNT}[\s,]*(?:and\s+)?)+)",
    re.IGNORECASE,
)
_FIELD: Final = re.compile(
    r"retry[_-]?(?:delay|after)((?:[_-]?(?:ms|s|sec|seconds))?)[\"']?\s*[:=]\s*[\"']?(\d+(?:\.\d+)?)", re.IGNORECASE
)
_SECONDS: Final = {"mil": 0.001, "ms": 0.001, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "hou": 3600.0}


def told_wait(text: str) -> float | None:
    """The seconds that an error names in its text only: "try again in 1m2.5s", ``"retryDelay": "13s"``; None: it names none."""
    told = _TOLD.search(text)
    if told is not None:
        amounts = re.findall(_AMOUNT, told[1], re.IGNORECASE)
        return _sensible(sum(float(amount) * _SECONDS[unit.lower()[:3]] for amount, unit in amounts))
    named = _FIELD.search(text)
    return None if named is None else _sensible(float(named[2]) * (0.001 if "ms" in named[1].lower() else 1.0))


def _number(value: str | None) -> float:
    """Not-a-number where it is none."""
    try:
        return float(value or "")
    except ValueError:
        return math.nan


def _sensible(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _until(moment: datetime, now: datetime | None) -> float:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
