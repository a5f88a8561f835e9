"""The limiter: places, paces, and how it gives way to an endpoint that has too much to do."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import selectors
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from tests.models.scripted_endpoint import ASK, endpoint, reply

from cowest.models.limiter import (
    LONGEST_DEBT_S,
    RAMP_MOST_S,
    Limiter,
    LimiterClosedError,
    Pace,
    parse_reset,
    parse_retry_after,
)
from cowest.models.openai import OpenAIChatModel
from cowest.types import Sampling

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(rate=st.floats(6, 60_000), amounts=st.lists(st.floats(0.1, 50), min_size=1, max_size=60))
def test_a_pace_never_lets_more_through_than_the_limit_and_a_second_in_hand(rate: float, amounts: list[float]) -> None:
    clock = Clock()
    pace = Pace(rate, clock)
    clock.now += 1000  # idle: what is in hand does not grow beyond a second's worth
    begun, taken = clock.now, 0.0
    for amount in amounts:
        clock.now += max(0.0, pace.delay())
        pace.take(amount)
        assert taken <= (clock.now - begun + 1.0) * rate / 60 + 1e-6
        taken += amount


def test_a_pace_is_corrected_by_what_was_used() -> None:
    clock = Clock()
    pace = Pace(60, clock, burst_s=0)
    assert pace.delay() == 0
    pace.take(10)
    pace.give(8)  # only two were used
    assert pace.delay() == pytest.approx(2)
    pace.take(1)
    pace.give(-5)  # or more than expected
    assert pace.delay() == pytest.approx(8)


def test_a_claim_of_any_number_of_tokens_does_not_stop_the_run() -> None:
    clock = Clock()
    pace = Pace(60, clock)
    pace.take(1)
    pace.give(-(10.0**18))
    assert pace.delay() == pytest.approx(LONGEST_DEBT_S)
    pace.give(-10)  # what is owed already is not forgotten by owing more
    assert pace.delay() == pytest.approx(LONGEST_DEBT_S)


class _Jump(selectors.DefaultSelector):
    """Where others wait for time to pass, here it has passed."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0 if timeout else timeout)
        if timeout and not ready:
            self.now += timeout
        return ready


def in_virtual_time(script: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run a coroutine in a loop whose clock jumps: hours of waiting, exactly and at once."""
    selector = _Jump()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(script())


def limiter_of(loop: asyncio.AbstractEventLoop, concurrency: int, **rates: float) -> Limiter:
    return Limiter(concurrency, clock=loop.time, **rates)


async def start_many(limiter: Limiter, calls: int, seconds: float = 0.0, tokens: int = 0) -> list[float]:
    """When each call began. All are asked for now, and each takes so long."""
    loop, starts = asyncio.get_running_loop(), list[float]()

    async def one() -> None:
        async with limiter.slot(tokens):
            starts.append(loop.time())
            await asyncio.sleep(seconds)

    await asyncio.gather(*(one() for _ in range(calls)))
    return starts


def most_within(starts: list[float], window_s: float) -> int:
    return max(sum(begin <= s < begin + window_s for s in starts) for begin in starts)


@pytest.mark.parametrize("pause_s", [0.0, 60.0])
def test_no_minute_has_more_requests_than_the_limit_also_after_a_pause(pause_s: float) -> None:
    async def script() -> None:
        limiter = limiter_of(asyncio.get_running_loop(), 500, requests_per_minute=60)
        limiter.pause(pause_s)
        starts = await start_many(limiter, 200)
        assert most_within(starts, 60) <= 60 + 2, "a second's worth may be in hand"
        assert starts[-1] - starts[0] <= 200, "and the limit is used"

    in_virtual_time(script)


def test_no_minute_has_more_tokens_than_the_limit() -> None:
    async def script() -> None:
        limiter = limiter_of(asyncio.get_running_loop(), 500, tokens_per_minute=6000)
        starts = await start_many(limiter, 100, tokens=300)
        assert most_within(starts, 60) * 300 <= 6000 + 100 + 300
        assert starts[-1] - starts[0] <= 300

    in_virtual_time(script)


def test_a_pause_holds_for_all_that_have_not_begun() -> None:
    """Also for those that an earlier pause let go one by one."""

    async def script() -> None:
        loop = asyncio.get_running_loop()
        limiter = limiter_of(loop, 40)
        limiter.pause(1.0)
        loop.call_at(1.22, limiter.pause, 10.0)
        starts = await start_many(limiter, 40)
        assert sum(s < 1.23 for s in starts) == 5, "one by one, 50 ms apart"
        assert not any(1.23 < s < 11.22 for s in starts)
        assert most_within([s for s in starts if s > 11], 0.099) <= 2, "no thundering herd after the second either"

    in_virtual_time(script)


def test_the_start_after_a_pause_is_spread_but_not_for_long() -> None:
    async def script() -> None:
        limiter = limiter_of(asyncio.get_running_loop(), 256)
        limiter.pause(5.0)
        starts = await start_many(limiter, 256, seconds=30.0)
        assert starts[0] >= 5.0 and starts[-1] == pytest.approx(5.0 + RAMP_MOST_S, abs=0.05)
        assert most_within(starts, 0.1) <= 15, "an even spread"

    in_virtual_time(script)


def test_what_is_cancelled_takes_nothing_from_the_pace() -> None:
    async def script() -> None:
        limiter = limiter_of(asyncio.get_running_loop(), 100, requests_per_minute=60, tokens_per_minute=600)
        waiting = [asyncio.ensure_future(start_many(limiter, 1, tokens=10)) for _ in range(50)]
        await asyncio.sleep(0.1)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (limiter.in_flight, limiter.waiting) == (0, 0)
        assert (await start_many(limiter, 1, tokens=10))[0] <= 1.0, "only the first call was made"

    in_virtual_time(script)


def test_a_call_cancelled_at_the_moment_it_may_begin_gives_everything_back() -> None:
    async def script() -> None:
        limiter = limiter_of(asyncio.get_running_loop(), 1, requests_per_minute=60)
        first = limiter.slot()
        await first.__aenter__()
        second = asyncio.ensure_future(start_many(limiter, 1))
        await asyncio.sleep(5.0)
        await first.__aexit__()
        assert limiter.in_flight == 1, "it has the place, and does not know of it yet"
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert limiter.in_flight == 0 and (await start_many(limiter, 2))[-1] <= 5.0, (
            "two are in hand after five seconds"
        )

    in_virtual_time(script)


def test_those_who_come_later_wait_behind_those_who_wait() -> None:
    async def script() -> None:
        loop = asyncio.get_running_loop()
        limiter, order = limiter_of(loop, 3, tokens_per_minute=600), list[int]()

        async def one(number: int, tokens: int) -> None:
            async with limiter.slot(tokens):
                order.append(number)

        tasks = []
        for number in range(12):
            tasks.append(asyncio.ensure_future(one(number, 100 if number % 3 == 0 else 1)))
            await asyncio.sleep(0.7)
        await asyncio.gather(*tasks)
        assert order == list(range(12)), "a small call does not overtake a large one"

    in_virtual_time(script)


def test_a_limiter_outlives_an_event_loop() -> None:
    limiter = Limiter(1, requests_per_minute=600)

    async def interrupted() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02):
                await start_many(limiter, 5, seconds=1.0)

    async def again() -> None:
        async with asyncio.timeout(5):
            assert len(await start_many(limiter, 2)) == 2

    asyncio.run(interrupted())
    assert (limiter.in_flight, limiter.waiting) == (0, 0)
    asyncio.run(again())


async def _hold(limiter: Limiter, running: list[int], seconds: float = 0.001) -> None:
    async with limiter.slot():
        running.append(limiter.in_flight)
        await asyncio.sleep(seconds)


async def test_places_are_kept_and_first_come_first_served() -> None:
    limiter, running, order = Limiter(3), list[int](), list[int]()

    async def one(number: int) -> None:
        async with limiter.slot():
            order.append(number)
            running.append(limiter.in_flight)
            await asyncio.sleep(0.002)

    await asyncio.gather(*(one(n) for n in range(20)))
    assert max(running) == 3 and limiter.in_flight == 0 and order == list(range(20))


async def test_cancelling_at_any_moment_leaves_no_place_behind() -> None:
    limiter, chance = Limiter(4), random.Random(7)
    tasks = [asyncio.ensure_future(_hold(limiter, [], chance.uniform(0, 0.004))) for _ in range(300)]
    for task in chance.sample(tasks, 200):
        await asyncio.sleep(chance.uniform(0, 0.0005))
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert limiter.in_flight == 0 and limiter.waiting == 0
    running: list[int] = []
    await asyncio.gather(*(_hold(limiter, running) for _ in range(8)))
    assert max(running) == 4


async def test_it_halves_once_a_round_and_recovers() -> None:
    limiter = Limiter(16)

    async def overloaded() -> None:
        async with limiter.slot() as slot:
            await asyncio.sleep(0.005)
            limiter.overloaded(slot)

    await asyncio.gather(*(overloaded() for _ in range(16)))
    assert limiter.limit == 8, "sixteen complaints of one round are one complaint"
    await asyncio.gather(*(overloaded() for _ in range(8)))
    assert limiter.limit == 4
    for _ in range(5):
        await overloaded()
    assert limiter.limit == 1
    for _ in range(200):
        limiter.succeeded()
    assert limiter.limit == 16


async def test_a_pause_holds_everything_back_and_then_lets_go_one_by_one() -> None:
    limiter, starts = Limiter(6), list[float]()
    loop = asyncio.get_running_loop()

    async def one() -> None:
        async with limiter.slot():
            starts.append(loop.time())

    limiter.pause(0.2)
    began = loop.time()
    await asyncio.gather(*(one() for _ in range(6)))
    assert min(starts) - began >= 0.19
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    assert min(gaps) >= 0.04, "no thundering herd"


async def test_no_pause_is_longer_than_the_longest() -> None:
    limiter = Limiter(1, longest_pause_s=0.05)
    limiter.pause(3600)
    await asyncio.wait_for(_hold(limiter, []), 5)


async def test_closing_lets_nothing_begin() -> None:
    limiter = Limiter(1)
    first = asyncio.ensure_future(_hold(limiter, [], 0.02))
    await asyncio.sleep(0)
    waiting = asyncio.ensure_future(_hold(limiter, []))
    await asyncio.sleep(0)
    limiter.close()
    with pytest.raises(LimiterClosedError):
        await waiting
    with pytest.raises(LimiterClosedError):
        await _hold(limiter, [])
    await first


async def test_closing_wakes_those_who_wait_out_a_pause() -> None:
    limiter = Limiter(4)
    limiter.pause(60)
    waiting = [asyncio.ensure_future(_hold(limiter, [])) for _ in range(3)]
    await asyncio.sleep(0.01)
    limiter.close()
    async with asyncio.timeout(5):
        found = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(e, LimiterClosedError) for e in found) and limiter.in_flight == 0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("23h59m58s", 86398),
        ("2m59.56s", 179.56),
        (str(int(NOW.timestamp()) + 5), 5),
        (str(1000 * int(NOW.timestamp()) + 5000), 5),
        ("1741305600000", 0),
        ("9" * 400 + "s", None),
        ("9" * 400, None),
        ("1e300", None),
        ("nan", None),
        ("0001-01-01T00:00:00+14:00", 0),
        ("5 s", None),
        ("1s1m", None),
        ("1s", 1),
        ("6m0s", 360),
        ("20ms", 0.02),
        ("1m30.5s", 90.5),
        ("1h2m3s", 3723),
        ("7", 7),
        ("0", 0),
        ("2026-11-23T12:00:05Z", 5),
        ("2026-11-23T11:00:00Z", 0),
        ("2026-11-23T14:00:10+02:00", 10),
        ("soon", None),
        ("", None),
        (None, None),
        ("-3", None),
        ("inf", None),
    ],
)
def test_reset_forms(value: str | None, seconds: float | None) -> None:
    assert parse_reset(value, NOW) == (seconds if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": "Mon, 23 Nov 2026 12:00:09 GMT"}, 9),
        ({"Retry-After": "Mon, 23 Nov 2026 14:00:09 +0200"}, 9),
        ({"Retry-After": "Mon, 23 Nov 2026 11:00:00 GMT"}, 0),
        ({"retry-after-ms": "1500", "Retry-After": "2"}, 1.5),
        ({"retry-after-ms": "soon", "Retry-After": "2"}, 2),
        ({"retry-after-ms": "-1"}, None),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "later"}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "Mon, 99999999999999999999 Jan 2024 00:00:00"}, None),
        ({"Retry-After": "Mon, 01 Jan 2024 00:00:00 +" + "9" * 30}, None),
        ({}, None),
    ],
)
def test_retry_after_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert parse_retry_after(headers, NOW) == (seconds if seconds is None else pytest.approx(seconds))


@given(
    st.one_of(
        st.text(),
        st.from_regex(r"[A-Z][a-z]{2}, \d{1,30} Jan \d{1,12} \d{2}:\d{2}:\d{2} [+-]\d{1,30}"),
        st.floats().map(str),
    )
)
def test_no_header_is_an_error(value: str) -> None:
    """They are read after an answer has come, and been paid for."""
    for found in (parse_reset(value, NOW), parse_retry_after({"Retry-After": value, "retry-after-ms": value}, NOW)):
        assert found is None or 0 <= found < math.inf
    limiter = Limiter(1)
    limiter.note({"x-ratelimit-remaining-requests": value, "x-ratelimit-reset-requests": value}, NOW)
    limiter.note({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": value}, NOW)


@pytest.mark.parametrize(
    "headers",
    [
        {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "150ms"},
        {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "0.15"},
        {
            "anthropic-ratelimit-requests-remaining": "0",
            "anthropic-ratelimit-requests-reset": "2026-11-23T12:00:00.15Z",
        },
        {
            "anthropic-ratelimit-output-tokens-remaining": "0",
            "anthropic-ratelimit-output-tokens-reset": "2026-11-23T12:00:00.15Z",
        },
        {"ratelimit-remaining": "0", "ratelimit-reset": "0.15"},
        {"x-ratelimit-remaining": "-1", "x-ratelimit-reset": f"{int(NOW.timestamp() * 1000) + 150}"},
    ],
)
async def test_rate_limit_headers_are_heeded(headers: dict[str, str]) -> None:
    limiter, loop = Limiter(4), asyncio.get_running_loop()
    limiter.note({"x-ratelimit-remaining-requests": "17", "x-ratelimit-reset-requests": "1h"}, NOW)
    limiter.note({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "nonsense"}, NOW)
    began = loop.time()
    await _hold(limiter, [])
    free = loop.time() - began
    limiter.note(headers, NOW)
    began = loop.time()
    await _hold(limiter, [])
    assert loop.time() - began >= 0.14 > free


async def test_an_overloaded_server_gets_fewer_calls_at_once_and_every_answer() -> None:
    """A server that takes three at a time, and says 503 to the rest."""
    running, peaks = 0, list[int]()

    async def crowded(request: web.Request) -> web.StreamResponse:
        nonlocal running
        running += 1
        peaks.append(running)
        try:
            if running > 3:
                return web.json_response({"error": {"message": "overloaded"}}, status=503)
            await asyncio.sleep(0.01)
            return web.json_response(reply())
        finally:
            running -= 1

    async with endpoint(crowded) as server:
        model = OpenAIChatModel(
            base_url=server.url, model="m", api_key=None, concurrency=32, max_attempts=30, backoff_s=0.01
        )
        got = await asyncio.gather(*(model.generate(ASK, Sampling()) for _ in range(120)))
        await model.aclose()
    assert [g.text for g in got] == ["fine"] * 120
    assert len(server.bodies) < 400, "it learned how much the server takes"
    assert max(peaks[len(peaks) // 2 :]) < 32


async def test_after_retry_after_a_server_sees_no_burst() -> None:
    """Sixteen are refused together; when each request came is what the server saw."""
    loop, starts = asyncio.get_running_loop(), list[float]()

    async def refusing(request: web.Request) -> web.StreamResponse:
        starts.append(loop.time())
        if len(starts) <= 16:
            return web.json_response({"error": {"message": "busy"}}, status=503, headers={"Retry-After": "0.4"})
        await asyncio.sleep(0.01)
        return web.json_response(reply())

    async with endpoint(refusing) as server:
        model = OpenAIChatModel(base_url=server.url, model="m", api_key=None, concurrency=16, backoff_s=0.001)
        got = await asyncio.gather(*(model.generate(ASK, Sampling()) for _ in range(40)))
        await model.aclose()
    assert [g.text for g in got] == ["fine"] * 40 and len(starts) == 56, "each refused call is made once more"
    assert starts[16] - starts[0] >= 0.39, "nothing, neither a retry nor a new call, before Retry-After"
    assert most_within(starts[16:23], 0.1) <= 4, "the half that may begin does so one by one"


async def test_requests_and_tokens_a_minute() -> None:
    limiter, loop = Limiter(50, requests_per_minute=1200), asyncio.get_running_loop()
    began = loop.time()
    await asyncio.gather(*(_hold(limiter, []) for _ in range(30)))  # 20 in a second's worth at hand, at most
    assert loop.time() - began >= 0.4
    tokens = Limiter(50, tokens_per_minute=60_000)

    async def costly() -> None:
        async with tokens.slot(500) as slot:
            slot.used(500)

    began = loop.time()
    await asyncio.gather(*(costly() for _ in range(4)))
    assert loop.time() - began >= 0.4
