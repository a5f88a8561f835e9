"""OpenAIChatModel against a real server on loopback that fails in every way an endpoint can."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from aiohttp import web
from tests.models.scripted_endpoint import ASK, KEY, Step, cut_off, endpoint, reply, step, too_slow

from cowest.errors import ConfigError, ModelCallError
from cowest.models.limiter import parse_retry_after
from cowest.models.openai import OpenAIChatModel
from cowest.models.replies import parse_reply
from cowest.models.secrets import Secrets
from cowest.models.untrusted import excerpt
from cowest.models.wire import request_body
from cowest.protocols import ChatModel
from cowest.types import Completion, Sampling, Usage


@asynccontextmanager
async def client(
    url: str, *, api_key: str | None = KEY, concurrency: int = 16, timeout_s: float = 20, max_attempts: int = 4
) -> AsyncIterator[OpenAIChatModel]:
    model = OpenAIChatModel(
        base_url=url,
        model="big",
        api_key=api_key,
        concurrency=concurrency,
        timeout_s=timeout_s,
        max_attempts=max_attempts,
        backoff_s=0.002,
    )
    try:
        yield model
    finally:
        await model.aclose()
        await model.aclose()


async def failure(url: str, **settings: float) -> ModelCallError:
    """The error of one call; no key may be anywhere in it, its traceback or its chain."""
    async with client(url, timeout_s=settings.get("timeout_s", 20)) as model:
        with pytest.raises(ModelCallError) as caught:
            await model.generate(ASK, Sampling())
    error = caught.value
    shown = "".join(traceback.format_exception(error)) + repr(error)
    assert KEY not in shown
    assert error.__context__ is None and error.__cause__ is None
    return error


async def test_a_call_sends_the_request_and_maps_the_answer() -> None:
    async with endpoint(step(reply("fine\n"))) as server, client(server.url) as model:
        sampling = Sampling(temperature=0.7, top_p=0.9, max_tokens=40, seed=5)
        got = await model.generate(ASK, sampling)
    assert isinstance(model, ChatModel) and model.name == "big"
    assert server.bodies == [
        {
            "model": "big",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße?"}],
            "temperature": 0.7,
            "top_p": 0.9,
            "max_tokens": 40,
            "seed": 5,
        }
    ]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert got.text == "fine\n" and got.finish_reason == "stop"
    assert got.usage == Usage(calls=1, input_tokens=11, output_tokens=3, cost_usd=None)
    assert 0 < got.latency_s < 20


async def test_without_a_key_none_is_sent() -> None:
    async with endpoint(step(reply())) as server, client(server.url + "/", api_key=None) as model:
        await model.generate(ASK, Sampling())
    assert "Authorization" not in server.headers[0]


def test_neutral_settings_are_left_out() -> None:
    assert request_body("m", ASK[1:], Sampling()) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Grüße?"}],
        "temperature": 0.0,
        "max_tokens": 512,
    }


async def test_retry_after_is_waited_for() -> None:
    busy = step({"error": {"message": "slow down"}}, 429, {"Retry-After": "0.3"})
    async with endpoint(busy, step(reply())) as server, client(server.url) as model:
        got = await model.generate(ASK, Sampling())
    assert got.text == "fine" and len(server.bodies) == 2
    assert got.latency_s >= 0.3


async def test_retry_after_is_capped() -> None:
    busy = step({}, 429, {"Retry-After": "3600"})
    async with endpoint(busy, step(reply())) as server:
        model = OpenAIChatModel(base_url=server.url, model="big", api_key=None, backoff_s=0, max_wait_s=0.05)
        async with asyncio.timeout(10):
            assert (await model.generate(ASK, Sampling())).text == "fine"
        await model.aclose()


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
async def test_passing_trouble_is_retried(status: int) -> None:
    trouble = step("<h1>busy</h1>", status, kind="text/html")
    async with endpoint(trouble, trouble, trouble, step(reply())) as server, client(server.url) as model:
        assert (await model.generate(ASK, Sampling())).text == "fine"
    assert len(server.bodies) == 4


async def test_lasting_trouble_ends_after_max_attempts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with endpoint(step({"error": {"message": f"boom for {KEY}\x1b[31m\nnow"}}, 500)) as server:
        error = await failure(server.url)
    assert error.kind == "http_500" and len(server.bodies) == 4
    assert "4 attempts" in str(error) and "boom for *** [31m now" in str(error)
    assert "attempt 4 follows" in caplog.text and KEY not in caplog.text


@pytest.mark.parametrize(
    ("status", "named"),
    [(400, "max_tokens"), (401, "api_key_env"), (403, "api_key_env"), (404, "base_url"), (422, "model"), (418, "418")],
)
async def test_refusals_are_not_retried_and_name_the_setting(status: int, named: str) -> None:
    async with endpoint(step({"error": {"message": f"no, {KEY}"}}, status)) as server:
        error = await failure(server.url)
    assert error.kind == f"http_{status}" and len(server.bodies) == 1
    assert named in str(error) and server.url in str(error) and "no, ***" in str(error)


async def test_a_redirect_is_not_followed() -> None:
    async with endpoint(step(reply("stolen"))) as other:
        away = step("", 307, {"Location": f"{other.url}/chat/completions?token={KEY}"})
        async with endpoint(away) as server:
            error = await failure(server.url)
    assert error.kind == "http_307" and "base_url" in str(error)
    assert (len(server.bodies), len(other.bodies)) == (1, 0)


async def test_a_refused_connection_is_retried_then_told() -> None:
    with socket.socket() as free:  # bound and not listening: nobody answers there
        free.bind(("127.0.0.1", 0))
        error = await failure(f"http://127.0.0.1:{free.getsockname()[1]}/v1")
    assert error.kind == "connection"
    assert "base_url" in str(error) and "4 attempts" in str(error)


async def test_a_connection_cut_in_mid_body_is_retried() -> None:
    async with endpoint(cut_off, cut_off, step(reply())) as server, client(server.url) as model:
        assert (await model.generate(ASK, Sampling())).text == "fine"
    assert len(server.bodies) == 3


async def test_a_connection_always_cut_is_told() -> None:
    async with endpoint(cut_off) as server:
        error = await failure(server.url)
    assert error.kind == "truncated" and len(server.bodies) == 4
    assert all(a.maybe_paid and a.outcome == "truncated" for a in error.attempts) and len(error.attempts) == 4


async def test_a_slow_answer_times_out_and_is_retried() -> None:
    async with endpoint(too_slow, step(reply())) as server, client(server.url, timeout_s=0.5) as model:
        assert (await model.generate(ASK, Sampling())).text == "fine"
    assert len(server.bodies) == 2


async def test_answers_always_slow_are_told() -> None:
    async with endpoint(too_slow) as server:
        error = await failure(server.url, timeout_s=0.1)
    assert error.kind == "timeout" and "timeout_s" in str(error) and len(server.bodies) == 4


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (step('{"choices": ['), "bad_response"),
        (step("<html><body>Welcome</body></html>", kind="text/html"), "bad_response"),
        (step("[" * 20_000), "bad_response"),
        (step("[]"), "bad_response"),
        (step({"choices": []}), "no_choices"),
        (step({"choices": ["x"]}), "no_choices"),
        (step({"choices": [{"text": "x"}]}), "bad_response"),
        (step({"choices": [{"message": {"content": [{"type": "image_url", "image_url": "x"}]}}]}), "bad_response"),
        (step(reply(None)), "empty"),
        (step(reply("")), "empty"),
        (step(reply(" \n\t")), "empty"),
    ],
)
async def test_an_unusable_answer_is_asked_for_once_more(answer: Step, kind: str) -> None:
    async with endpoint(answer) as server:
        assert (await failure(server.url)).kind == kind
    assert len(server.bodies) == 2
    async with endpoint(answer, step(reply())) as server, client(server.url) as model:
        assert (await model.generate(ASK, Sampling())).text == "fine"


async def test_html_with_status_200_points_to_base_url() -> None:
    async with endpoint(step("<html>Welcome</html>", kind="text/html")) as server:
        error = await failure(server.url)
    assert "base_url" in str(error) and "<html>Welcome" in str(error)


def test_an_empty_answer_cut_by_length_says_so() -> None:
    body = {"choices": [{"message": {"content": None}, "finish_reason": "length"}]}
    with pytest.raises(ModelCallError, match="raise max_tokens"):
        parse_reply(json.dumps(body).encode())


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, Usage(calls=1, input_tokens=10, output_tokens=1, estimated_calls=1)),
        (
            {"prompt_tokens": None, "completion_tokens": "7"},
            Usage(calls=1, input_tokens=10, output_tokens=1, estimated_calls=1),
        ),
        (
            {"prompt_tokens": -4, "completion_tokens": 7},
            Usage(calls=1, input_tokens=10, output_tokens=7, estimated_calls=1),
        ),
        ("many", Usage(calls=1, input_tokens=10, output_tokens=1, estimated_calls=1)),
        ({"prompt_tokens": 11, "completion_tokens": 3}, Usage(calls=1, input_tokens=11, output_tokens=3)),
        (
            {"prompt_tokens": 11, "completion_tokens": 30, "completion_tokens_details": {"reasoning_tokens": 25}},
            Usage(calls=1, input_tokens=11, output_tokens=30, reasoning_tokens=25),
        ),
    ],
)
def test_missing_or_odd_usage_does_not_lose_the_answer(usage: object, expected: Usage) -> None:
    got = parse_reply(json.dumps(reply("fine", usage=usage)).encode(), prompt_bytes=37)
    assert got.text == "fine" and got.usage == expected


def test_finish_reason_and_surrogates() -> None:
    body = b'{"choices": [{"message": {"content": "cut \\ud83d\\ude00 \\ud800"}, "finish_reason": "length"}]}'
    got = parse_reply(body)
    assert got.finish_reason == "length" and got.text == "cut \N{GRINNING FACE} \N{REPLACEMENT CHARACTER}"
    assert Completion.model_validate_json(got.model_dump_json()) == got
    assert parse_reply(b'{"choices": [{"message": {"content": "x"}}]}').finish_reason == "unknown"


async def test_the_concurrency_limit_holds() -> None:
    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.02)
        return web.json_response(reply())

    async with endpoint(slow) as server, client(server.url, concurrency=3) as model:
        got = await asyncio.gather(*(model.generate(ASK, Sampling(temperature=1.0, seed=i)) for i in range(15)))
    assert len(got) == 15 and server.peak == 3
    assert sorted(str(body["seed"]) for body in server.bodies) == sorted(str(i) for i in range(15))


async def test_a_cancelled_call_gives_its_slot_back() -> None:
    async with endpoint(too_slow, step(reply())) as server, client(server.url, concurrency=1) as model:
        call = asyncio.create_task(model.generate(ASK, Sampling()))
        while not server.bodies:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        started = time.perf_counter()
        assert (await model.generate(ASK, Sampling())).text == "fine"
        assert time.perf_counter() - started < 1.4


class OneAtATime:
    """A budget that has room for one call's worth; ``free`` gives it back, as the ledger does with a call's entry."""

    def __init__(self) -> None:
        self.room, self.asked = asyncio.Semaphore(1), list[Usage]()

    async def reserve(self, most: Usage, beside: Sequence[int] = ()) -> int:
        await self.room.acquire()
        self.asked.append(most)
        return len(self.asked)

    def free(self) -> None:
        self.room.release()


async def test_who_waits_for_the_budget_keeps_no_retry_from_its_slot() -> None:
    budget = OneAtATime()
    async with endpoint(step("busy", 503), step(reply())) as server:
        model = OpenAIChatModel(
            base_url=server.url, model="m", api_key=None, concurrency=1, budget=budget, backoff_s=0.02
        )

        async def call() -> Completion:
            got = await model.generate(ASK, Sampling(max_tokens=9))
            budget.free()
            return got

        async with asyncio.timeout(20):
            got = await asyncio.gather(*(call() for _ in range(3)))
        await model.aclose()
    assert [[a.outcome for a in g.attempts] for g in got] == [["http_503", "ok"], ["ok"], ["ok"]]
    assert [a.reservation for a in got[0].attempts] == [1, 1], "what cost nothing leaves its reservation to the next"
    sent = sum(len(m.content.encode()) for m in ASK)
    assert budget.asked == [Usage(calls=1, input_tokens=sent + 32, output_tokens=9)] * 3


async def test_stop_wakes_those_who_wait_to_try_again() -> None:
    async with endpoint(step("busy", 500, {"Retry-After": "200"})) as server:
        model = OpenAIChatModel(base_url=server.url, model="m", api_key=None)
        call = asyncio.create_task(model.generate(ASK, Sampling()))
        while not server.bodies:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        model.stop()
        async with asyncio.timeout(20):
            with pytest.raises(ModelCallError) as caught:
                await call
        await model.aclose()
    assert caught.value.kind == "stopped" and [a.outcome for a in caught.value.attempts] == ["http_500"]
    assert len(server.bodies) == 1


async def test_stop_lets_what_is_under_way_finish_and_tells_the_budget_of_the_rest() -> None:
    class Generous(OneAtATime):
        async def reserve(self, most: Usage, beside: Sequence[int] = ()) -> int:
            self.asked.append(most)
            return len(self.asked)

    budget = Generous()

    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.2)
        return web.json_response(reply())

    async with endpoint(slow) as server:
        model = OpenAIChatModel(base_url=server.url, model="m", api_key=None, concurrency=1, budget=budget)
        calls = [asyncio.create_task(model.generate(ASK, Sampling())) for _ in range(4)]
        while not server.bodies:
            await asyncio.sleep(0.01)
        model.stop()
        first, *rest = await asyncio.gather(*calls, return_exceptions=True)
        await model.aclose()
        assert (await model.generate(ASK, Sampling())).text == "fine", "a closed model can be used again"
        await model.aclose()
    assert isinstance(first, Completion) and len(server.bodies) == 2
    assert all(isinstance(e, ModelCallError) and e.kind == "stopped" for e in rest)
    told = [a.reservation for e in rest if isinstance(e, ModelCallError) for a in e.attempts]
    assert told == [2], "of those that waited one held a part of the budget, and gives it back"


def test_one_model_serves_several_event_loops() -> None:
    models: list[OpenAIChatModel] = []

    async def one_run(port: int | None) -> int:
        async with endpoint(step(reply()), port=port) as server:
            models[:] = models or [OpenAIChatModel(base_url=server.url, model="big", api_key=None, max_attempts=1)]
            assert (await models[0].generate(ASK, Sampling())).text == "fine"
            return int(server.url.removesuffix("/v1").rsplit(":", 1)[1])

    port = asyncio.run(one_run(None))
    assert asyncio.run(one_run(port)) == port
    asyncio.run(models[0].aclose())


async def test_after_aclose_a_call_opens_a_new_session() -> None:
    async with endpoint(step(reply())) as server, client(server.url) as model:
        for _ in range(2):
            assert (await model.generate(ASK, Sampling())).text == "fine"
            await model.aclose()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host/v1",
        "ftp://host/v1",
        "http://",
        "http://host:99999/v1",
        "http://ho st/v1",
        "http://h/v1/chat/completions",
    ],
)
def test_a_wrong_base_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="base_url"):
        OpenAIChatModel(base_url=url, model="m", api_key=None)


@pytest.mark.parametrize("url", [f"http://user:{KEY}@host/v1", f"user:{KEY}@host", f"http://host/v1?key={KEY}"])
def test_a_secret_in_base_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="api_key_env") as caught:
        OpenAIChatModel(base_url=url, model="m", api_key=None)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("key", ["", f"{KEY}\n", f"{KEY} x", f"{KEY}é"])
def test_an_unusable_key_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ConfigError, match="api_key_env") as caught:
        OpenAIChatModel(base_url="http://host/v1", model="m", api_key=key)
    assert KEY not in str(caught.value)


def test_numbers_out_of_range_are_refused() -> None:
    def make(
        model: str = "m", concurrency: int = 1, timeout_s: float = 1, max_attempts: int = 1, wait: float = 1
    ) -> None:
        OpenAIChatModel(
            base_url="http://host/v1",
            model=model,
            api_key=None,
            concurrency=concurrency,
            timeout_s=timeout_s,
            max_attempts=max_attempts,
            backoff_s=wait,
        )

    make()
    with pytest.raises(ConfigError, match="model"):
        make(model=" ")
    with pytest.raises(ConfigError, match="concurrency"):
        make(concurrency=0)
    with pytest.raises(ConfigError, match="max_attempts"):
        make(max_attempts=0)
    for value in (0.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="timeout_s"):
            make(timeout_s=value)
    with pytest.raises(ConfigError, match="backoff_s"):
        make(wait=-1)


def test_repr_names_the_model_and_not_the_key() -> None:
    shown = repr(OpenAIChatModel(base_url="http://host/v1", model="m", api_key=KEY, name="judge"))
    assert "http://host/v1" in shown and KEY not in shown


def test_excerpt_hides_the_secret_before_it_cuts() -> None:
    text = "x" * 195 + KEY
    assert excerpt(text, Secrets(KEY)) == "x" * 195 + "***"
    assert len(excerpt("y" * 10_000, Secrets())) == 203


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("2", 2.0),
        ("0", 0.0),
        (None, None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 90.0),
        ("Wed, 21 Oct 2026 07:00:00 GMT", 0.0),
        ("tomorrow", None),
        ("-1", None),
        ("nan", None),
    ],
)
def test_retry_after_forms(header: str | None, seconds: float | None) -> None:
    now = datetime(2026, 10, 21, 7, 26, 30, tzinfo=UTC)
    assert parse_retry_after({} if header is None else {"Retry-After": header}, now) == seconds
