"""What the strong endpoint echoes of its key, and how oddly it writes: clients of the server get neither."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from tests.server.loopback import SECRET, Act, Json, Upstream, chunk, events, reply, serving, strong

ENCODED = base64.b64encode(f"Bearer {SECRET}".encode()).decode()


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with strong() as upstream:
        yield upstream


def streaming(*chunks: Json, kind: str = "text/event-stream") -> Act:
    async def act(request: web.Request) -> web.StreamResponse:
        return web.Response(body=events(*chunks), content_type=kind)

    return act


def said(chunks: list[Json]) -> str:
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])


@pytest.mark.parametrize("form", [SECRET, ENCODED])
@pytest.mark.parametrize("size", [1, 4, 200])
async def test_a_key_in_the_pieces_of_a_stream_reaches_no_client(upstream: Upstream, form: str, size: int) -> None:
    text = f"I use {form} here."
    pieces = [chunk({"content": text[i : i + size]}) for i in range(0, len(text), size)]
    upstream.plan = [streaming(*pieces, chunk({}, "stop"))]
    async with serving(upstream.url) as client:
        got = await client.ask(stream=True)
    assert got.status == 200 and "***" in said(got.chunks)
    assert said(got.chunks).startswith("I use ") and said(got.chunks).endswith(" here.")
    assert SECRET not in said(got.chunks) and ENCODED[12:] not in said(got.chunks)


async def test_a_key_in_a_tool_call_reaches_no_client(upstream: Upstream) -> None:
    arguments = json.dumps({"url": f"https://h/?k={SECRET}", "x": 1})
    calls = [
        chunk(
            {"tool_calls": [{"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": ""}}]}
        ),
        *(chunk({"tool_calls": [{"index": 0, "function": {"arguments": c}}]}) for c in arguments),
        chunk({}, "tool_calls"),
    ]
    upstream.plan = [streaming(*calls), streaming(*calls)]
    tools = [{"type": "function", "function": {"name": "f"}}]
    async with serving(upstream.url) as client:
        streamed = await client.ask(stream=True, tools=tools, model="pair/strong")
        whole = await client.ask(tools=tools, model="pair/strong")
    pieces = [c["choices"][0]["delta"].get("tool_calls", [{}])[0] for c in streamed.chunks if c["choices"]]
    joined = "".join(p.get("function", {}).get("arguments", "") for p in pieces)
    (call,) = whole.json["choices"][0]["message"]["tool_calls"]
    for told in (joined, call["function"]["arguments"]):
        assert json.loads(told) == {"url": "https://h/?k=***", "x": 1}
    assert (call["id"], call["function"]["name"]) == ("t", "f")


async def test_a_key_in_a_whole_answer_or_a_complaint_reaches_no_client(upstream: Upstream) -> None:
    error = {"error": {"message": f"bad {ENCODED}", "param": SECRET, "code": f"c {SECRET}"}}

    async def complaint(request: web.Request) -> web.StreamResponse:
        return web.json_response(error, status=400)

    upstream.plan = [reply(f"Mine is {SECRET}.", note={"deep": [ENCODED]}), complaint]
    async with serving(upstream.url) as client:
        got, refused = await client.ask(), await client.ask()
    assert got.text == "Mine is ***." and ENCODED[12:] not in got.raw.decode()
    assert refused.status == 400 and SECRET not in refused.raw.decode() and ENCODED[12:] not in refused.raw.decode()


@pytest.mark.parametrize("stream", [False, True])
async def test_odd_streams_reach_clients_in_openai_s_form(upstream: Upstream, stream: bool) -> None:
    odd = [
        {
            "id": f"c-{i}",
            "choices": [{"index": i, "delta": {"content": [{"type": "text", "text": t}]}, "finish_reason": None}],
        }
        for i, t in enumerate(("No, ", "it ", "is not."))
    ]
    end = {"id": "c-9", "choices": [{"index": 9, "delta": {}, "finish_reason": "stop"}]}
    usage = {"id": "c-10", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}
    upstream.plan = [streaming(*odd, end, usage, kind="text/plain")]
    async with serving(upstream.url) as client:
        got = await client.ask(stream=stream, stream_options={"include_usage": True})
        assert got.status == 200 and len(upstream.bodies) == 1
        if stream:
            assert said(got.chunks) == "No, it is not."
            assert {c["choices"][0]["index"] for c in got.chunks if c["choices"]} == {0}
        else:
            assert got.text == "No, it is not." and got.json["choices"][0]["finish_reason"] == "stop"
            assert got.json["usage"]["completion_tokens"] > 3, "with the weak model's"


async def test_a_whole_answer_in_parts_is_text_for_clients(upstream: Upstream) -> None:
    parts = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "No."}]
    upstream.plan = [
        reply()
        | {"choices": [{"index": 0, "message": {"role": "assistant", "content": parts}, "finish_reason": "stop"}]}
    ]
    async with serving(upstream.url) as client:
        got = await client.ask()
    assert got.text == "No." and got.json["choices"][0]["message"]["reasoning_content"] == "Hm."


async def test_an_error_inside_a_stream_ends_it_with_an_error(upstream: Upstream) -> None:
    async def act(request: web.Request) -> web.StreamResponse:
        body = events(chunk({"content": "No, "}), done=False) + b'event: error\ndata: {"message": "overloaded"}\n\n'
        return web.Response(body=body, content_type="text/event-stream")

    upstream.plan = [act]
    async with serving(upstream.url) as client:
        got = await client.ask(stream=True)
    last = json.loads(got.raw.decode().strip().rpartition("data: ")[2])
    assert last["error"]["code"] == "server_error" and "overloaded" not in got.raw.decode()
