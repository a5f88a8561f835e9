"""The limiter: places, paces, and how it gives way to an endpoint that has too much to do."""

from __future__ import annotations

import asyncio
import itertools
import random
from datetime import UTC, datetime

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from tests.models.scripted_endpoint import ASK, endpoint, reply

from cowest.models.limiter import Limiter, LimiterClosedError, Pace, parse_reset
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
        clock.now += pace.take(amount)
        assert taken <= (clock.now - begun + 1.0) * rate / 60 + 1e-6
        taken += amount


def test_a_pace_is_corrected_by_what_was_used() -> None:
    clock = Clock()
    pace = Pace(60, clock, burst_s=0)
    assert pace.take(10) == 0
    pace.give(8)  # only two were used
    assert pace.take(1) == pytest.approx(2)
    pace.give(-5)  # or more than expected
    assert pace.take(1) == pytest.approx(8)


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
    assert parse_reset(value, NOW) == seconds


@pytest.mark.parametrize(
    "headers",
    [
        {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "150ms"},
        {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "0.15"},
        {
            "anthropic-ratelimit-requests-remaining": "0",
            "anthropic-ratelimit-requests-reset": "2026-11-23T12:00:00.15Z",
        },
        {"ratelimit-remaining": "0", "ratelimit-reset": "0.15"},
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
