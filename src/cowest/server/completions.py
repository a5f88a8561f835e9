"""``/v1/completions``, OpenAI's older route: a prompt is put as a user's turn, and the answer's text is the completion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Final

from pydantic import JsonValue

from cowest.server.errors import ApiError
from cowest.server.request import Body, ChatRequest, checked
from cowest.server.settings import Settings
from cowest.server.surface import data, refused

MOST_LOGPROBS: Final = 5
_FINISH: Final = ("stop", "length", "content_filter")


class Completions:
    """Implements Surface. Several prompts are several requests, each with a place, a draft and an exchange of its own."""

    prefix: ClassVar[str] = "cmpl-"

    def __init__(self, body: Body, size: int, settings: Settings) -> None:
        _refuse(body)
        prompts = _prompts(body.pop("prompt", None), settings)
        if len(prompts) > 1 and body.get("stream"):
            raise refused("stream", "takes one prompt; send several without stream, or one request for each")
        logprobs = body.pop("logprobs", None)
        if logprobs is not None:
            if isinstance(logprobs, bool) or not isinstance(logprobs, int) or not 0 <= logprobs <= MOST_LOGPROBS:
                raise ApiError(400, f"logprobs: must be an integer from 0 to {MOST_LOGPROBS}", param="logprobs")
            body |= {"logprobs": True, "top_logprobs": logprobs} if logprobs else {"logprobs": True}
        self._scored = logprobs is not None
        self._said: dict[int, int] = {}
        asked: list[Body] = [{**body, "messages": [{"role": "user", "content": prompt}]} for prompt in prompts]
        self.chats: list[ChatRequest] = [checked(one, size, settings) for one in asked]

    def whole(self, answers: Sequence[Body]) -> Body:
        """See Surface. Choice ``i`` of prompt ``p`` has the index ``p * n + i``."""
        choices: list[JsonValue] = []
        for answer in answers:
            found = answer.get("choices")
            for choice in found if isinstance(found, list) else []:
                message = choice.get("message") if isinstance(choice, dict) else None
                if isinstance(choice, dict) and isinstance(message, dict):
                    choices.append(self._choice(len(choices), message.get("content"), choice, ended=True))
        usage = _summed([answer.get("usage") for answer in answers])
        return self._head(answers[0]) | {"choices": choices} | ({} if usage is None else {"usage": usage})

    def events(self, chunk: Body) -> Iterator[bytes]:
        """See Surface."""
        found = chunk.get("choices")
        choices: list[JsonValue] = []
        for choice in found if isinstance(found, list) else []:
            delta = choice.get("delta") if isinstance(choice, dict) else None
            if not isinstance(choice, dict) or not isinstance(delta, dict):
                continue
            if not delta.get("content") and choice.get("finish_reason") is None:
                continue  # a role, a call of a tool: nothing of it is text
            index = choice.get("index")
            choices.append(self._choice(index if isinstance(index, int) else 0, delta.get("content"), choice))
        if choices or not found:
            extra = {key: chunk[key] for key in ("usage", "cowest") if chunk.get(key) is not None}
            yield data(self._head(chunk) | {"choices": choices} | extra)

    def end(self) -> Iterator[bytes]:
        """See Surface."""
        yield b"data: [DONE]\n\n"

    def failed(self, error: ApiError) -> Iterator[bytes]:
        """See Surface."""
        yield data(error.payload())

    def _head(self, answer: Body) -> Body:
        kept = {key: answer[key] for key in ("system_fingerprint", "cowest") if answer.get(key) is not None}
        ids = {key: answer.get(key) for key in ("id", "created", "model")}
        return {**ids, "object": "text_completion", **kept}

    def _choice(self, index: int, content: JsonValue, choice: Body, ended: bool = False) -> Body:
        text, finish = content if isinstance(content, str) else "", choice.get("finish_reason")
        told = finish if finish in _FINISH else "stop" if finish is not None or ended else None
        at = self._said.get(index, 0)
        self._said[index] = at + len(text)
        scores = _logprobs(choice.get("logprobs"), at) if self._scored else None
        return {"index": index, "text": text, "logprobs": scores, "finish_reason": told}


def _refuse(body: Body) -> None:
    if body.get("suffix"):
        raise refused("suffix", "is not supported: chat models write no middle; put what comes after into the prompt")
    if body.get("echo"):
        raise refused(
            "echo", "is not supported: the prompt is a user's turn and no part of the answer; prepend it yourself"
        )
    best = body.pop("best_of", None)
    if best is not None and best != 1 and best != body.get("n"):
        raise refused("best_of", "is not supported; ask for n answers and choose among them")
    for name in ("suffix", "echo"):
        body.pop(name, None)
    if "messages" in body:
        raise ApiError(400, "messages: is a field of /v1/chat/completions; this route takes prompt", param="messages")


def _prompts(found: JsonValue, settings: Settings) -> list[str]:
    """One text for each prompt. Raises ApiError 400."""
    if isinstance(found, str):
        return [found]
    if not isinstance(found, list) or not found:
        raise ApiError(400, "prompt: must be a string or a list of strings", param="prompt")
    texts = [prompt for prompt in found if isinstance(prompt, str)]
    if len(texts) < len(found):
        ids = all(isinstance(prompt, int | list) for prompt in found)
        what = "token ids are not taken, as models here have different tokenizers; send the text" if ids else ""
        raise ApiError(400, f"prompt: {what or 'must be a string or a list of strings'}", param="prompt")
    if len(texts) > settings.max_n:
        raise ApiError(400, f"prompt: at most {settings.max_n} are allowed at once here", param="prompt")
    return texts


def _summed(usages: Sequence[JsonValue]) -> Body | None:
    """The tokens of all prompts; None where an answer has no counts. Details are kept where there is one answer."""
    counts = [usage for usage in usages if isinstance(usage, dict)]
    if len(counts) < len(usages) or not counts:
        return None
    if len(counts) == 1:
        return counts[0]
    return {name: sum(_count(usage.get(name)) for usage in counts) for name in _USAGE}


_USAGE: Final = ("prompt_tokens", "completion_tokens", "total_tokens")


def _count(value: JsonValue) -> int:
    return value if isinstance(value, int) else 0


def _logprobs(found: JsonValue, at: int) -> JsonValue:
    """Log-probabilities in this route's shape; ``at`` characters of the text came before."""
    content = found.get("content") if isinstance(found, dict) else None
    if not isinstance(content, list):
        return None
    tokens, values, tops, offsets = list[JsonValue](), list[JsonValue](), list[JsonValue](), list[JsonValue]()
    for entry in content:
        if not isinstance(entry, dict) or not isinstance(token := entry.get("token"), str):
            return None
        others = entry.get("top_logprobs")
        tops.append(
            {
                str(other.get("token")): other.get("logprob")
                for other in (others if isinstance(others, list) else [])
                if isinstance(other, dict)
            }
        )
        tokens.append(token)
        values.append(entry.get("logprob"))
        offsets.append(at)
        at += len(token)
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
