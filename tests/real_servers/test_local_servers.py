"""Ollama's and LM Studio's answers, replayed (docs/local-models.md). Neither can be installed here: their shapes are literal.

Ollama: ollama/ollama ``openai/openai.go`` at 00988753 (answers, errors; ``logprobs`` since, in its documentation of
OpenAI compatibility), a missing model as users report it (netease-youdao/QAnything#555). LM Studio: its documentation of
the endpoints, lmstudio-ai/lmstudio-bug-tracker#619 (a model's name is not looked at while one model is loaded), and the error of no
loaded model (canopyai/Orpheus-TTS#229).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pytest
from tests.models.scripted_endpoint import Endpoint, Step, endpoint, step

from cowest.errors import ModelCallError
from cowest.models.openai import OpenAIChatModel
from cowest.types import Completion, Message, Sampling

ASK = (Message(role="system", content="Be brief."), Message(role="user", content="Is it safe?"))
DRAWN = Sampling(temperature=0.7, seed=2**40 + 5, max_tokens=20)


def completion(
    model: str,
    text: str,
    finish: str = "stop",
    message: Mapping[str, object] = MappingProxyType({}),
    choice: Mapping[str, object] = MappingProxyType({}),
    **more: object,
) -> dict[str, object]:
    said = {"role": "assistant", "content": text, **message}
    return {
        "id": "chatcmpl-142",
        "object": "chat.completion",
        "created": 1795000000,
        "model": model,
        "choices": [{"index": 0, "message": said, "finish_reason": finish, **choice}],
        "usage": {"prompt_tokens": 18, "completion_tokens": 5, "total_tokens": 23},
        **more,
    }


async def ask(model: str, answer: Step, sampling: Sampling = DRAWN) -> tuple[Completion, Endpoint]:
    async with endpoint(answer) as server:
        client = OpenAIChatModel(base_url=server.url, model=model, api_key=None, max_attempts=1)
        try:
            return await client.generate(ASK, sampling), server
        finally:
            await client.aclose()


async def test_ollama() -> None:
    answer = completion("qwen2.5:1.5b-instruct-q4_K_M", "It is.", system_fingerprint="fp_ollama")
    got, server = await ask("qwen2.5:1.5b-instruct-q4_K_M", step(answer))
    assert (got.text, got.finish_reason, got.usage.input_tokens, got.usage.output_tokens) == ("It is.", "stop", 18, 5)
    sent = server.bodies[0]
    assert sent["model"] == "qwen2.5:1.5b-instruct-q4_K_M"  # the tag belongs to the name
    assert sent["seed"] == 2**40 + 5 and not {"n", "logprobs", "response_format"} & set(sent)


async def test_ollama_cut_off_thinking_and_logprobs() -> None:
    got, _ = await ask("gemma3:1b", step(completion("gemma3:1b", "It", finish="length")))
    assert got.finish_reason == "length"
    got, _ = await ask("qwen3:4b", step(completion("qwen3:4b", "It is.", message={"reasoning": "Hm."})))
    assert got.text == "It is." and "Hm." not in got.text
    scored = {"logprobs": {"content": [{"token": "It", "logprob": -0.2, "top_logprobs": []}]}}
    got, _ = await ask("gemma3:1b", step(completion("gemma3:1b", "It", choice=scored)), Sampling(logprobs=0))
    assert got.logprobs and got.logprobs[0].logprob == -0.2


async def test_ollama_has_not_the_model() -> None:
    error = {
        "message": 'model "qwen9:1b" not found, try pulling it first',
        "type": "api_error",
        "param": None,
        "code": None,
    }
    with pytest.raises(ModelCallError, match="not found, try pulling it first") as told:
        await ask("qwen9:1b", step({"error": error}, status=404))
    assert told.value.kind == "http_404" and len(told.value.attempts) == 1  # asked once: waiting mends nothing


async def test_lm_studio() -> None:
    answer = completion(
        "qwen2.5-coder-1.5b-instruct", "It is.", choice={"logprobs": None}, stats={}, system_fingerprint="qwen2.5-coder"
    )
    got, _ = await ask("qwen2.5-coder-1.5b-instruct", step(answer), Sampling(logprobs=2))
    assert got.text == "It is." and got.logprobs is None  # asked for and not given


async def test_lm_studio_has_no_model_loaded() -> None:
    error = {
        "message": "No models loaded. Please load a model in the developer page or use the `lms load` command.",
        "type": "invalid_request_error", "param": "model", "code": "model_not_found",
    }  # fmt: skip
    with pytest.raises(ModelCallError, match="No models loaded") as told:
        await ask("qwen2.5-coder-1.5b-instruct", step({"error": error}, status=404))
    assert told.value.kind == "http_404"
