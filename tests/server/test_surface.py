"""What a client sees when all is well."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from tests.server.loopback import DRAFT, FRAMES, SECRET, Client, Upstream, chunk, events, reply, serving, strong

from cowest.models.scripted import ScriptedChatModel
from cowest.models.turns import in_conversation
from cowest.server.settings import Settings
from cowest.types import Example, Message


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with strong() as upstream:
        yield upstream


@pytest.fixture
def weak() -> ScriptedChatModel:
    return ScriptedChatModel([], default=DRAFT)


@pytest.fixture
async def client(upstream: Upstream, weak: ScriptedChatModel) -> AsyncIterator[Client]:
    async with serving(upstream.url, weak) as client:
        yield client


def asked(text: str = "May I?") -> Example:
    return Example(id="x", input=text, references=("",))


async def test_the_weak_model_drafts_and_the_strong_one_gets_query_and_draft(
    client: Client, upstream: Upstream, weak: ScriptedChatModel
) -> None:
    got = await client.ask()
    assert got.status == 200 and got.text == "No, it is not."
    assert weak.requests[0].messages == FRAMES.draft(asked())
    assert weak.requests[0].sampling.max_tokens == 64
    refined = FRAMES.refine(asked(), DRAFT)[0].content
    assert upstream.bodies == [
        {"model": "big", "messages": [{"role": "user", "content": refined}], "max_tokens": 512, "temperature": 0.0}
    ]
    assert upstream.headers[0]["Authorization"] == f"Bearer {SECRET}"


async def test_usage_counts_both_and_keeps_what_else_is_there(client: Client) -> None:
    got = (await client.ask()).json
    prompt = len(FRAMES.draft(asked())[0].content.split())
    words = len(DRAFT.split())
    assert got["usage"] == {
        "prompt_tokens": 100 + prompt,
        "completion_tokens": 7 + words,
        "total_tokens": 107 + prompt + words,
        "prompt_tokens_details": {"x": 1},
    }
    assert got["model"] == "pair" and got["id"].startswith("chatcmpl-") and "cowest" not in got


async def test_each_model_alone(client: Client, upstream: Upstream, weak: ScriptedChatModel) -> None:
    assert (await client.ask(model="pair.weak")).text == DRAFT
    assert not upstream.bodies and len(weak.requests) == 1
    got = await client.ask(model="pair.strong")
    assert got.json["model"] == "pair.strong" and got.json["usage"]["prompt_tokens"] == 100
    assert upstream.bodies[0]["messages"] == [{"role": "user", "content": FRAMES.solo(asked())[0].content}]
    assert len(weak.requests) == 1


async def test_models_are_listed(client: Client) -> None:
    listed = (await client.get("/v1/models")).json
    assert [card["id"] for card in listed["data"]] == ["pair", "pair.weak", "pair.strong"]
    assert not [card for card in listed["data"] if "/" in card["id"]]
    assert (await client.get("/v1/models/pair/weak")).json["id"] == "pair.weak"  # as the id was written before
    old = await client.ask(model="pair/strong")
    assert old.status == 200 and old.json["model"] == "pair.strong"
    assert (await client.get("/v1/models/pair.weak")).json["id"] == "pair.weak"
    missing = await client.ask(model="gpt-4")
    assert missing.status == 404 and missing.json["error"]["code"] == "model_not_found"


async def test_fields_that_are_not_ours_reach_the_strong_model_unchanged(client: Client, upstream: Upstream) -> None:
    fields: dict[str, Any] = {
        "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "x": [1, 2.5, None]}}}
        ],
        "tool_choice": "auto",
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"é": "\u2028"}}},
        "stop": ["\n\n", "END"],
        "seed": 2**53 + 1,
        "n": 2,
        "temperature": 0.3,
        "top_p": 0.5,
        "max_completion_tokens": 33,
        "logit_bias": {"50256": -100},
        "future_field": {"deep": [{"er": 1e-9}]},
    }
    upstream.plan = [reply(choices=[{"index": i, "message": {"role": "assistant", "content": str(i)}} for i in (0, 1)])]
    got = await client.ask(**fields)
    assert [c["message"]["content"] for c in got.json["choices"]] == ["0", "1"]
    sent = upstream.bodies[0]
    assert {key: sent[key] for key in fields} == fields
    assert sent.keys() == fields.keys() | {"model", "messages"}  # the client's limit of tokens is the only one


async def test_tool_calls_come_back_unchanged(client: Client, upstream: Upstream) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": None, "tool_calls": [call]},
        "finish_reason": "tool_calls",
    }
    upstream.plan = [reply(choices=[choice], system_fingerprint="fp")]
    got = (await client.ask(tools=[{"type": "function"}])).json
    assert got["choices"] == [choice] and got["system_fingerprint"] == "fp"


async def test_a_conversation_keeps_its_other_turns(
    client: Client, upstream: Upstream, weak: ScriptedChatModel
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "62"},
        {"role": "assistant", "content": "A doctor."},
        {"role": "user", "content": "May I?", "name": "ann"},
        {"role": "assistant", "content": "Well,"},
    ]
    await client.ask(messages=messages)
    assert weak.requests[0].messages == (
        Message(role="system", content="Be brief."),
        Message(role="user", content="Who are you?"),
        Message(role="assistant", content="A doctor."),
        *FRAMES.draft(asked()),
    )
    sent = upstream.bodies[0]["messages"]
    refined = {"role": "user", "content": FRAMES.refine(asked(), DRAFT)[0].content, "name": "ann"}
    assert sent == [*messages[:5], refined, messages[6]]


async def test_both_models_are_asked_as_a_run_asks_them(upstream: Upstream, weak: ScriptedChatModel) -> None:
    class WithSystem:
        """Frames that have a system message of their own."""

        def draft(self, example: Example) -> tuple[Message, ...]:
            return in_conversation(example.turns, (Message(role="system", content="Draft."), *plain(example)))

        def solo(self, example: Example) -> tuple[Message, ...]:
            return in_conversation(example.turns, (Message(role="system", content="Answer."), *plain(example)))

        def refine(self, example: Example, draft: str) -> tuple[Message, ...]:
            return in_conversation(example.turns, (Message(role="system", content=f"Refine {draft}."), *plain(example)))

    def plain(example: Example) -> tuple[Message, ...]:
        return (Message(role="user", content=f"Q: {example.input}"),)

    turns = (
        Message(role="system", content="Be brief."),
        Message(role="user", content="I have Kasti."),
        Message(role="assistant", content="I see."),
    )
    question = asked().model_copy(update={"turns": turns})
    raw = [{"role": m.role, "content": m.content} for m in turns]
    for frames in (FRAMES, WithSystem()):
        async with serving(upstream.url, weak, frames=frames) as client:
            await client.ask(messages=[*raw, {"role": "user", "content": "May I?"}])
        assert weak.requests[-1].messages == frames.draft(question)
        offline = [{"role": m.role, "content": m.content} for m in frames.refine(question, DRAFT)]
        assert upstream.bodies[-1]["messages"] == offline and offline[1:3] == raw[1:]
    async with serving(
        upstream.url, weak, frames=WithSystem()
    ) as client:  # what an example cannot hold stays as it came
        named = raw[1] | {"name": "ann"}
        await client.ask(messages=[raw[0], named, raw[2], {"role": "user", "content": "May I?"}])
    system = {"role": "system", "content": f"Be brief.\n\nRefine {DRAFT}."}
    assert upstream.bodies[-1]["messages"] == [system, named, raw[2], {"role": "user", "content": "Q: May I?"}]


async def test_images_stay_and_only_the_text_is_framed(client: Client, upstream: Upstream) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    parts = [image, {"type": "text", "text": "May"}, {"type": "text", "text": "I?"}, image]
    await client.ask(messages=[{"role": "user", "content": parts}])
    refined = FRAMES.refine(asked("May\nI?"), DRAFT)[0].content
    assert upstream.bodies[0]["messages"][0]["content"] == [image, {"type": "text", "text": refined}, image]


async def test_without_a_question_the_strong_model_answers_alone(
    client: Client, upstream: Upstream, weak: ScriptedChatModel
) -> None:
    messages = [{"role": "system", "content": "Say hello."}]
    got = await client.ask(messages=messages, cowest={"details": True})
    assert got.json["cowest"]["degraded"] == "no_question" and got.json["cowest"]["mode"] == "strong_alone"
    assert upstream.bodies[0]["messages"] == messages and not weak.requests


@pytest.mark.parametrize("how", ["field", "header"])
async def test_details_on_request(client: Client, upstream: Upstream, how: str) -> None:
    if how == "field":
        got = await client.ask(cowest={"details": True})
    else:
        got = await client.ask(headers={"X-Cowest-Details": "1"})
    told = got.json["cowest"]
    assert told["draft"] == DRAFT and told["mode"] == "both" and told["degraded"] is None
    assert told["usage"]["strong"] == {"prompt_tokens": 100, "completion_tokens": 7}
    assert told["usage"]["weak"]["completion_tokens"] == len(DRAFT.split())
    assert told["timings_ms"]["total"] >= told["timings_ms"]["draft"] >= 0
    assert "cowest" not in upstream.bodies[0]


async def test_context_and_choices_make_the_task_s_own_prompts(client: Client, upstream: Upstream) -> None:
    await client.ask(cowest={"context": "Velmo: 62 mg.", "choices": ["yes", "no"]})
    whole = Example(id="x", input="May I?", context="Velmo: 62 mg.", choices=("yes", "no"), references=("",))
    assert upstream.bodies[0]["messages"][0]["content"] == FRAMES.refine(whole, DRAFT)[0].content
    wrong = await client.ask(cowest={"detials": True})
    assert wrong.status == 400 and wrong.json["error"]["param"] == "cowest.detials"


async def test_a_stream_passes_on_what_arrives_when_it_arrives(client: Client, upstream: Upstream) -> None:
    go_on = asyncio.Event()

    async def slowly(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(events(chunk({"role": "assistant", "content": "No"}, extra=1), done=False))
        await go_on.wait()
        usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}
        rest = [chunk({"content": "!"}), chunk({}, "stop"), chunk({}, choices=[], usage=usage)]
        await response.write(events(*rest))
        return response

    upstream.plan = [slowly]
    body = {"model": "pair", "stream": True, "stream_options": {"include_usage": True}, "cowest": {"details": True}}
    body["messages"] = [{"role": "user", "content": "May I?"}]
    async with client.session.post(f"{client.url}/chat/completions", json=body) as got:
        first = json.loads((await got.content.readuntil(b"\n\n"))[6:])
        assert first["choices"][0]["delta"]["content"] == "No"  # and the upstream has not sent the rest
        go_on.set()
        rest = (await got.read()).decode().split("\n\n")
    assert rest[-2:] == ["data: [DONE]", ""]
    chunks = [first, *(json.loads(part[6:]) for part in rest[:-2])]
    assert {c["model"] for c in chunks} == {"pair"} and len({c["id"] for c in chunks}) == 1
    assert first["extra"] == 1 and upstream.bodies[0]["stream"] is True
    weak = chunks[-1]["cowest"]["usage"]["weak"]
    assert chunks[-2]["usage"]["completion_tokens"] == 2 + weak["completion_tokens"]
    assert chunks[-1]["choices"] == [] and chunks[-1]["cowest"]["draft"] == DRAFT


async def test_a_server_that_does_not_stream_is_streamed(client: Client) -> None:
    got = await client.ask(stream=True)
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in got.chunks) == "No, it is not."
    assert got.chunks[-1]["choices"][0]["finish_reason"] == "stop"


async def test_the_weak_model_alone_streams_stops_and_gives_several(client: Client) -> None:
    streamed = await client.ask(model="pair.weak", stream=True, stream_options={"include_usage": True})
    assert streamed.chunks[0]["choices"][0]["delta"]["content"] == DRAFT and streamed.chunks[-1]["usage"]
    stopped = await client.ask(model="pair.weak", stop=" Answer:", n=2)
    assert [c["message"]["content"] for c in stopped.json["choices"]] == ["Velmo is safe up to 62 mg."] * 2
    refused = await client.ask(model="pair.weak", tools=[{"type": "function"}])
    assert refused.status == 400 and refused.json["error"]["param"] == "tools"


async def test_a_rejected_default_of_ours_is_learned_from(client: Client, upstream: Upstream) -> None:
    async def no_temperature(request: web.Request) -> web.StreamResponse:
        error = {
            "message": "Unsupported parameter: 'temperature'",
            "param": "temperature",
            "code": "unsupported_parameter",
        }
        return web.json_response({"error": error}, status=400)

    upstream.plan = [no_temperature]
    assert (await client.ask()).status == 200
    assert "temperature" in upstream.bodies[0] and "temperature" not in upstream.bodies[1]
    upstream.plan = [no_temperature]
    rejected = await client.ask(temperature=0.7)  # the client's own is not ours to drop
    assert rejected.status == 400 and rejected.json["error"]["param"] == "temperature"


@pytest.mark.parametrize(("effort", "sampled"), [("none", True), ("low", False)])
async def test_a_strong_model_that_is_told_not_to_think_is_sent_our_sampling(effort: str, sampled: bool) -> None:
    async with (
        strong() as upstream,
        serving(upstream.url, model="gpt-6-sol", extra={"reasoning_effort": effort}) as client,
    ):
        assert (await client.ask()).status == 200
    sent = upstream.bodies[0]
    assert ("temperature" in sent) is sampled and sent["max_completion_tokens"] == 512
    assert sent["reasoning_effort"] == effort


async def test_every_request_leaves_one_log_line_without_texts(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "cowest.server"):
        got = await client.ask("a very private question")
    lines = [r for r in caplog.records if r.message == "request"]
    told = vars(lines[0])["fields"]
    assert len(lines) == 1 and told["model"] == "pair" and told["status"] == 200 and told["mode"] == "both"
    assert told["id"] == got.json["id"] == got.headers["X-Request-Id"]
    assert "private" not in caplog.text and SECRET not in caplog.text and "Velmo" not in caplog.text


async def test_metrics_count_answers_and_tokens(client: Client) -> None:
    await client.ask()
    assert await client.metric('cowest_answers_total{mode="both",model="pair"}') == 1
    assert await client.metric('cowest_tokens_total{kind="completion",side="strong"}') == 7
    assert await client.metric('cowest_requests_total{model="pair",status="200"}') == 1
    assert await client.metric('cowest_strong_attempts_total{outcome="ok"}') == 1


async def test_a_default_settings_object_keeps_no_browser_header(client: Client) -> None:
    got = await client.ask(headers={"Origin": "https://evil.example"})
    assert not [name for name in got.headers if name.lower().startswith("access-control")]
    assert Settings().cors_origin is None


@pytest.mark.parametrize("left_out", [{}, {"created": None, "object": ""}, {"created": "yesterday", "object": 3}])
async def test_an_answer_has_its_time_and_kind_whatever_the_endpoint_leaves_out(
    client: Client, upstream: Upstream, left_out: dict[str, object]
) -> None:
    bare = {key: value for key, value in reply().items() if key not in ("created", "object", "id", "model")}
    upstream.plan = [bare | left_out, bare | left_out]
    whole = (await client.ask()).json
    assert whole["object"] == "chat.completion" and whole["created"] > 1_700_000_000 and "/" not in whole["id"]
    chunks = (await client.ask(stream=True)).chunks
    assert len(chunks) > 1 and {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert len({c["created"] for c in chunks}) == 1 and chunks[0]["created"] > 1_700_000_000
