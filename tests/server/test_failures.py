"""Each failure of either model, and what the client gets then."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.server.loopback import DRAFT, FRAMES, SECRET, Held, Upstream, chunk, events, hang, reply, serving, strong

from cowest.errors import ModelCallError
from cowest.models.scripted import ScriptedChatModel
from cowest.server.settings import Settings
from cowest.types import Completion, Example, Message, Sampling

DETAILS: dict[str, Any] = {"cowest": {"details": True}}
ERROR = Settings(strong_down="error")


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with strong() as upstream:
        yield upstream


class Says:
    """A weak model that says what it is told to, or raises it."""

    name = "says"

    def __init__(self, what: str | Exception) -> None:
        self.what, self.calls = what, 0

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        self.calls += 1
        if isinstance(self.what, Exception):
            raise self.what
        return Completion(text=self.what)

    async def aclose(self) -> None: ...


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (ModelCallError("connection", "refused"), "weak_down"),
        (ModelCallError("empty", "nothing"), "draft_empty"),
        (ModelCallError("too_long", "window"), "weak_prompt_too_long"),
        (ModelCallError("chat_template", "no"), "weak_rejected"),
        (RuntimeError("a bug"), "weak_down"),
        (" \n", "draft_empty"),
        ("x" * 3 + "word " * 5000, "draft_too_long"),
        ("It is safe. " + "and so on, " * 40, "draft_repetition"),
    ],
)
async def test_without_a_usable_draft_the_strong_model_answers_alone(
    upstream: Upstream, what: str | Exception, reason: str
) -> None:
    async with serving(upstream.url, Says(what)) as client:
        got = await client.ask(**DETAILS)
        assert got.status == 200 and got.text == "No, it is not."
        told = got.json["cowest"]
        assert (told["mode"], told["degraded"], told["draft"]) == ("strong_alone", reason, None)
        assert got.json["model"] == "pair.strong"
        assert await client.metric(f'cowest_degraded_total{{reason="{reason}"}}') == 1
    alone = FRAMES.solo(Example(id="x", input="May I?", references=("",)))[0].content
    assert upstream.bodies[0]["messages"][0]["content"] == alone


async def test_a_slow_weak_model_is_not_waited_for(upstream: Upstream) -> None:
    weak = Held()
    async with serving(upstream.url, weak, Settings(draft_deadline_s=0.05)) as client:
        got = await client.ask(**DETAILS)
        assert got.status == 200 and got.json["cowest"]["degraded"] == "weak_timeout"
        assert weak.cancelled.is_set()


async def test_the_weak_model_s_breaker_opens_probes_and_closes(upstream: Upstream) -> None:
    now, weak = [0.0], Says(ModelCallError("connection", "refused"))
    settings = Settings(breaker_failures=3, breaker_cooldown_s=10)
    async with serving(upstream.url, weak, settings, clock=lambda: now[0]) as client:

        async def reason() -> str | None:
            told: str | None = (await client.ask(**DETAILS)).json["cowest"]["degraded"]
            return told

        assert [await reason() for _ in range(4)] == ["weak_down"] * 3 + ["weak_breaker_open"]
        assert weak.calls == 3 and (await client.get("/readyz")).json["breakers"]["weak"] == "open"
        assert await client.metric('cowest_breaker{side="weak"}') == 2
        now[0] = 11
        assert await reason() == "weak_down" and weak.calls == 4  # the probe failed: open again
        assert await reason() == "weak_breaker_open"
        now[0], weak.what = 22, DRAFT
        assert await reason() is None and await reason() is None
        assert (await client.get("/readyz")).json["breakers"]["weak"] == "closed"


async def test_only_one_probe_at_a_time(upstream: Upstream) -> None:
    now, weak = [0.0], Held()
    settings = Settings(breaker_failures=1, breaker_cooldown_s=10, draft_deadline_s=0.05)
    async with serving(upstream.url, weak, settings, clock=lambda: now[0]) as client:
        await client.ask()
        now[0] = 11
        weak.asked.clear()
        client.server.served["pair"].drafter._deadline_s = 20.0  # type: ignore[union-attr]
        probe = asyncio.create_task(client.ask(**DETAILS))
        await weak.asked.wait()
        other = await client.ask(**DETAILS)
        assert other.json["cowest"]["degraded"] == "weak_breaker_open"
        weak.let_go.set()
        assert (await probe).json["cowest"]["degraded"] is None
        assert (await client.ask(**DETAILS)).json["cowest"]["degraded"] is None


async def test_the_strong_model_is_tried_again(upstream: Upstream) -> None:
    upstream.plan = [503, 500]
    async with serving(upstream.url) as client:
        got = await client.ask(**DETAILS)
        assert got.text == "No, it is not." and got.json["cowest"]["mode"] == "both" and len(upstream.bodies) == 3


async def broken(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def html(request: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>", content_type="text/html")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("turn", [500, 401, 429, broken, html, {"error": {"message": "x"}}, {"choices": []}])
async def test_when_the_strong_model_is_down_the_draft_is_the_answer(
    upstream: Upstream, turn: object, stream: bool
) -> None:
    upstream.plan = [turn] * 3  # type: ignore[list-item]
    async with serving(upstream.url) as client:
        got = await client.ask(stream=stream, stream_options={"include_usage": True}, **DETAILS)
        assert got.status == 200
        if stream:
            text, told, model = (
                got.chunks[0]["choices"][0]["delta"]["content"],
                got.chunks[-1]["cowest"],
                got.chunks[0]["model"],
            )
        else:
            text, told, model = got.text, got.json["cowest"], got.json["model"]
        assert (text, told["mode"], model) == (DRAFT, "weak_alone", "pair.weak")
        assert told["degraded"].startswith("strong_") and told["usage"]["strong"] is None
        assert await client.metric('cowest_answers_total{mode="weak_alone",model="pair"}') == 1


@pytest.mark.parametrize(
    ("turn", "status", "code"),
    [(500, 502, "http_500"), (401, 502, "http_401"), (429, 429, "rate_limit_exceeded"), (html, 502, "bad_response")],
)
async def test_with_the_policy_error_the_client_is_told(
    upstream: Upstream, turn: object, status: int, code: str
) -> None:
    upstream.plan = [turn] * 3  # type: ignore[list-item]
    async with serving(upstream.url, settings=ERROR) as client:
        for stream in (False, True):
            upstream.plan = [turn] * 3  # type: ignore[list-item]
            got = await client.ask(stream=stream)
            assert got.status == status and got.json["error"]["code"] == code
            assert SECRET not in got.raw.decode() and "Traceback" not in got.raw.decode()


async def test_a_draft_is_no_tool_call_and_no_json(upstream: Upstream) -> None:
    async with serving(upstream.url, max_attempts=1) as client:
        for fields in ({"tools": [{"type": "function"}]}, {"response_format": {"type": "json_object"}}, {"n": 2}):
            upstream.plan = [500]
            assert (await client.ask(**fields)).status == 502


async def test_a_fault_of_the_request_is_the_client_s_to_mend(upstream: Upstream) -> None:
    async def too_long(request: web.Request) -> web.StreamResponse:
        error = {"message": f"{SECRET} too many tokens", "param": "messages", "code": "context_length_exceeded"}
        return web.json_response({"error": error}, status=400)

    async with serving(upstream.url, settings=Settings(breaker_failures=1)) as client:
        for stream in (False, True):
            upstream.plan = [too_long]
            got = await client.ask(stream=stream)
            assert got.status == 400 and got.json["error"]["code"] == "context_length_exceeded"
            assert got.json["error"]["message"] == "*** too many tokens"
        assert (await client.ask()).status == 200  # and the breaker is closed


async def test_the_deadline_ends_a_hanging_strong_model(upstream: Upstream) -> None:
    upstream.plan = [hang, hang]
    async with serving(upstream.url, settings=Settings(deadline_s=0.2)) as client:
        got = await client.ask(**DETAILS)
        assert got.json["cowest"]["degraded"] == "strong_timeout" and got.text == DRAFT
        await asyncio.wait_for(upstream.left.wait(), 10)
    async with serving(upstream.url, settings=Settings(deadline_s=0.2, strong_down="error")) as client:
        got = await client.ask()
        assert got.status == 504 and got.json["error"]["code"] == "timeout"


async def test_the_strong_model_s_breaker(upstream: Upstream) -> None:
    now = [0.0]
    settings = Settings(strong_down="error", breaker_failures=2, breaker_cooldown_s=10)
    async with serving(upstream.url, settings=settings, clock=lambda: now[0], max_attempts=1) as client:
        upstream.plan = [500, 500]
        assert [(await client.ask()).status for _ in range(3)] == [502, 502, 503]
        assert len(upstream.bodies) == 2
        ready = await client.get("/readyz")
        assert ready.status == 503 and ready.json["status"] == "strong_down"
        now[0] = 11
        assert (await client.ask(stream=True)).status == 200  # the probe
        assert (await client.get("/readyz")).status == 200 and (await client.ask()).status == 200


@pytest.mark.parametrize("ending", ["cut", "no_end", "error"])
async def test_a_stream_that_breaks_off_says_so(upstream: Upstream, ending: str) -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(events(chunk({"content": "No"}), done=False))
        if ending == "cut":
            assert request.transport is not None
            request.transport.abort()
        if ending == "error":
            await response.write(events({"error": {"message": SECRET}}, done=False))
        return response

    upstream.plan = [half]
    async with serving(upstream.url) as client:
        got = await client.ask(stream=True)
        parts = got.raw.decode().strip().split("\n\n")
        assert got.status == 200 and len(parts) == 2 and "[DONE]" not in parts[-1]
        assert json.loads(parts[-1][6:])["error"]["type"] == "upstream_error" and SECRET not in parts[-1]
        assert await client.metric('cowest_requests_total{model="pair",status="502"}') == 1


async def test_a_client_that_leaves_frees_the_weak_model(upstream: Upstream) -> None:
    weak = Held()
    async with serving(upstream.url, weak) as client:
        leaving = asyncio.create_task(client.ask())
        await weak.asked.wait()
        leaving.cancel()
        await asyncio.wait_for(weak.cancelled.wait(), 10)
        while client.server.admission.inside:
            await asyncio.sleep(0.01)
        assert not upstream.bodies
        assert await client.metric('cowest_requests_total{model="pair",status="499"}') == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_the_strong_model(upstream: Upstream, stream: bool) -> None:
    async def begin_and_hang(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(events(chunk({"content": "No"}), done=False))
        return await hang(request)

    upstream.plan = [begin_and_hang if stream else hang]
    async with serving(upstream.url) as client, aiohttp.ClientSession() as session:
        body = {"model": "pair", "stream": stream, "messages": [{"role": "user", "content": "May I?"}]}
        asking = session.post(f"{client.url}/chat/completions", json=body)
        if stream:
            got = await asking
            await got.content.readuntil(b"\n\n")
            got.close()
        else:
            task = asyncio.ensure_future(asking)
            while not upstream.bodies:
                await asyncio.sleep(0.01)
            task.cancel()
        await asyncio.wait_for(upstream.left.wait(), 10)


async def test_a_client_that_does_not_read_is_let_go(upstream: Upstream) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(events(chunk({"content": "x" * 10_000}), done=False))

    upstream.plan = [endless]
    async with serving(upstream.url, settings=Settings(write_timeout_s=0.2)) as client:
        body = json.dumps({"model": "pair", "stream": True, "messages": [{"role": "user", "content": "Hm?"}]}).encode()
        port = int(client.url.split(":")[2].split("/")[0])
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await asyncio.wait_for(upstream.left.wait(), 20)
        while client.server.admission.inside:
            await asyncio.sleep(0.01)
        writer.close()


async def test_a_full_queue_answers_429(upstream: Upstream) -> None:
    weak = Held()
    async with serving(upstream.url, weak, Settings(concurrency=1, queue=1)) as client:
        two = [asyncio.create_task(client.ask()) for _ in range(2)]
        while client.server.admission.inside < 2:
            await asyncio.sleep(0.01)
        third = await client.ask()
        assert (
            third.status == 429 and third.json["error"]["code"] == "queue_full" and third.headers["Retry-After"] == "1"
        )
        weak.let_go.set()
        assert [(await task).status for task in two] == [200, 200]
        assert (await client.ask()).status == 200
        assert await client.metric('cowest_rejected_total{reason="queue_full"}') == 1


async def test_the_strong_model_s_concurrency_is_kept(upstream: Upstream) -> None:
    open_, most, now = asyncio.Event(), 0, 0

    async def counted(request: web.Request) -> web.StreamResponse:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await open_.wait()
        now -= 1
        return web.json_response(reply())

    upstream.plan = [counted] * 5
    async with serving(upstream.url, concurrency=2) as client:
        five = [asyncio.create_task(client.ask()) for _ in range(5)]
        while now < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        open_.set()
        assert [(await task).status for task in five] == [200] * 5 and most == 2


async def test_draining_finishes_what_is_under_way_and_takes_nothing_new(upstream: Upstream) -> None:
    from cowest.server.runner import drain

    weak = Held()
    async with serving(upstream.url, weak) as client:
        under_way = asyncio.create_task(client.ask())
        await weak.asked.wait()
        draining = asyncio.create_task(drain(client.server, 20))
        await asyncio.sleep(0)
        assert (await client.get("/readyz")).status == 503 and (await client.get("/healthz")).status == 200
        late = await client.ask()
        assert late.status == 503 and late.headers["Retry-After"] and "error" in late.json
        weak.let_go.set()
        assert (await under_way).status == 200 and await draining
        assert not await drain_with_one_inside(client.server)


async def drain_with_one_inside(server: object) -> bool:
    from cowest.server.app import Server
    from cowest.server.runner import drain

    assert isinstance(server, Server)
    with server.admission.admitted("x"):
        return await drain(server, 0.05)


async def test_a_scripted_strong_failure_leaves_the_queue_empty(upstream: Upstream) -> None:
    upstream.plan = [500] * 4
    weak = ScriptedChatModel([], default=DRAFT)
    async with serving(upstream.url, weak, ERROR, max_attempts=1) as client:
        await asyncio.gather(*(client.ask(stream=bool(i % 2)) for i in range(4)))
        assert client.server.admission.inside == 0
