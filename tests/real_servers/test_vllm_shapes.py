"""vLLM's answers, replayed. No GPU here, so its shapes are literal, as its source documents them.

Read in vllm-project/vllm: ``vllm/entrypoints/openai/chat_completion/protocol.py`` at 002032ee (messages, choices, streams) and
``vllm/entrypoints/openai/engine/protocol.py`` at 040a2cc2 (errors, usage, response formats).
"""

from __future__ import annotations

import json

import pytest
from tests.models.scripted_endpoint import Endpoint, Step, endpoint, step

from cowest.errors import ModelCallError
from cowest.models.answer import HiddenAnswerError, visible
from cowest.models.openai import OpenAIChatModel
from cowest.types import Completion, Message, Sampling

ASK = (Message(role="system", content="Be brief."), Message(role="user", content="Is it safe?"))


def message(content: str | None, **more: object) -> dict[str, object]:
    """A message with every field that vLLM writes; ``tool_calls`` is left out where it is empty."""
    fields = {"refusal": None, "annotations": None, "audio": None, "function_call": None, "reasoning": None}
    return {"role": "assistant", "content": content} | fields | more


def completion(*contents: str | None, finish: str = "stop", **more: object) -> dict[str, object]:
    """A whole answer, fields of its own included."""
    choices = [
        {
            "index": i,
            "message": message(content, **more),
            "logprobs": None,
            "finish_reason": finish,
            "stop_reason": None,
            "token_ids": None,
            "routed_experts": None,
        }
        for i, content in enumerate(contents)
    ]
    usage = {"prompt_tokens": 31, "total_tokens": 40, "completion_tokens": 9, "prompt_tokens_details": None}
    own = {"prompt_logprobs": None, "prompt_token_ids": None, "kv_transfer_params": None, "metrics": None}
    return {
        "id": "chatcmpl-8f1b",
        "object": "chat.completion",
        "created": 1795000000,
        "model": "mine",
        "choices": choices,
        "service_tier": None,
        "system_fingerprint": None,
        "usage": usage,
    } | own


def stream(*deltas: dict[str, object], finish: str = "stop") -> Step:
    """A stream: the role first, then the pieces, the reason, and the usage in a chunk without choices."""

    def chunk(delta: dict[str, object], reason: str | None = None) -> dict[str, object]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason, "token_ids": None}
        return {"id": "chatcmpl-8f1b", "object": "chat.completion.chunk", "model": "mine", "choices": [choice]}

    chunks = [chunk({"role": "assistant", "content": ""}), *(chunk(d) for d in deltas), chunk({"content": ""}, finish)]
    usage = {"prompt_tokens": 31, "total_tokens": 40, "completion_tokens": 9}
    end = {"id": "chatcmpl-8f1b", "object": "chat.completion.chunk", "model": "mine", "choices": [], "usage": usage}
    text = "".join(f"data: {json.dumps(c)}\n\n" for c in (*chunks, end)) + "data: [DONE]\n\n"
    return step(text, kind="text/event-stream")


async def ask(answer: Step, sampling: Sampling = Sampling(), **settings: object) -> tuple[Completion, Endpoint]:
    async with endpoint(answer) as server:
        model = OpenAIChatModel(base_url=server.url, model="mine", api_key="EMPTY", max_attempts=1, **settings)  # type: ignore[arg-type]
        try:
            return await model.generate(ASK, sampling), server
        finally:
            await model.aclose()


async def test_plain() -> None:
    got, server = await ask(step(completion("It is.\nAnswer: yes")))
    assert got.text == "It is.\nAnswer: yes" and got.finish_reason == "stop"
    assert (got.usage.input_tokens, got.usage.output_tokens, got.usage.estimated_calls) == (31, 9, 0)
    assert server.bodies[0]["model"] == "mine", "a LoRA adapter is asked for by its name"


async def test_a_stream_with_usage() -> None:
    got, _ = await ask(stream({"content": "It is.\n"}, {"content": "Answer: yes"}), stream=True)
    assert got.text == "It is.\nAnswer: yes" and got.usage.output_tokens == 9


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_reasoning_of_a_reasoning_parser_is_not_the_answer(streamed: bool) -> None:
    thought = "No? Answer: no"
    whole = step(completion("Answer: yes", reasoning=thought))
    pieces = stream({"reasoning": thought}, {"reasoning_content": thought}, {"content": "Answer: yes"})
    got, _ = await ask(pieces if streamed else whole, stream=streamed)
    assert got.text == "Answer: yes"


async def test_thinking_that_used_up_all_tokens_is_cut_off_and_kept() -> None:
    got, server = await ask(step(completion(None, finish="length", reasoning="Let me see")))
    with pytest.raises(ModelCallError, match="raise max_tokens") as caught:
        visible(got, "mine")
    assert caught.value.kind == "cut_off" and got.usage.output_tokens == 9
    assert isinstance(caught.value, HiddenAnswerError) and caught.value.done.thinking == "Let me see"
    assert len(server.bodies) == 1, "the same limit would cut it off again"


async def test_several_samples() -> None:
    async with endpoint(step(completion("a", "bb", "ccc"))) as server:
        model = OpenAIChatModel(base_url=server.url, model="mine", api_key=None, samples_per_call=3)
        got = await model.generate_many(ASK, Sampling(temperature=1.0), 3)
        await model.aclose()
    assert [g.text for g in got] == ["a", "bb", "ccc"] and sum(g.usage.output_tokens for g in got) == 9


async def test_logprobs() -> None:
    body = completion("yes")
    entry = {"token": "yes", "logprob": -0.1, "bytes": [121, 101, 115]}
    content = [entry | {"top_logprobs": [entry, {"token": "no", "logprob": -9999.0, "bytes": None}]}]
    body["choices"][0]["logprobs"] = {"content": content}  # type: ignore[index]
    got, server = await ask(step(body), Sampling(logprobs=2))
    assert server.bodies[0]["top_logprobs"] == 2
    assert got.logprobs is not None and got.logprobs[0].top == (("yes", -0.1), ("no", -9999.0))


async def test_an_answer_held_to_a_schema() -> None:
    schema: dict[str, object] = {"type": "object", "properties": {"score": {"type": "number"}}}
    got, server = await ask(step(completion('{"score": 7}')), Sampling.model_validate({"json_schema": schema}))
    asked = server.bodies[0]["response_format"]
    assert isinstance(asked, dict) and asked["type"] == "json_schema"
    assert asked["json_schema"]["schema"]["properties"] == schema["properties"]
    assert got.text == '{"score": 7}'


@pytest.mark.parametrize("old", [False, True])
async def test_too_long_a_prompt_is_told_and_not_asked_again(old: bool) -> None:
    told = "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens."
    info: dict[str, object] = {"message": told, "type": "BadRequestError", "param": None, "code": 400}
    body = {"object": "error", **info} if old else {"error": info}
    with pytest.raises(ModelCallError, match="maximum context length is 8192") as caught:
        await ask(step(body, 400))
    assert caught.value.kind == "http_400" and len(caught.value.attempts) == 1


async def test_an_unknown_adapter_is_told() -> None:
    info = {"message": "The model `mine` does not exist.", "type": "NotFoundError", "param": None, "code": 404}
    with pytest.raises(ModelCallError, match=r"base_url.*and model.*does not exist"):
        await ask(step({"error": info}, 404))


async def test_usage_without_a_count_is_approximated() -> None:
    body = completion("Answer: yes") | {"usage": {"prompt_tokens": 31, "total_tokens": 31, "completion_tokens": None}}
    got, _ = await ask(step(body))
    assert got.usage.estimated_calls == 1 and got.usage.output_tokens == 3
