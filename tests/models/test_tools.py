"""A tool of one text: an endpoint's tool calls, and the line of text that stands for one everywhere else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import question
from tests.models.scripted_endpoint import endpoint, reply, step
from tests.systems.scripted import asked, saying

from cowest.ledger.ledger import call_of
from cowest.models.dialect import Dialect, Quirks, dialect_of
from cowest.models.openai import OpenAIChatModel
from cowest.models.tools import call_text, find_call, spoken, tool_turns
from cowest.models.wire import request_body
from cowest.systems.interactions.consult import Consult
from cowest.systems.interactions.frames import ASK, DefaultInteractionFrames
from cowest.types import Message, Sampling, Tooled

TURNS = DefaultInteractionFrames("Answer yes or no.")
MAY, MAY_NOT = Tooled(max_tokens=9, tool=ASK), Tooled(max_tokens=9, tool=ASK, may_call=False)
SAID = (
    Message(role="user", content="Is it?"),
    Message(role="assistant", content="ASK: How much?"),
    Message(role="user", content="9 mg."),
)


def called(arguments: object, content: str | None = None) -> dict[str, object]:
    call = {"id": "c1", "type": "function", "function": {"name": "ask", "arguments": arguments}}
    message = {"role": "assistant", "content": content, "tool_calls": [call]}
    return reply() | {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}


def test_a_request_offers_the_tool_and_tells_calls_as_calls() -> None:
    body = request_body("m", SAID, MAY)
    assert body["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "ask",
                "description": ASK.about,
                "parameters": {
                    "type": "object",
                    "properties": {"question": {"type": "string"}},
                    "required": ["question"],
                    "additionalProperties": False,
                },
            },
        }
    ]
    call = {
        "id": "call00001",
        "type": "function",
        "function": {"name": "ask", "arguments": '{"question": "How much?"}'},
    }
    assert body["messages"] == [
        {"role": "user", "content": "Is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call00001", "content": "9 mg."},
    ]
    assert "tool_choice" not in body and request_body("m", SAID, MAY_NOT)["tool_choice"] == "none"


def test_without_tool_calls_it_is_plain_turns() -> None:
    plain = request_body("m", SAID, Sampling(max_tokens=9))
    assert request_body("m", SAID, MAY, dialect_of("m", Quirks(tools="omit"))) == plain
    assert request_body("m", SAID, MAY, Dialect(tools=False)) == plain
    assert plain["messages"] == [{"role": m.role, "content": m.content} for m in SAID]


def test_an_answer_is_no_call_and_keeps_its_role() -> None:
    answered = (*SAID[:1], Message(role="assistant", content="No.\nASK: really?"), *SAID[2:])
    assert tool_turns(answered, ASK) == [{"role": m.role, "content": m.content} for m in answered]


def test_a_tool_makes_another_request_and_no_tool_the_same_as_ever() -> None:
    keys = {call_of("m", SAID, s, {}, None).key for s in (MAY, MAY_NOT, Sampling(max_tokens=9))}
    assert len(keys) == 3
    assert '"sampling":{"max_tokens":9}' in call_of("m", SAID, Sampling(max_tokens=9), {}, None).request


@pytest.mark.parametrize(
    ("arguments", "content", "text"),
    [
        ('{"question": "How\\n much?"}', None, "ASK: How much?"),
        ({"question": "How much?"}, None, "ASK: How much?"),
        ('{"q": "How much?"}', "Hm. ", "Hm.\nASK: How much?"),
        ('"How much?"', "", "ASK: How much?"),
        ("How much?", None, "ASK: How much?"),
        ('{"question": 7, "other": {}}', "Answer: no", "Answer: no"),
        (None, "Answer: no", "Answer: no"),
    ],
)
def test_a_call_is_read_whatever_its_arguments_look_like(arguments: object, content: str | None, text: str) -> None:
    message = called(arguments, content)["choices"][0]["message"]  # type: ignore[index]
    assert spoken(message, ASK)["content"] == text


@given(st.text(max_size=60))
def test_what_is_called_is_found_again_on_one_line(said: str) -> None:
    text, found = call_text(ASK, said), find_call(ASK, call_text(ASK, said))
    plain = " ".join(said.split())
    assert found is None or (found[0] == "" and found[1].strip(" *_`") in plain and "\n" not in text.split("\n")[0])
    if plain.strip("*_` ").isalnum():
        assert found == ("", plain.strip("*_` "))


def model(url: str, **more: object) -> OpenAIChatModel:
    return OpenAIChatModel(base_url=url, model="m", api_key=None, backoff_s=0.01, **more)  # type: ignore[arg-type]


async def test_a_strong_model_with_tool_calls_asks_by_one_and_answers() -> None:
    weak = saying("From 9 mg on it is not.")
    async with endpoint(step(called('{"question": "How much?"}')), step(reply("Answer: no"))) as served:
        strong = model(served.url)
        done = await Consult(weak, strong, TURNS, Sampling(), Sampling(), 1, "consult").answer(question())
        await strong.aclose()
    assert (done.text, done.error, done.usage.calls) == ("Answer: no", None, 3)
    assert asked(weak) == [TURNS.consulted(question(), "How much?")]
    first, second = served.bodies
    assert "tools" in first and "tool_choice" not in first and second["tool_choice"] == "none"
    assert [m["role"] for m in second["messages"]] == ["user", "assistant", "tool"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "registry/library/small:2b does not support tools"),
        (400, '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'),
        (404, "No endpoints found that support tool use"),
        (500, "tools param requires --jinja flag"),
        (400, "tools: not supported"),
    ],
)
async def test_an_endpoint_without_tool_calls_is_asked_in_plain_text(status: int, message: str) -> None:
    refused = step({"error": {"message": message}}, status)
    async with endpoint(refused, step(reply("ASK: How much?")), step(reply("Answer: no"))) as served:
        strong = model(served.url)
        done = await Consult(saying("9 mg."), strong, TURNS, Sampling(), Sampling(), 2, "c").answer(question())
        await strong.aclose()
    assert (done.text, done.error) == ("Answer: no", None)
    assert ["tools" in body for body in served.bodies] == [True, False, False]
    assert [m["role"] for m in served.bodies[2]["messages"]] == ["user", "assistant", "user"]  # type: ignore[attr-defined]


async def test_another_fault_of_such_a_request_is_told_as_it_is() -> None:
    async with endpoint(step({"error": {"message": "tools: at most 128 are allowed"}}, 400)) as served:
        strong = model(served.url)
        done = await Consult(saying("x"), strong, TURNS, Sampling(), Sampling(), 2, "c").answer(question())
        await strong.aclose()
    assert done.error is not None and done.error.startswith("http_400: consult: ") and len(served.bodies) == 1


async def test_a_streamed_call_is_put_together() -> None:
    def event(delta: object, finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return f"data: {json.dumps({'id': 'x', 'choices': [choice]})}\n\n"

    pieces = ({"name": "ask", "arguments": '{"quest'}, {"arguments": 'ion": "How much?"}'})
    calls = [event({"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": f}]}) for f in pieces]
    body = "".join([*calls, event({}, "tool_calls"), "data: [DONE]\n\n"])
    async with endpoint(step(body, kind="text/event-stream")) as served:
        strong = model(served.url, stream=True)
        done = await strong.generate(SAID[:1], MAY)
        await strong.aclose()
    assert (done.text, done.finish_reason) == ("ASK: How much?", "tool_calls")


async def test_a_call_that_nobody_offered_is_no_answer_as_before() -> None:
    async with endpoint(step(called('{"question": "x"}'))) as served:
        strong = model(served.url, max_attempts=1)
        with pytest.raises(Exception, match="answered no text"):
            await strong.generate(SAID[:1], Sampling())
        await strong.aclose()
