"""OpenAI's answers as JSON: made from a model's text, cut into chunks, and counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import JsonValue

from cowest.models.endpoint import reply_body
from cowest.models.replies import read_usage
from cowest.server.request import Body
from cowest.types import Completion, Usage


def completion_of(model: str, completions: Sequence[Completion]) -> Body:
    """A ``chat.completion``, with log-probabilities where the completions have them."""
    whole = {key: _json(value) for key, value in reply_body(model, list(completions)).items()}
    choices = whole["choices"]
    for choice, done in zip(choices if isinstance(choices, list) else [], completions, strict=True):
        if isinstance(choice, dict):
            choice["logprobs"] = _logprobs(done)
    return whole


def _logprobs(done: Completion) -> JsonValue:
    """A completion's log-probabilities as OpenAI has them; None where there are none."""
    if done.logprobs is None:
        return None
    content: list[JsonValue] = []
    for token in done.logprobs:
        top: list[JsonValue] = [_scored(text, value) for text, value in token.top]
        content.append(_scored(token.token, token.logprob) | {"top_logprobs": top})
    return {"content": content, "refusal": None}


def _scored(token: str, logprob: float) -> Body:
    return {"token": token, "logprob": max(logprob, -9999.0), "bytes": [*token.encode("utf-8", "replace")]}


def cut(done: Completion, text: str) -> Completion:
    """The completion with only the beginning ``text`` of its own; of the tokens those that begin within it."""
    if done.logprobs is None:
        return done.model_copy(update={"text": text})
    kept, length = 0, 0
    while kept < len(done.logprobs) and length < len(text):
        length += len(done.logprobs[kept].token)
        kept += 1
    return done.model_copy(update={"text": text, "logprobs": done.logprobs[:kept]})


def _json(value: object) -> JsonValue:
    """``reply_body`` gives JSON, and its type says only ``object``."""
    if isinstance(value, dict):
        return {str(k): _json(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_json(v) for v in value]
    return value if isinstance(value, str | int | float | bool) else None


def chunks_of(completion: Body, with_usage: bool) -> Iterator[Body]:
    """A whole completion as the chunks of a stream: each choice in one piece, then its end, then the usage."""
    head = {key: completion.get(key) for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    choices = completion.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        if not isinstance(choice, dict):
            continue
        message, index = choice.get("message"), choice.get("index", 0)
        delta: JsonValue = {**message} if isinstance(message, dict) else {}
        if isinstance(delta, dict) and isinstance(calls := delta.get("tool_calls"), list):
            delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(calls) if isinstance(call, dict)]
        first: Body = {"index": index, "delta": delta, "finish_reason": None}
        if choice.get("logprobs") is not None:
            first["logprobs"] = choice["logprobs"]
        yield {**head, "choices": [first]}
        yield {**head, "choices": [{"index": index, "delta": {}, "finish_reason": choice.get("finish_reason", "stop")}]}
    if with_usage and completion.get("usage") is not None:
        yield {**head, "choices": [], "usage": completion["usage"]}


def usage_of(answer: Body) -> Usage | None:
    """What a completion or chunk says that it took; None where it says nothing."""
    if not isinstance(answer.get("usage"), dict):
        return None
    found = read_usage(answer, 0, 0)
    return None if found.estimated_calls else found


def less(usage: Usage, part: Usage) -> Usage:
    """What of an answer's usage the others than this part have taken; no calls where that is nothing."""
    rest = Usage(
        input_tokens=max(0, usage.input_tokens - part.input_tokens),
        output_tokens=max(0, usage.output_tokens - part.output_tokens),
    )
    return rest.model_copy(update={"calls": int(bool(rest.input_tokens or rest.output_tokens))})


def count_both(answer: Body, strong: Usage, weak: Usage) -> None:
    """Put both models' tokens into the usage of the strong one's answer; its other fields stay."""
    usage = answer.get("usage")
    if not isinstance(usage, dict) or not weak.calls:
        return
    prompt, output = strong.input_tokens + weak.input_tokens, strong.output_tokens + weak.output_tokens
    answer["usage"] = {
        **usage,
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
    }
