"""A strong model in this process: answers of a schema, calls of tools and log-probabilities, with real weights and real masks."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, Field
from tests.server.loopback import Client, serving

pytest.importorskip("torch")
pytest.importorskip("llguidance")

from cowest.assembly.places import model_path
from cowest.models.local import LocalChatModel
from cowest.server.breaker import Breaker
from cowest.server.chat_backend import ChatBackend
from cowest.types import ModelRef, Sampling

ASKED: Any = [{"role": "user", "content": "May a patient with Kasti take 45 mg of Velmo?"}]
DOSE: Any = {
    "type": "function",
    "function": {
        "name": "dose",
        "description": "What is safe",
        "parameters": {
            "type": "object",
            "properties": {"drug": {"enum": ["Velmo", "Kasti"]}, "mg": {"type": "integer", "maximum": 99}},
            "required": ["drug", "mg"],
            "additionalProperties": False,
        },
    },
}
STOP: Any = {"type": "function", "function": {"name": "stop"}}


IMAGE: Any = {"type": "image_url", "image_url": {"url": "x"}}


def form(schema: object) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "v", "schema": schema}}}


class Verdict(BaseModel):
    answer: Literal["yes", "no"]
    mg: int = Field(ge=0, le=99)
    sure: list[bool] = Field(max_length=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalChatModel]:
    """Random weights with a wide window: whatever is right in their answers, the grammar made so."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("random")
    tokenizer = AutoTokenizer.from_pretrained(model_path("lab:strong"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    ends: dict[str, Any] = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=4096, **sizes, **ends)
    ).save_pretrained(folder)
    yield LocalChatModel(ModelRef(base=str(folder)), device="cpu", batch_size=8)


@pytest.fixture
async def served(model: LocalChatModel) -> AsyncIterator[Client]:
    big = ChatBackend(model, Sampling(max_tokens=96), Breaker("strong"))
    big.aclose = lambda: _nothing()  # type: ignore[method-assign]
    async with serving("http://127.0.0.1:9/v1", big=big) as client:
        yield client


async def _nothing() -> None: ...


@pytest.fixture
async def client(served: Client) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("temperature", [0.0, 2.0])
async def test_a_schema_is_kept_by_a_model_that_never_learned_json(client: AsyncOpenAI, temperature: float) -> None:
    done = await client.chat.completions.parse(
        model="pair", messages=ASKED, response_format=Verdict, temperature=temperature, seed=1, n=3
    )
    assert [c.finish_reason for c in done.choices] == ["stop"] * 3
    assert all(isinstance(c.message.parsed, Verdict) for c in done.choices)


async def test_rows_of_one_batch_each_keep_their_own(client: AsyncOpenAI, model: LocalChatModel) -> None:
    import asyncio

    create = client.chat.completions.create
    plain = (await create(model="pair.strong", messages=ASKED)).choices[0].message.content
    first, second, third = await asyncio.gather(
        create(model="pair.strong", messages=ASKED),
        create(model="pair.strong", messages=ASKED, **form(Verdict.model_json_schema())),
        create(model="pair.strong", messages=ASKED, tools=[DOSE], tool_choice="required"),
    )
    assert first.choices[0].message.content == plain
    Verdict.model_validate_json(second.choices[0].message.content or "")
    assert third.choices[0].message.tool_calls


async def test_json_of_any_shape_streams_as_it_is_written(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="pair", messages=ASKED, **form(Verdict.model_json_schema()), stream=True
    )
    pieces = [c.delta.content async for part in stream for c in part.choices if c.delta.content]
    assert len(pieces) > 5
    Verdict.model_validate_json("".join(pieces))
    cut = await client.chat.completions.create(
        model="pair", messages=ASKED, response_format={"type": "json_object"}, max_tokens=3
    )
    assert cut.choices[0].finish_reason == "length" and (cut.choices[0].message.content or "").startswith("{")


def call_of(done: ChatCompletion) -> tuple[str, Any]:
    (call, *_) = done.choices[0].message.tool_calls or []
    assert call.type == "function" and call.id.startswith("call_")
    return call.function.name, json.loads(call.function.arguments)


async def test_tools(client: AsyncOpenAI) -> None:
    create = client.chat.completions.create
    done = await create(
        model="pair", messages=ASKED, tools=[DOSE, STOP], tool_choice="required", parallel_tool_calls=False
    )
    assert done.choices[0].finish_reason == "tool_calls" and done.choices[0].message.content is None
    assert call_of(done)[0] in ("dose", "stop") and len(done.choices[0].message.tool_calls or []) == 1
    named: Any = {"type": "function", "function": {"name": "dose"}}
    chosen = await create(model="pair", messages=ASKED, tools=[DOSE, STOP], tool_choice=named)
    name, arguments = call_of(chosen)
    assert name == "dose" and arguments["drug"] in ("Velmo", "Kasti") and arguments["mg"] <= 99
    turn: Any = chosen.choices[0].message.model_dump(exclude_none=True)
    result: Any = {"role": "tool", "tool_call_id": turn["tool_calls"][0]["id"], "content": "62 mg"}
    after = await create(model="pair", messages=[*ASKED, turn, result], tools=[DOSE], tool_choice="none")
    assert after.choices[0].message.content and not after.choices[0].message.tool_calls
    both = await create(
        model="pair", messages=ASKED, tools=[DOSE], tool_choice="required", **form(Verdict.model_json_schema())
    )
    assert call_of(both)[0] == "dose", "a call is forced, and the schema is of a text that is not written"
    free = await create(model="pair", messages=ASKED, tools=[DOSE])
    assert free.choices[0].message.content or free.choices[0].message.tool_calls


async def test_tools_in_a_stream_and_in_a_response(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="pair", messages=ASKED, tools=[DOSE], tool_choice="required", stream=True
    )
    calls = [c.delta.tool_calls async for part in stream for c in part.choices if c.delta.tool_calls]
    assert calls[0][0].function is not None and calls[0][0].function.name == "dose"
    flat: Any = {"type": "function", "strict": True, **DOSE["function"]}
    done = await client.responses.create(model="pair", input="May I?", tools=[flat], tool_choice="required")
    assert done.output[0].type == "function_call" and json.loads(done.output[0].arguments)["mg"] <= 99


async def test_logprobs(client: AsyncOpenAI) -> None:
    done = await client.chat.completions.create(
        model="pair", messages=ASKED, logprobs=True, top_logprobs=2, stop="\n", temperature=0
    )
    scores, text = done.choices[0].logprobs, done.choices[0].message.content
    assert scores is not None and scores.content is not None and text
    assert "".join(entry.token for entry in scores.content).startswith(text)
    for entry in scores.content:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 2 and bytes(entry.bytes or []).decode() == entry.token
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob)  # greedy: the likeliest was chosen
    legacy = await client.completions.create(model="pair.strong", prompt="May I?", logprobs=1)
    told = legacy.choices[0].logprobs
    assert told is not None and "".join(told.tokens or []) == legacy.choices[0].text
    nothing = await client.chat.completions.create(model="pair", messages=ASKED)
    assert nothing.choices[0].logprobs is None


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        (form({"$ref": "#/nowhere"}), "response_format", "nowhere"),
        (form(False), "response_format.json_schema.schema", "object"),
        ({"response_format": {"type": "xml"}}, "response_format", "json_object"),
        ({"tools": [DOSE], "response_format": {"type": "json_object"}}, "response_format", "one of them"),
        ({"tools": [DOSE], "tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice", "one of the tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "function"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "nothing"}}}]}, "tools", "nothing"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs"),
        ({"logprobs": True, "top_logprobs": 99}, "top_logprobs", "20"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0]", "image_url"),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_refused_in_words(client: AsyncOpenAI, fields: Any, param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        await client.chat.completions.create(**{"model": "pair", "messages": ASKED} | fields)
    assert refused.value.param == param
