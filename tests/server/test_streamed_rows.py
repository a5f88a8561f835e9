"""Served interactions stream their last answer: over HTTP on both sides, with an endpoint that waits before its last piece."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from tests.server.loopback import Act, Client, Upstream, chunk, events, reply, strong
from tests.server.site import streamed
from tests.server.test_rows import served

from cowest.errors import ConfigError
from cowest.server.opening import open_served
from cowest.server.settings import Settings

Json = dict[str, Any]
TURNS = {"collab_critique": 2, "collab_advise": 2, "collab_drafts": 1, "collab_consult": 1}
"""Calls of the strong model, where it asks nothing; the last one is streamed."""


def recipe_file(folder: Path, weak: Upstream, big: Upstream) -> Path:
    def model(name: str, url: str) -> Json:
        return {"kind": "openai", "model": name, "base_url": url, "api_key_env": None, "max_attempts": 1}

    recipe = {
        "name": "tiny",
        "task": {"kind": "ifqa", "sample": True},
        "weak": model("small", weak.url),
        "strong": model("big", big.url),
        "table": {"samples": 2, "questions": 1},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@asynccontextmanager
async def asking(client: Client, model: str, **more: object) -> AsyncIterator[AsyncIterator[Json]]:
    """A streamed request's events, as they come; ``{}`` is [DONE]."""
    body = {"model": model, "messages": [{"role": "user", "content": "Why?"}], "stream": True} | more

    async def read(response: aiohttp.ClientResponse) -> AsyncIterator[Json]:
        async for line in response.content:
            if line.startswith(b"data: "):
                yield {} if line.startswith(b"data: [DONE]") else json.loads(line[6:])

    async with client.session.post(f"{client.url}/chat/completions", json=body) as response:
        assert response.status == 200
        yield read(response)


def texts(found: list[Json]) -> list[str]:
    return [c["delta"]["content"] for event in found for c in event.get("choices", ()) if c["delta"].get("content")]


async def first_text(events_: AsyncIterator[Json]) -> str:
    async for event in events_:
        if said := texts([event]):
            return said[0]
    raise AssertionError("no text came")


@pytest.mark.parametrize("row", TURNS)
async def test_the_first_piece_arrives_before_the_endpoint_has_sent_its_last(row: str, tmp_path: Path) -> None:
    gate = asyncio.Event()
    first = "So.\nAnswer: no" if row == "collab_consult" else "It is "
    async with strong() as weak, strong() as big, served(recipe_file(tmp_path, weak, big), row) as client:
        big.plan = [*[reply("Well.")] * (TURNS[row] - 1), streamed(first, ", or so", gate=gate)]
        async with asking(client, "tiny", stream_options={"include_usage": True}, cowest={"details": True}) as found:
            assert await asyncio.wait_for(first_text(found), 20) == first
            assert not gate.is_set()
            gate.set()
            rest = [event async for event in found]
    assert texts(rest) == [", or so"] and rest[-1] == {}
    (usage,) = [event["usage"] for event in rest if event.get("usage")]
    weak_calls = len(weak.bodies)
    assert usage["prompt_tokens"] == 100 * (TURNS[row] + weak_calls)
    assert usage["completion_tokens"] == 7 * (TURNS[row] + weak_calls)
    assert [body.get("stream", False) for body in big.bodies] == [False] * (TURNS[row] - 1) + [True]
    assert not any(body.get("stream") for body in weak.bodies)


async def test_a_request_without_a_stream_is_answered_whole_as_before(tmp_path: Path) -> None:
    async with strong() as weak, strong() as big, served(recipe_file(tmp_path, weak, big), "collab_advise") as client:
        got = await client.ask("Why?", model="tiny")
        assert got.text == "No, it is not." and not any(body.get("stream") for body in big.bodies)


async def test_a_question_is_never_shown_and_the_answer_after_it_is_streamed(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with strong() as weak, strong() as big, served(recipe_file(tmp_path, weak, big), "collab_consult") as client:
        big.plan = [streamed("I have to", " know.\nASK: what", " is it?"), streamed("It", " is.", gate=gate)]
        async with asking(client, "tiny") as found:
            assert await asyncio.wait_for(first_text(found), 20) == "It"  # no question is left: streamed at once
            gate.set()
            rest = [event async for event in found]
        assert texts(rest) == [" is."] and len(weak.bodies) == 1 and "what is it?" in str(weak.bodies[0])
        # What may still come to a question is kept back; an answer that never says so comes whole.
        big.plan, big.bodies[:] = [streamed("No", " idea", ".")], []
        async with asking(client, "tiny") as found:
            assert texts([event async for event in found]) == ["No idea."]


async def test_thinking_is_never_shown(tmp_path: Path) -> None:
    thinks = streamed("<th", "ink>Perhaps it", " is.</thi", "nk>\n\nIt is", " not. 1 <", " 2.")
    async with strong() as weak, strong() as big, served(recipe_file(tmp_path, weak, big), "collab_drafts") as client:
        big.plan = [thinks]
        async with asking(client, "tiny") as found:
            assert "".join(said := texts([event async for event in found])) == "It is not. 1 < 2." and len(said) > 1
    async with strong() as weak, strong() as big, served(recipe_file(tmp_path, weak, big), "collab_advise") as client:
        # One that has thought aloud in its attempt, behind an opening mark of its template, is not listened to.
        big.plan = [reply("Hm.</think>\nMaybe."), streamed("Hm, hm", ".</think>\nIt is", " not.")]
        async with asking(client, "tiny") as found:
            assert texts([event async for event in found]) == ["It is not."]


def breaking(*pieces: str) -> Act:
    """A stream that is cut off."""

    async def act(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for text in pieces:
            await response.write(events(chunk({"content": text}), done=False))
        await asyncio.sleep(0.05)
        assert request.transport is not None
        request.transport.close()
        return response

    return act


async def test_what_breaks_off_is_an_error_and_what_has_not_begun_is_as_before(tmp_path: Path) -> None:
    async with strong() as weak, strong() as big, served(recipe_file(tmp_path, weak, big), "collab_advise") as client:
        big.plan = [reply("Well."), breaking("It ", "is ")]
        async with asking(client, "tiny") as found:
            came = [event async for event in found]
        assert texts(came) == ["It ", "is "] and "error" in came[-1] and {} not in came
        assert len(big.bodies) == 2  # what was told is not tried again
        big.plan = [reply("Well."), 503]
        got = await client.session.post(
            f"{client.url}/chat/completions",
            json={"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "Why?"}]},
        )
        assert got.status == 502 and (await got.json())["error"]["code"]


async def test_a_client_that_leaves_ends_the_endpoints_stream(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with strong() as weak, strong() as big, served(recipe_file(tmp_path, weak, big), "collab_drafts") as client:
        big.plan = [streamed("It ", "is.", gate=gate)]
        async with asking(client, "tiny") as found:
            assert await asyncio.wait_for(first_text(found), 20) == "It "
        await asyncio.wait_for(big.left.wait(), 20)


async def test_a_question_may_come_as_a_tool_call(tmp_path: Path) -> None:
    function = {"name": "ask", "arguments": json.dumps({"question": "what is it?"})}

    async def act(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        call = {"index": 0, "id": "c1", "type": "function", "function": function}
        await response.write(
            events(chunk({"content": "Let me"}), chunk({"tool_calls": [call]}), chunk({}, "tool_calls"))
        )
        return response

    async with strong() as weak, strong() as big, served(recipe_file(tmp_path, weak, big), "collab_consult") as client:
        big.plan = [act, streamed("It", " is.")]
        async with asking(client, "tiny") as found:
            assert texts([event async for event in found]) == ["It", " is."]
        assert big.bodies[1]["messages"][-1]["role"] == "tool" and "what is it?" in str(weak.bodies[0])


@pytest.mark.parametrize("stream", [False, True])
async def test_each_models_tokens_are_told_apart(stream: bool, tmp_path: Path) -> None:
    async with strong() as weak, strong() as big, served(recipe_file(tmp_path, weak, big), "collab_advise") as client:
        if stream:
            big.plan = [reply("Well."), streamed("It", " is.")]
        usage = {"stream_options": {"include_usage": True}} if stream else {}
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Why?"}], "cowest": {"details": True}}
        async with client.session.post(
            f"{client.url}/chat/completions", json=body | usage | {"stream": stream}
        ) as response:
            raw = await response.text()
    lines = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")] or [json.loads(raw)]
    (told,) = [line["cowest"] for line in lines if "cowest" in line]
    assert told["usage"] == {
        "weak": {"prompt_tokens": 100, "completion_tokens": 7},
        "strong": {"prompt_tokens": 200, "completion_tokens": 14},
    }
    (all_,) = [line["usage"] for line in lines if line.get("usage")]
    assert (all_["prompt_tokens"], all_["completion_tokens"], all_["total_tokens"]) == (300, 21, 321)


def test_a_row_of_models_beside_the_pair_is_not_served(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, Upstream(url="http://127.0.0.1:1/v1"), Upstream(url="http://127.0.0.1:1/v1"))
    recipe = yaml.safe_load(path.read_text())
    recipe["table"]["specialists"] = {"law": {"kind": "scripted", "default": "Answer: no"}}
    path.write_text(yaml.safe_dump(recipe))
    with pytest.raises(ConfigError, match=r"collab_specialists asks models beside the pair \(table\.specialists\)"):
        open_served(path, Settings(), only=["collab_specialists"])
