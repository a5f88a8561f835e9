"""The contract with the official client: OpenAI's own SDK reads every answer and every error as it would read OpenAI's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from aiohttp import web
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel
from tests.server.loopback import (
    DEFAULTS,
    DRAFT,
    SECRET,
    Client,
    Held,
    Upstream,
    chunk,
    events,
    hang,
    reply,
    serving,
    strong,
)

from cowest.protocols import ChatModel
from cowest.server.auth import Keys
from cowest.server.settings import Settings

ASKED: list[ChatCompletionMessageParam] = [{"role": "user", "content": "May I?"}]
TOOL: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "limit", "parameters": {"type": "object", "properties": {"drug": {"type": "string"}}}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "limit", "arguments": '{"drug": "Velmo"}'}}


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with strong() as upstream:
        yield upstream


@asynccontextmanager
async def sdk(
    upstream: Upstream, settings: Settings = DEFAULTS, weak: ChatModel | None = None, **options: Any
) -> AsyncIterator[tuple[AsyncOpenAI, Client]]:
    """The SDK before a served pair. It makes no retries of its own unless ``options`` say so."""
    keys = Keys([options["api_key"]]) if "api_key" in options else None
    fields: dict[str, Any] = {"api_key": "none", "max_retries": 0} | options
    async with (
        serving(upstream.url, weak, settings, keys=keys, max_attempts=1) as served,
        AsyncOpenAI(base_url=served.url, **fields) as client,
    ):
        yield client, served


def streams(*chunks: dict[str, Any], done: bool = True) -> Any:
    """An upstream that sends these chunks."""

    async def act(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(events(*chunks, done=done))
        return response

    return act


async def test_plain(upstream: Upstream) -> None:
    async with sdk(upstream) as (client, _):
        done = await client.chat.completions.create(model="pair", messages=ASKED, temperature=0.2, max_tokens=9)
    assert done.choices[0].message.content == "No, it is not." and done.choices[0].finish_reason == "stop"
    assert done.object == "chat.completion" and done.model == "pair" and done._request_id == done.id
    assert done.usage is not None and done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert upstream.bodies[0]["max_tokens"] == 9 and upstream.bodies[0]["temperature"] == 0.2


async def test_plain_from_a_program_without_asyncio(upstream: Upstream) -> None:
    async with serving(upstream.url) as served:

        def ask() -> str | None:
            with OpenAI(base_url=served.url, api_key="none") as client:
                return client.chat.completions.create(model="pair", messages=ASKED).choices[0].message.content

        assert await asyncio.to_thread(ask) == "No, it is not."


async def test_models(upstream: Upstream) -> None:
    async with sdk(upstream) as (client, _):
        assert [model.id async for model in client.models.list()] == ["pair", "pair.weak", "pair.strong"]
        assert (await client.models.retrieve("pair.weak")).id == "pair.weak"  # the SDK escapes the slash
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("gpt-4")


async def test_stream(upstream: Upstream) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}
    upstream.plan = [
        streams(
            chunk({"role": "assistant", "content": "No"}), chunk({"content": "!"}), chunk({}, "stop"),
            chunk({}, choices=[], usage=usage),
        )
    ]  # fmt: skip
    async with sdk(upstream) as (client, _):
        stream = await client.chat.completions.create(
            model="pair", messages=ASKED, stream=True, stream_options={"include_usage": True},
            extra_body={"cowest": {"details": True}},
        )  # fmt: skip
        chunks = [part async for part in stream]
    assert "".join(part.choices[0].delta.content or "" for part in chunks if part.choices) == "No!"
    assert len({part.id for part in chunks}) == 1 and {part.model for part in chunks} == {"pair"}
    counted = next(part.usage for part in chunks if part.usage)
    assert counted.completion_tokens == 2 + len(DRAFT.split())
    assert (chunks[-1].model_extra or {})["cowest"]["draft"] == DRAFT  # unknown fields do no harm


async def test_the_sdk_s_own_gathering_of_a_stream(upstream: Upstream) -> None:
    first = {"index": 0, **CALL, "function": {"name": "limit", "arguments": '{"drug":'}}
    second = {"index": 0, "function": {"arguments": ' "Velmo"}'}}
    upstream.plan = [
        streams(
            chunk({"role": "assistant", "tool_calls": [first]}), chunk({"tool_calls": [second]}), chunk({}, "tool_calls")
        )
    ]  # fmt: skip
    async with (
        sdk(upstream) as (client, _),
        client.chat.completions.stream(model="pair", messages=ASKED, tools=[TOOL]) as stream,
    ):
        done = await stream.get_final_completion()
    calls = done.choices[0].message.tool_calls
    assert calls and calls[0].id == "call_1" and calls[0].function.arguments == '{"drug": "Velmo"}'


async def test_tools_over_two_turns(upstream: Upstream) -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    upstream.plan = [reply(choices=[{"index": 0, "message": message, "finish_reason": "tool_calls"}]), reply()]
    async with sdk(upstream) as (client, _):
        asked = await client.chat.completions.create(model="pair", messages=ASKED, tools=[TOOL], tool_choice="auto")
        call = (asked.choices[0].message.tool_calls or [])[0]
        assert call.type == "function" and json.loads(call.function.arguments) == {"drug": "Velmo"}
        turns: list[Any] = [
            *ASKED,
            asked.choices[0].message,
            {"role": "tool", "tool_call_id": call.id, "content": "62"},
        ]
        done = await client.chat.completions.create(model="pair", messages=turns, tools=[TOOL])
    assert done.choices[0].message.content == "No, it is not."
    assert upstream.bodies[1]["tools"] == [TOOL] and upstream.bodies[1]["messages"][-1]["content"] == "62"
    assert upstream.bodies[1]["messages"][1]["tool_calls"] == [CALL]


async def test_a_parsed_schema(upstream: Upstream) -> None:
    class Verdict(BaseModel):
        safe: bool

    upstream.plan = [reply('{"safe": false}')]
    async with sdk(upstream) as (client, _):
        done = await client.chat.completions.parse(model="pair", messages=ASKED, response_format=Verdict)
    assert done.choices[0].message.parsed == Verdict(safe=False)
    assert upstream.bodies[0]["response_format"]["json_schema"]["name"] == "Verdict"


async def test_several_answers(upstream: Upstream) -> None:
    upstream.plan = [
        reply(choices=[{"index": i, "message": {"role": "assistant", "content": f"{i}"}} for i in range(3)])
    ]
    async with sdk(upstream) as (client, _):
        done = await client.chat.completions.create(model="pair", messages=ASKED, n=3, seed=7)
        assert [choice.message.content for choice in done.choices] == ["0", "1", "2"]
        alone = await client.chat.completions.create(model="pair.weak", messages=ASKED, n=2)
    assert upstream.bodies[0]["n"] == 3 and upstream.bodies[0]["seed"] == 7
    assert [choice.message.content for choice in alone.choices] == [DRAFT] * 2


async def test_an_error_is_the_sdk_s_own_exception(upstream: Upstream) -> None:
    async with sdk(upstream, Settings(strong_down="error", max_n=2, max_body_bytes=3000)) as (client, _):
        create = client.chat.completions.create
        with pytest.raises(openai.NotFoundError) as unknown:
            await create(model="gpt-4", messages=ASKED)
        assert unknown.value.code == "model_not_found" and unknown.value.param == "model"
        with pytest.raises(openai.BadRequestError) as wrong:
            await create(model="pair", messages=ASKED, n=3)
        assert wrong.value.param == "n" and wrong.value.type == "invalid_request_error"
        with pytest.raises(openai.APIStatusError) as large:
            await create(model="pair", messages=[{"role": "user", "content": "x" * 4000}])
        assert large.value.status_code == 413
        upstream.plan = [500, 429]
        with pytest.raises(openai.InternalServerError) as down:
            await create(model="pair", messages=ASKED)
        assert down.value.status_code == 502 and down.value.code == "http_500" and SECRET not in str(down.value)
        with pytest.raises(openai.RateLimitError):
            await create(model="pair", messages=ASKED)
        with pytest.raises(openai.NotFoundError):  # other APIs are not there, and say so in the same shape
            await client.embeddings.create(model="pair", input="May I?")


async def test_a_wrong_key(upstream: Upstream) -> None:
    async with sdk(upstream, api_key="right") as (client, served):
        assert (await client.chat.completions.create(model="pair", messages=ASKED)).id
        other = client.with_options(api_key="wrong")
        with pytest.raises(openai.AuthenticationError) as refused:
            await other.chat.completions.create(model="pair", messages=ASKED)
        assert refused.value.code == "invalid_api_key" and served.server.admission.inside == 0


async def test_the_sdk_s_own_retries_get_past_a_full_queue(upstream: Upstream) -> None:
    weak = Held()
    async with sdk(upstream, Settings(concurrency=1, queue=0), weak) as (client, _):
        first = asyncio.create_task(client.chat.completions.create(model="pair", messages=ASKED))
        await weak.asked.wait()
        with pytest.raises(openai.RateLimitError) as full:
            await client.chat.completions.create(model="pair", messages=ASKED)
        assert full.value.code == "queue_full" and full.value.response.headers["Retry-After"] == "1"
        patient = client.with_options(max_retries=2)
        second = asyncio.create_task(patient.chat.completions.create(model="pair", messages=ASKED))
        await asyncio.sleep(0.1)
        weak.let_go.set()
        assert (await first).id and (await second).id


async def test_a_stream_that_breaks_off_raises(upstream: Upstream) -> None:
    upstream.plan = [streams(chunk({"content": "No"}), done=False)]
    async with sdk(upstream) as (client, _):
        stream = await client.chat.completions.create(model="pair", messages=ASKED, stream=True)
        got: list[str | None] = []
        with pytest.raises(openai.APIError, match="broke off"):
            async for part in stream:
                got.append(part.choices[0].delta.content)
    assert got == ["No"]


async def test_timeouts_of_the_client_and_of_the_server(upstream: Upstream) -> None:
    upstream.plan = [hang, hang]
    async with sdk(upstream, timeout=0.3) as (client, served):
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(model="pair", messages=ASKED)
        await asyncio.wait_for(upstream.left.wait(), 10)
        while served.server.admission.inside:
            await asyncio.sleep(0.01)
    async with sdk(upstream, Settings(deadline_s=0.2, strong_down="error")) as (client, _):
        with pytest.raises(openai.InternalServerError) as late:
            await client.chat.completions.create(model="pair", messages=ASKED)
        assert late.value.status_code == 504 and late.value.code == "timeout"


@pytest.mark.parametrize("stream", [False, True])
async def test_cancellation_frees_the_strong_model(upstream: Upstream, stream: bool) -> None:
    async def begin_and_hang(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(events(chunk({"content": "No"}), done=False))
        return await hang(request)

    upstream.plan = [begin_and_hang if stream else hang]
    async with sdk(upstream) as (client, served):
        if stream:
            parts = await client.chat.completions.create(model="pair", messages=ASKED, stream=True)
            assert (await anext(aiter(parts))).choices[0].delta.content == "No"
            await parts.close()
        else:
            task = asyncio.create_task(client.chat.completions.create(model="pair", messages=ASKED))
            while not upstream.bodies:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.wait_for(upstream.left.wait(), 10)
        while served.server.admission.inside:
            await asyncio.sleep(0.01)
        assert (await client.chat.completions.create(model="pair", messages=ASKED)).id
