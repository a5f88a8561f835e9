"""``/v1/responses`` (OpenAI's Responses API), as a translation onto chat completions. Nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Final

from pydantic import JsonValue

from cowest.server.errors import ApiError
from cowest.server.request import Body, as_json, checked
from cowest.server.response_events import Items
from cowest.server.response_items import choice_of, format_of, messages_of, tools_of
from cowest.server.settings import Settings
from cowest.server.surface import refused

_REFUSED: Final = {
    "previous_response_id": "nothing is stored here; send the earlier turns as items of input",
    "conversation": "nothing is stored here; send the earlier turns as items of input",
    "prompt": "no prompt templates are stored here; send instructions and input",
    "background": "answers are not stored here, so that one cannot be fetched later; ask without it, or with stream",
    "context_management": "is not supported; send a shorter input",
}
_IGNORED: Final = (
    "include",
    "max_tool_calls",
    "metadata",
    "moderation",
    "prompt_cache_options",
    "prompt_cache_retention",
    "store",
    "stream_options",
    "truncation",
)
"""What changes no answer here: it is of tools that a provider runs, of storing, or of what is told beside the answer."""
_ECHOED: Final = (
    "instructions",
    "max_output_tokens",
    "metadata",
    "temperature",
    "top_p",
    "tool_choice",
    "top_logprobs",
    "user",
)
_DEFAULTS: Final[Body] = {"temperature": None, "top_p": None, "tool_choice": "auto", "metadata": {}}


class Responses:
    """Implements Surface. ``reasoning`` items of an answer hold what an endpoint tells of its model's thinking."""

    prefix: ClassVar[str] = "resp_"

    def __init__(self, body: Body, size: int, settings: Settings) -> None:
        self._shown = _shown(body)
        self.chats = [checked(_chat(body), size, settings)]
        self._items, self._number = Items(), 0
        self._head: Body | None = None
        self._usage: JsonValue = None
        self._details: JsonValue = None

    def whole(self, answers: Sequence[Body]) -> Body:
        """See Surface."""
        answer = answers[0]
        found = answer.get("choices")
        choice = found[0] if isinstance(found, list) and found else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if isinstance(choice, dict) and isinstance(message, dict):
            for _ in self._items.feed(message, choice.get("logprobs"), choice.get("finish_reason")):
                pass
        for _ in self._items.close():
            pass
        self._head, self._usage, self._details = answer, answer.get("usage"), answer.get("cowest")
        return self._response(self._items.status)

    def events(self, chunk: Body) -> Iterator[bytes]:
        """See Surface."""
        if self._head is None:
            self._head = chunk
            for kind in ("response.created", "response.in_progress"):
                yield self._event({"type": kind, "response": self._response("in_progress")})
        self._head = chunk  # the model's name may change with who answers
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
        if isinstance(details := chunk.get("cowest"), dict):
            if "timings_ms" not in details:
                yield self._event({"type": "cowest.draft", **details})
            else:
                self._details = details
        found = chunk.get("choices")
        for choice in found if isinstance(found, list) else []:
            delta = choice.get("delta") if isinstance(choice, dict) else None
            if isinstance(choice, dict) and isinstance(delta, dict):
                for event in self._items.feed(delta, choice.get("logprobs"), choice.get("finish_reason")):
                    yield self._event(event)

    def end(self) -> Iterator[bytes]:
        """See Surface."""
        for event in self._items.close():
            yield self._event(event)
        status = self._items.status
        yield self._event({"type": f"response.{status}", "response": self._response(status)})

    def failed(self, error: ApiError) -> Iterator[bytes]:
        """See Surface."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        told = self._response("failed") | {"error": {"code": code, "message": str(error)}}
        yield self._event({"type": "response.failed", "response": told})

    def _event(self, event: Body) -> bytes:
        event = event | {"sequence_number": self._number}
        self._number += 1
        return b"event: " + str(event["type"]).encode() + b"\ndata: " + as_json(event) + b"\n\n"

    def _response(self, status: str) -> Body:
        head = self._head or {}
        done: Body = {
            "id": head.get("id"),
            "object": "response",
            "created_at": head.get("created"),
            "status": status,
            "error": None,
            "incomplete_details": {"reason": self._items.reason} if status == "incomplete" else None,
            "model": head.get("model"),
            "output": [] if status == "in_progress" else self._items.output,
            "usage": _usage(self._usage),
        }
        return done | self._shown | ({} if self._details is None else {"cowest": self._details})


def _chat(body: Body) -> Body:
    """The same as a body for chat completions; what has the same name and meaning there stays. Raises ApiError 400."""
    for name, why in _REFUSED.items():
        if body.get(name):
            raise refused(name, why)
    if "messages" in body:
        raise ApiError(400, "messages: is a field of /v1/chat/completions; this route takes input", param="messages")
    if body.get("n") not in (None, 1):
        raise refused("n", "this route gives one answer; /v1/chat/completions gives several")
    own = {"input", "instructions", "tools", "tool_choice", "text", "reasoning", "max_output_tokens", "top_logprobs"}
    drop = own | _REFUSED.keys() | {*_IGNORED}
    chat = {name: value for name, value in body.items() if name not in drop}
    chat["messages"] = messages_of(body.get("input"), body.get("instructions"))
    if body.get("max_output_tokens") is not None:
        chat["max_completion_tokens"] = body["max_output_tokens"]
    if body.get("tools"):
        chat["tools"] = tools_of(body["tools"])
        if body.get("tool_choice") is not None:
            chat["tool_choice"] = choice_of(body["tool_choice"])
    else:
        chat.pop("parallel_tool_calls", None)
    chat |= format_of(body.get("text"))
    reasoning = body.get("reasoning")
    if isinstance(reasoning, dict) and reasoning.get("effort") is not None:
        chat["reasoning_effort"] = reasoning["effort"]
    include = body.get("include")
    if body.get("top_logprobs") or (isinstance(include, list) and "message.output_text.logprobs" in include):
        chat |= {"logprobs": True} | ({"top_logprobs": body["top_logprobs"]} if body.get("top_logprobs") else {})
    if body.get("stream"):
        chat["stream_options"] = {"include_usage": True}
    return chat


def _shown(body: Body) -> Body:
    """What an answer repeats of its request."""
    shown: Body = {name: body[name] if body.get(name) is not None else _DEFAULTS.get(name) for name in _ECHOED}
    text, parallel, reasoning = body.get("text"), body.get("parallel_tool_calls"), body.get("reasoning")
    form = text.get("format") if isinstance(text, dict) else None
    effort = reasoning.get("effort") if isinstance(reasoning, dict) else None
    return shown | {
        "parallel_tool_calls": parallel if isinstance(parallel, bool) else True,
        "previous_response_id": None,
        "reasoning": {"effort": effort, "summary": None},
        "store": False,
        "text": {"format": form if isinstance(form, dict) else {"type": "text"}},
        "tools": body.get("tools") or [],
        "truncation": "disabled",
    }


def _usage(found: JsonValue) -> JsonValue:
    if not isinstance(found, dict):
        return None
    prompt, output = found.get("prompt_tokens_details"), found.get("completion_tokens_details")
    cached = prompt.get("cached_tokens") if isinstance(prompt, dict) else None
    thought = output.get("reasoning_tokens") if isinstance(output, dict) else None
    return {
        "input_tokens": found.get("prompt_tokens"),
        "input_tokens_details": {"cached_tokens": cached or 0, "cache_write_tokens": 0},
        "output_tokens": found.get("completion_tokens"),
        "output_tokens_details": {"reasoning_tokens": thought or 0},
        "total_tokens": found.get("total_tokens"),
    }
