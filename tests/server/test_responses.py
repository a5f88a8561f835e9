"""``/v1/responses`` through OpenAI's own client: shapes, the order of events, what is refused, and that every rule holds."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter
from tests.server.loopback import DRAFT, Client, Upstream, chunk, reply, serving
from tests.server.test_openai_sdk import CALL, streams

from cowest.models.scripted import ScriptedChatModel
from cowest.server.auth import Keys

USAGE = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
FUNCTION: Any = {
    "type": "function",
    "name": "limit",
    "parameters": {"type": "object", "properties": {}},
    "strict": False,
}


async def post(served: Client, **body: Any) -> tuple[int, Any]:
    async with served.session.post(f"{served.url}/responses", json={"model": "pair", "input": "May I?"} | body) as got:
        return got.status, await got.json()


async def test_plain(client: AsyncOpenAI, upstream: Upstream) -> None:
    done = await client.responses.create(
        model="pair",
        input="May I?",
        instructions="Be brief.",
        temperature=0.2,
        max_output_tokens=9,
        metadata={"a": "b"},
    )
    Response.model_validate(done.model_dump(), strict=False)
    assert done.output_text == "No, it is not." and done.status == "completed" and done.model_dump()["store"] is False
    assert done.id == done._request_id and done.id.startswith("resp_") and done.metadata == {"a": "b"}
    assert done.usage is not None and done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens
    asked = upstream.bodies[0]
    assert (
        asked["messages"][0] == {"role": "system", "content": "Be brief."} and DRAFT in asked["messages"][-1]["content"]
    )
    assert asked["max_completion_tokens"] == 9 and asked["temperature"] == 0.2
    assert not {"input", "instructions", "metadata", "store", "max_tokens"} & asked.keys()


async def test_earlier_turns_calls_and_their_outputs(client: AsyncOpenAI, upstream: Upstream) -> None:
    first = {"role": "user", "content": [{"type": "input_text", "text": "Hm?"}]}
    said = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Yes.", "annotations": []}],
    }
    calls = [{"type": "function_call", "call_id": f"c{i}", "name": "limit", "arguments": "{}"} for i in range(2)]
    outputs = [{"type": "function_call_output", "call_id": f"c{i}", "output": f"{i} mg"} for i in range(2)]
    thought = {"type": "reasoning", "id": "rs_1", "summary": []}
    items: Any = [first, said, {"role": "user", "content": "May I?"}, thought, *calls, *outputs]
    done = await client.responses.create(
        model="pair", input=items, tools=[FUNCTION], tool_choice={"type": "function", "name": "limit"}
    )
    asked = upstream.bodies[0]
    assert [m["role"] for m in asked["messages"]] == ["user", "assistant", "user", "assistant", "tool", "tool"]
    assert [c["id"] for c in asked["messages"][3]["tool_calls"]] == ["c0", "c1"]
    assert asked["messages"][5] == {"role": "tool", "tool_call_id": "c1", "content": "1 mg"}
    assert asked["tools"][0]["function"]["name"] == asked["tool_choice"]["function"]["name"] == "limit"
    assert done.tools[0].type == "function"


async def test_a_call(client: AsyncOpenAI, upstream: Upstream) -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    upstream.plan = [reply(choices=[{"index": 0, "message": message, "finish_reason": "tool_calls"}])]
    done = await client.responses.create(model="pair", input="May I?", tools=[FUNCTION])
    (call,) = done.output
    assert call.type == "function_call" and (call.name, call.call_id, call.status) == ("limit", "call_1", "completed")
    assert json.loads(call.arguments) == {"drug": "Velmo"}


async def test_a_schema(client: AsyncOpenAI, upstream: Upstream) -> None:
    class Verdict(BaseModel):
        safe: bool

    upstream.plan = [reply('{"safe": false}')]
    done = await client.responses.parse(model="pair", input="May I?", text_format=Verdict)
    assert done.output_parsed == Verdict(safe=False)
    form = upstream.bodies[0]["response_format"]
    assert form["type"] == "json_schema" and form["json_schema"]["name"] == "Verdict" and form["json_schema"]["strict"]


async def test_a_stream_of_thinking_text_and_a_call(client: AsyncOpenAI, upstream: Upstream, served: Client) -> None:
    piece = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "limit", "arguments": "{"}}
    rest = {"index": 0, "function": {"arguments": "}"}}
    chunks = [
        chunk({"role": "assistant", "reasoning_content": "Hm."}),
        chunk({"content": "No"}),
        chunk({"content": "!"}),
    ]
    calls = [chunk({"tool_calls": [piece]}), chunk({"tool_calls": [rest]}), chunk({}, "tool_calls")]
    told = streams(*chunks, *calls, chunk({}, choices=[], usage=USAGE))
    upstream.plan = [told, told]
    body: Any = {"model": "pair", "input": "May I?", "stream": True, "cowest": {"early_draft": True, "details": True}}
    async with served.session.post(f"{served.url}/responses", json=body) as got:
        parts = [part.split("\n") for part in (await got.text()).split("\n\n") if part]
    found = [json.loads(data[6:]) for _, data in parts]
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert [name for name, _ in parts] == [f"event: {event['type']}" for event in found]
    kinds = [event["type"].removeprefix("response.") for event in found]
    item = ["output_item.added", "content_part.added"]
    close = ["content_part.done", "output_item.done"]
    call = [
        "output_item.added",
        *["function_call_arguments.delta"] * 2,
        "function_call_arguments.done",
        "output_item.done",
    ]
    assert kinds == [
        "created", "in_progress", "cowest.draft", *item, "reasoning_text.delta", "reasoning_text.done", *close,
        *item, "output_text.delta", "output_text.delta", "output_text.done", *close, *call, "completed",
    ]  # fmt: skip
    for event in found:
        if event["type"] != "cowest.draft":
            EVENT.validate_python(event)
    assert found[2]["draft"] == DRAFT and found[-1]["response"]["cowest"]["mode"] == "both"
    async with client.responses.stream(model="pair", input="May I?") as stream:  # the SDK puts it together again
        done = await stream.get_final_response()
    assert done.output_text == "No!" and [i.type for i in done.output] == ["reasoning", "message", "function_call"]
    assert done.usage is not None and done.usage.output_tokens > 2


async def test_what_is_cut_off_is_incomplete(client: AsyncOpenAI, upstream: Upstream) -> None:
    upstream.plan = [streams(chunk({"content": "No"}), chunk({}, "length"))]
    events = [event async for event in await client.responses.create(model="pair", input="Hm?", stream=True)]
    assert events[-1].type == "response.incomplete"
    details = events[-1].response.incomplete_details
    assert details is not None and details.reason == "max_output_tokens" and events[-1].response.output_text == "No"


async def test_a_stream_that_breaks_off_fails(client: AsyncOpenAI, upstream: Upstream) -> None:
    upstream.plan = [streams(chunk({"content": "No"}), done=False)]
    events = [event async for event in await client.responses.create(model="pair", input="Hm?", stream=True)]
    assert events[-1].type == "response.failed" and events[-1].response.error is not None


async def test_logprobs(client: AsyncOpenAI, upstream: Upstream) -> None:
    top = {"token": "No", "logprob": -0.1, "bytes": [78, 111]}
    scores = {"content": [{**top, "top_logprobs": [top]}]}
    message = {"role": "assistant", "content": "No"}
    upstream.plan = [reply(choices=[{"index": 0, "message": message, "finish_reason": "stop", "logprobs": scores}])]
    done = await client.responses.create(
        model="pair", input="Hm?", top_logprobs=1, include=["message.output_text.logprobs"]
    )
    (item,) = done.output
    assert item.type == "message" and item.content[0].type == "output_text" and item.content[0].logprobs is not None
    assert item.content[0].logprobs[0].top_logprobs[0].logprob == -0.1
    assert upstream.bodies[0]["logprobs"] is True and upstream.bodies[0]["top_logprobs"] == 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"n": 2}, "n"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": ["x"]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input[0].content[0].file_id"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "u"}]}]}, "input[0].content[0].file_url"),
        ({"input": [{"role": "user", "content": [{"type": "hologram"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"instructions": ["x"]}, "instructions"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "mcp"}}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format"),
        ({"messages": []}, "messages"),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_refused_in_words(
    served: Client, upstream: Upstream, body: dict[str, Any], param: str
) -> None:
    status, told = await post(served, **body)
    assert status == 400 and told["error"]["param"] == param and len(told["error"]["message"]) > 20
    assert not upstream.bodies


async def test_images_go_to_the_strong_model_and_a_note_to_the_weak_one(upstream: Upstream) -> None:
    weak = ScriptedChatModel([], default=DRAFT)
    url = "data:image/png;base64,AAAA"
    image = {"type": "input_image", "image_url": url, "detail": "low"}
    file = {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}
    text = {"type": "input_text", "text": "May I?"}
    async with serving(upstream.url, weak) as served:
        status, _ = await post(served, input=[{"role": "user", "content": [text, image, image, file]}])
    assert status == 200
    parts = upstream.bodies[0]["messages"][-1]["content"]
    assert parts[1] == {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
    assert parts[3] == {"type": "file", "file": {"file_data": file["file_data"], "filename": "a.pdf"}}
    assert "cannot see" not in parts[0]["text"]
    told = weak.requests[0].messages[-1].content
    assert "May I?" in told and "[2 images and 1 file attached here, which you cannot see" in told


async def test_the_rules_of_chat_hold(upstream: Upstream) -> None:
    def hide(text: str) -> str:
        return text.replace("Ann", "X")

    async with serving(upstream.url, keys=Keys(["k"]), hook=hide) as served:
        status, told = await post(served)
        assert status == 401 and told["error"]["code"] == "invalid_api_key"
        async with AsyncOpenAI(base_url=served.url, api_key="k") as client:
            done = await client.responses.create(model="pair", input="May Ann?", instructions="For Ann.")
            assert "Ann" not in json.dumps(upstream.bodies) and done.instructions == "For Ann."
            with pytest.raises(openai.NotFoundError, match=r"pair\.strong"):
                await client.responses.create(model="gpt", input="x")
        assert served.server.admission.inside == 0
