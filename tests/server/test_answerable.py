"""What a client gets of a weak model that fails, and that nobody is asked in vain or at every turn: over HTTP on loopback."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from tests.helpers import tiny_recipe, world
from tests.server.loopback import DEFAULTS, DRAFT, Act, Client, Json, Upstream, reply, serving, strong

from cowest.models.scripted import ScriptedChatModel
from cowest.server.app import Server
from cowest.server.auth import Keys
from cowest.server.breaker import Breaker
from cowest.server.chat_backend import ChatBackend
from cowest.server.opening import open_served
from cowest.server.runner import listening
from cowest.server.settings import Settings
from cowest.types import Completion, Message, Sampling

QUESTION = world().examples("test")[0].input
DETAILS: dict[str, Any] = {"cowest": {"details": True}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with strong() as upstream:
        yield upstream


@pytest.fixture
def weak() -> ScriptedChatModel:
    return ScriptedChatModel([], default=DRAFT)


def recipe_file(folder: Path, weak: Upstream, big: Upstream, **strong_fields: Any) -> Path:
    recipe = tiny_recipe("unused", big.url)
    recipe["weak"] = {"kind": "openai", "model": "small", "base_url": weak.url, "api_key_env": None, "max_attempts": 1}
    section = recipe["strong"]
    assert isinstance(section, dict)
    recipe["strong"] = section | strong_fields
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@asynccontextmanager
async def served(path: Path, *systems: str, settings: Settings = DEFAULTS, **options: Any) -> AsyncIterator[Client]:
    opened = open_served(path, settings, only=systems, **options)
    server = Server(opened.served, opened.settings, Keys(), opened.breakers)
    try:
        async with listening(server, "127.0.0.1", 0) as url, aiohttp.ClientSession() as session:
            yield Client(session, url, server)
    finally:
        await opened.aclose()


def nothing(how: str) -> Json | Act | int:
    """A weak endpoint's turn that holds no draft."""

    async def cut(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    choice = {"index": 0, "message": {"role": "assistant", "content": None}, "finish_reason": "stop"}
    turns: dict[str, Json | Act | int] = {
        "empty": reply(""),
        "blank": reply(" \n"),
        "null": reply(choices=[choice]),
        "no_choices": reply(choices=[]),
        "refused": reply(choices=[choice | {"message": {"role": "assistant", "content": None, "refusal": "No."}}]),
        "down": 503,
        "rejected": 400,
        "cut": cut,
    }
    return turns[how]


REASONS = {
    "empty": "draft_empty",
    "blank": "draft_empty",
    "null": "draft_empty",
    "no_choices": "draft_empty",
    "refused": "draft_refused",
    "down": "weak_down",
    "rejected": "weak_rejected",
    "cut": "weak_down",
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", REASONS)
@pytest.mark.parametrize("system", ["collab", "collab_cot", "best_of_k"])
async def test_a_weak_model_that_fails_is_a_draft_that_failed(
    tmp_path: Path, system: str, how: str, stream: bool
) -> None:
    async with strong() as small, strong() as big, served(recipe_file(tmp_path, small, big), system) as client:
        small.plan = [nothing(how)] * 8
        got = await client.ask(QUESTION, model=f"tiny.{system}", stream=stream, **DETAILS)
        assert got.status == 200
        told = got.chunks[-1]["cowest"] if stream else got.json["cowest"]
        model = (got.chunks[0] if stream else got.json)["model"]
        assert (told["mode"], told["degraded"], told["draft"]) == ("strong_alone", REASONS[how], None)
        assert model == "tiny.strong" and "No, it is not." in got.raw.decode()
        assert [body["messages"][-1]["content"] for body in big.bodies] == [QUESTION]
        assert (await client.get("/readyz")).json["breakers"]["strong"] == "closed"


async def test_failing_drafts_of_a_row_do_not_close_the_strong_model(tmp_path: Path) -> None:
    async with strong() as small, strong() as big:
        path = recipe_file(tmp_path, small, big)
        async with served(path, "collab_cot", settings=Settings(breaker_failures=1)) as client:
            small.plan = [503] * 3
            assert [(await client.ask(QUESTION, model="tiny")).status for _ in range(3)] == [200] * 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("system", ["weak", "weak_cot"])
@pytest.mark.parametrize("how", ["empty", "null", "refused"])
async def test_the_weak_model_alone_that_writes_nothing_has_answered(
    tmp_path: Path, system: str, how: str, stream: bool
) -> None:
    async with strong() as small, strong() as big, served(recipe_file(tmp_path, small, big), system) as client:
        small.plan = [nothing(how)] * 2
        got = await client.ask(QUESTION, model=f"tiny.{system}", stream=stream, **DETAILS)
        assert got.status == 200 and not big.bodies
        if stream:
            assert got.chunks[0]["choices"][0]["delta"]["content"] == ""
            finish, told = got.chunks[-2]["choices"][0]["finish_reason"], got.chunks[-1]["cowest"]
        else:
            assert got.text == ""
            finish, told = got.json["choices"][0]["finish_reason"], got.json["cowest"]
        assert finish == ("content_filter" if how == "refused" else "stop")
        assert (told["mode"], told["degraded"]) == ("weak_alone", REASONS[how])
        small.plan = [503]
        assert (await client.ask(QUESTION, model=f"tiny.{system}")).status == 502  # down is down


UNANSWERABLE = [
    {"n": 0}, {"n": -1}, {"n": 17}, {"n": "two"}, {"n": True}, {"n": 1.5}, {"max_tokens": 0}, {"max_tokens": "x"},
    {"max_completion_tokens": -5}, {"max_tokens": 40_000}, {"temperature": "hot"}, {"temperature": -0.1}, {"temperature": True},
    {"top_p": 1.5}, {"presence_penalty": []}, {"seed": "s"}, {"stop": 3}, {"stop": [3]}, {"tools": {"a": 1}}, {"tools": ["f"]},
    {"tool_choice": 1}, {"response_format": "json"}, {"stream_options": 1}, {"logprobs": "yes"}, {"messages": []},
    {"stream": "yes"}, {"cowest": {"detials": True}},
]  # fmt: skip


@pytest.mark.parametrize("fields", UNANSWERABLE, ids=json.dumps)
async def test_nobody_is_asked_for_what_no_model_takes(
    upstream: Upstream, weak: ScriptedChatModel, fields: Json
) -> None:
    async with serving(upstream.url, weak) as client:
        got = await client.ask(**fields)
        assert got.status == 400 and got.json["error"]["param"].startswith(next(iter(fields)))
        assert not weak.requests and not upstream.bodies
        assert (await client.ask(model="pair.none")).status == 404 and not weak.requests


@pytest.mark.parametrize(
    "fields",
    [{"tools": TOOLS}, {"response_format": {"type": "json_object"}}, {"logprobs": True}, {"temperature": 3}, {"unknown": 1},
     {"messages": [{"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "image_url", "image_url": {}}]}]}],
    ids=json.dumps,
)  # fmt: skip
async def test_a_local_strong_model_s_limits_are_known_before_the_draft(weak: ScriptedChatModel, fields: Json) -> None:
    big = ChatBackend(ScriptedChatModel([], default="Big."), Sampling(), Breaker("strong"))
    async with serving("http://127.0.0.1:9/v1", weak, big=big) as client:
        got = await client.ask(**fields)
        assert got.status == 400 and not weak.requests
        assert (await client.ask()).text == "Big." and len(weak.requests) == 1


async def test_a_prompt_beyond_the_strong_model_s_window_is_not_drafted_for(tmp_path: Path) -> None:
    async with strong() as small, strong() as big:
        path = recipe_file(tmp_path, small, big, window=300)
        async with served(path, "collab") as client:
            got = await client.ask("word " * 2000)
            assert got.status == 404  # "pair" is another server's
            each: list[Json] = [{}, {"max_tokens": 290}]
            for fields in each:
                text = QUESTION + (" and" * 300 if fields else " word" * 2000)
                got = await client.ask(text, model="tiny", **fields)
                assert got.status == 400 and got.json["error"]["code"] == "context_length_exceeded"
            assert not small.bodies and not big.bodies
            assert (await client.ask(QUESTION, model="tiny")).status == 200


async def test_a_draft_that_does_not_fit_beside_the_question_is_left_out(tmp_path: Path) -> None:
    async with strong() as small, strong() as big:
        path = recipe_file(tmp_path, small, big, window=300)
        async with served(path, "collab") as client:
            small.plan = [reply(" ".join(f"word{i}" for i in range(600)))]
            got = await client.ask(QUESTION, model="tiny", **DETAILS)
            assert got.status == 200 and got.json["cowest"]["degraded"] == "draft_no_room"
            assert big.bodies[0]["messages"][-1]["content"] == QUESTION


async def test_nothing_is_drafted_while_the_strong_model_is_left_alone(
    upstream: Upstream, weak: ScriptedChatModel
) -> None:
    settings = Settings(breaker_failures=1, breaker_cooldown_s=100)
    for policy, fields in (("error", {}), ("weak", {"tools": TOOLS}), ("weak", {"n": 2})):
        chosen = Settings(strong_down=policy, breaker_failures=1, breaker_cooldown_s=100)  # type: ignore[arg-type]
        async with serving(upstream.url, weak, chosen, max_attempts=1) as client:
            upstream.plan = [500]
            await client.ask(**fields)
            drafted = len(weak.requests)
            for stream in (False, True):
                got = await client.ask(stream=stream, **fields)
                assert got.status == 503 and got.json["error"]["code"] == "breaker_open" and got.headers["Retry-After"]
            assert len(weak.requests) == drafted
    async with serving(
        upstream.url, weak, settings, max_attempts=1
    ) as client:  # where the draft can be the answer, it is
        upstream.plan = [500]
        assert [(await client.ask()).text for _ in range(2)] == [DRAFT] * 2


async def test_in_a_tool_loop_the_draft_is_put_in_once(upstream: Upstream, weak: ScriptedChatModel) -> None:
    messages: list[Json] = [{"role": "user", "content": "May I?"}]
    seen: list[tuple[int, str, str]] = []
    async with serving(upstream.url, weak) as client:
        for turn in range(3):
            got = await client.ask(messages=messages, tools=TOOLS, stream=turn == 1, **DETAILS)
            told = got.chunks[-1]["cowest"] if turn == 1 else got.json["cowest"]
            assert got.status == 200 and told["degraded"] is None
            seen.append((json.dumps(upstream.bodies[-1]).count(DRAFT), told["mode"], told["route"]["reason"]))
            called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
            messages += [called, {"role": "tool", "tool_call_id": "c", "content": "62"}]
        assert seen == [(1, "both", "always"), (0, "strong_alone", "tool_loop"), (0, "strong_alone", "tool_loop")]
        assert len(weak.requests) == 1
        assert upstream.bodies[-1]["messages"][1:] == messages[1:5]
        messages += [{"role": "assistant", "content": "No."}, {"role": "user", "content": "And twice?"}]
        await client.ask(messages=messages, tools=TOOLS)
        assert len(weak.requests) == 2 and DRAFT in upstream.bodies[-1]["messages"][-1]["content"]
        assert await client.metric('cowest_routes_total{reason="tool_loop",who="strong"}') == 2


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}],
        [{"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, CALL]}],
        [{"role": "function", "name": "f", "content": "62"}],
    ],
)
async def test_a_tool_loop_is_known_by_any_of_its_turns(
    upstream: Upstream, weak: ScriptedChatModel, turns: list[Json]
) -> None:
    async with serving(upstream.url, weak) as client:
        assert (await client.ask(messages=[{"role": "user", "content": "May I?"}, *turns])).status == 200
        assert not weak.requests and len(upstream.bodies) == 1


async def recipe_limits(tmp_path: Path, answer: Json | None, **options: Any) -> tuple[Json, list[Json], Json]:
    """The strong model's request where a client leaves the length open, its cards, and the weak model's own request."""
    async with strong() as small, strong() as big:
        path = recipe_file(tmp_path, small, big)
        recipe = yaml.safe_load(path.read_text())
        recipe["evaluate"] = {} if answer is None else {"answer": answer}
        path.write_text(yaml.safe_dump(recipe))
        async with served(path, **options) as client:
            assert (await client.ask(QUESTION, model="tiny", max_tokens=700)).status == 200
            assert big.bodies[-1]["max_tokens"] == 700  # what the client names, counts
            assert (await client.ask(QUESTION, model="tiny", max_tokens=None)).status == 200
            assert (await client.ask(QUESTION, model="tiny.weak")).status == 200
            return big.bodies[-1], (await client.get("/v1/models")).json["data"], small.bodies[-1]


@pytest.mark.parametrize(
    ("answer", "options", "sent"),
    [
        (None, {}, None),
        ({"temperature": 0.5}, {}, None),
        ({"max_tokens": 40}, {}, 40),
        ({"max_tokens": 512}, {}, 512),  # named, so no hidden default
        (None, {"tokens": 77}, 77),
        ({"max_tokens": 40}, {"tokens": 77}, 77),
    ],
)
async def test_what_a_client_leaves_open_is_the_setting_or_the_model_s_own(
    tmp_path: Path, answer: Json | None, options: Json, sent: int | None
) -> None:
    body, cards, small = await recipe_limits(tmp_path, answer, **options)
    assert body.get("max_tokens") == sent and "max_completion_tokens" not in body
    told = {card["id"]: card["cowest"] for card in cards}
    assert told["tiny"] == told["tiny.collab"]
    assert len(told["tiny"].pop("examples")) == 4  # of a lab task: made up
    assert told["tiny"] == {
        "system": "collab",
        "route": "both",
        "answer_tokens": sent,
        "draft_tokens": 256,
        "max_answer_tokens": 32_768,
    }
    assert told["tiny.strong"]["answer_tokens"] == sent
    assert told["tiny.weak"]["answer_tokens"] == small["max_tokens"] == options.get("tokens", 256)


async def test_in_a_run_the_default_that_was_written_out_is_no_setting(tmp_path: Path) -> None:
    async with strong() as small, strong() as big:
        path = recipe_file(tmp_path, small, big)
        recipe = yaml.safe_load(path.read_text())
        for tokens, sent in ((512, None), (300, 300)):
            recipe["evaluate"]["answer"]["max_tokens"] = tokens
            path.write_text(yaml.safe_dump(recipe))
            async with served(tmp_path, "strong") as client:
                await client.ask(QUESTION, model="tiny")
                assert big.bodies[-1].get("max_tokens") == sent


class Roomy:
    """A local model of a window of 100 tokens; a word is one."""

    name = "roomy"

    def __init__(self) -> None:
        self.limits: list[int] = []

    def room(self, messages: Sequence[Message]) -> int | None:
        return 100 - sum(len(message.content.split()) for message in messages)

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        self.limits.append(sampling.max_tokens)
        return Completion(text="Big.")

    async def aclose(self) -> None: ...


async def test_a_local_model_s_own_limit_is_its_window(weak: ScriptedChatModel) -> None:
    model = Roomy()
    big = ChatBackend(model, Sampling(max_tokens=9), Breaker("strong"), most=80)
    async with serving("http://127.0.0.1:9/v1", weak, big=big) as client:
        await client.ask("May I?", model="pair.strong")
        await client.ask("May I?", model="pair.strong", max_tokens=5)
        await client.ask(" ".join(["word"] * 70), model="pair.strong")
        assert model.limits[:2] == [80, 5] and 10 < model.limits[2] < 30
        each: list[Json] = [{}, {"max_tokens": 99}]
        for fields in each:
            got = await client.ask("word " * (10 if fields else 120), **fields)
            assert got.status == 400 and got.json["error"]["code"] == "context_length_exceeded"
        assert not weak.requests


async def test_ids_have_no_slash_and_a_date(tmp_path: Path) -> None:
    async with strong() as small, strong() as big:
        path = recipe_file(tmp_path, small, big)
        recipe = yaml.safe_load(path.read_text())
        task = recipe.pop("task")
        path.write_text(yaml.safe_dump(recipe | {"tasks": {"med": task, "law": task | {"domain": "ethics"}}}))
        os.utime(path, (1_700_000_000, 1_700_000_000))
        async with served(path) as client:
            cards = (await client.get("/v1/models")).json["data"]
            ids = [card["id"] for card in cards]
            assert {"tiny.med", "tiny.med.collab", "tiny.law.weak"} <= {*ids} and not any("/" in id for id in ids)
            assert {card["created"] for card in cards} == {1_700_000_000}
            for old, new in (("tiny/med", "tiny.med"), ("tiny/law/strong", "tiny.law.strong")):
                assert (await client.ask(QUESTION, model=old)).json["model"] == new
                assert (await client.get(f"/v1/models/{old}")).json["id"] == new
        (tmp_path / "med").mkdir()
        (tmp_path / "med" / "results.json").write_text("{}")
        os.utime(tmp_path / "med" / "results.json", (1_710_000_000, 1_710_000_000))
        async with served(tmp_path, "strong") as client:  # a run is as old as its results
            assert (await client.get("/v1/models/tiny.med")).json["created"] == 1_710_000_000


@pytest.mark.parametrize("messages", [[{"role": "system", "content": "Hm."}], [{"role": "user", "content": " "}]])
async def test_a_row_without_a_question_is_the_client_s_to_mend(tmp_path: Path, messages: list[Json]) -> None:
    async with strong() as small, strong() as big:
        path = recipe_file(tmp_path, small, big)
        async with served(path, "best_of_k", settings=Settings(breaker_failures=1)) as client:
            for stream in (False, True):
                got = await client.ask(model="tiny", messages=messages, stream=stream)
                assert got.status == 400 and got.json["error"]["code"] == "no_question"
            assert not small.bodies and not big.bodies
            assert (await client.ask(QUESTION, model="tiny")).status == 200  # and nobody is left alone for it


@pytest.mark.slow
async def test_a_model_on_this_machine_may_fill_its_window(tmp_path: Path) -> None:
    from tests.helpers import save_tiny_model

    folder = save_tiny_model(tmp_path / "model")  # random weights: it seldom ends a text by itself
    described = Path(folder) / "config.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"max_position_embeddings": 700}))
    async with strong() as small:
        recipe = tiny_recipe("unused", "http://127.0.0.1:9/v1")
        recipe["weak"] = {"kind": "openai", "model": "small", "base_url": small.url, "api_key_env": None}
        recipe["strong"] = {"kind": "local", "model": folder, "device": "cpu"}
        del recipe["evaluate"]
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        async with served(path, "strong", "collab") as client:
            usage = (await client.ask(QUESTION, model="tiny.strong")).json["usage"]
            assert usage["completion_tokens"] == 700 - usage["prompt_tokens"]
            got = await client.ask("take Velmo " * 400, model="tiny")
            assert got.status == 400 and got.json["error"]["code"] == "context_length_exceeded" and not small.bodies
        async with served(path, "strong", tokens=60) as client:
            got = await client.ask(QUESTION, model="tiny")
            assert got.json["usage"]["completion_tokens"] == 60
            assert got.json["choices"][0]["finish_reason"] == "length"
