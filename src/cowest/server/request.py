"""A request's body, checked only as far as the server itself reads it: everything else is the strong model's business."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Final, NoReturn, TypeAlias

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from pydantic_core import to_json

from cowest.server.errors import ApiError
from cowest.server.settings import Settings

Body: TypeAlias = dict[str, JsonValue]
"""A JSON object."""
EXTENSION: Final = "cowest"
TOKEN_LIMITS: Final = ("max_tokens", "max_completion_tokens")
"""A limit on the answer's tokens has two names."""
DEEPEST: Final = 100
"""Levels of JSON. Python reads deeper ones than it can write from further down its stack."""


class Extension(BaseModel):
    """The request's ``cowest`` field. ``context`` and ``choices`` are those of the task's questions (``Example``).

    ``early_draft``: a stream begins with a chunk that holds the draft.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    details: bool = False
    early_draft: bool = False
    context: str | None = None
    choices: list[str] = []


_NO_EXTENSION: Final = Extension()


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """``body`` is what the strong model is to get, apart from the framed turn; ``messages`` are the body's own."""

    model: str
    messages: list[Body]
    body: Body
    stream: bool
    extension: Extension


def wants_usage(body: Body) -> bool:
    """Whether a stream is to end with a usage chunk."""
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def as_json(body: Body) -> bytes:
    """A body as it is sent; four times as fast as ``json.dumps``, which still does what Rust's UTF-8 cannot (half a character)."""
    try:
        return to_json(body)
    except ValueError:
        return json.dumps(body).encode()


def parse(raw: bytes, settings: Settings) -> ChatRequest:
    """Raises ApiError 400, which names the field that is wrong."""
    return checked(decoded(raw), len(raw), settings)


def decoded(raw: bytes) -> Body:
    """The JSON object in a request. Raises ApiError 400."""
    try:
        body: JsonValue = _DECODER.decode(raw.decode())
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not valid JSON") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    if raw.count(b"[") + raw.count(b"{") > DEEPEST and _too_deep(body):
        raise ApiError(400, f"the body is nested deeper than {DEEPEST} levels")
    return body


def checked(body: Body, size: int, settings: Settings) -> ChatRequest:
    """A body for chat completions, which came as ``size`` bytes. Raises ApiError 400, which names the field that is wrong."""
    model = body.get("model")
    if not isinstance(model, str):
        raise ApiError(400, "model: must be a string", param="model")
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise ApiError(400, "stream: must be true or false", param="stream")
    messages = _messages(body.get("messages"), settings)
    _check_options(body, settings)
    _check_size(size, messages, settings)
    extension = _extension(body.pop(EXTENSION, None))
    return ChatRequest(model=model, messages=messages, body=body, stream=bool(stream), extension=extension)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):  # 1e999 is JSON, and could not be written as such again
        raise ValueError(f"{text} is too large")
    return number


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def _too_deep(value: JsonValue) -> bool:
    level: list[JsonValue] = [value]
    for _ in range(DEEPEST):
        level = [
            part
            for outer in level
            if isinstance(outer, dict | list)
            for part in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return any(isinstance(part, dict | list) for part in level)


def _messages(found: JsonValue, settings: Settings) -> list[Body]:
    if not isinstance(found, list) or not found:
        raise ApiError(400, "messages: must be a list of at least one message", param="messages")
    if len(found) > settings.max_messages:
        raise ApiError(400, f"messages: at most {settings.max_messages} are taken", param="messages")
    messages: list[Body] = []
    for i, message in enumerate(found):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ApiError(400, f"messages[{i}]: must be an object with a role", param=f"messages[{i}].role")
        content = message.get("content")
        parts = content if isinstance(content, list) else []
        if not (content is None or isinstance(content, str | list)) or not all(isinstance(p, dict) for p in parts):
            what = "must be a string or a list of content parts"
            raise ApiError(400, f"messages[{i}].content: {what}", param=f"messages[{i}].content")
        if not _is_unicode(text_of(message)):
            raise ApiError(400, f"messages[{i}].content: is not valid Unicode", param=f"messages[{i}].content")
        messages.append(message)
    return messages


def text_of(message: Mapping[str, JsonValue]) -> str:
    """A message's text; parts that are no text (images, files) are left out."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [p.get("text") for p in content if isinstance(p, dict) and p.get("type") == "text"]
    return "\n".join(t for t in texts if isinstance(t, str))


_SHOWN: Final = {"image_url": "image", "input_audio": "sound recording", "file": "file"}


def parts_of(message: Mapping[str, JsonValue]) -> dict[str, int]:
    """How many parts a message has that are no text, by what they are, in words."""
    content = message.get("content")
    found: dict[str, int] = {}
    for part in content if isinstance(content, list) else []:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("text", "refusal"):
            name = _SHOWN.get(str(kind), "attachment")
            found[name] = found.get(name, 0) + 1
    return found


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON's escapes can write
        return False
    return True


_RANGES: Final = {
    "temperature": (0.0, inf),
    "top_p": (0.0, 1.0),
    "presence_penalty": (-inf, inf),
    "frequency_penalty": (-inf, inf),
}
"""Options that are numbers, with the least and the most that any model takes."""
_SHAPES: Final[Mapping[str, tuple[tuple[type, ...], str]]] = {
    "seed": ((int,), "an integer"),
    "logprobs": ((bool, int), "true or false"),
    "stop": ((str, list), "a string or a list of strings"),
    "tools": ((list,), "a list of objects"),
    "tool_choice": ((str, dict), "a string or an object"),
    "response_format": ((dict,), "an object"),
    "stream_options": ((dict,), "an object"),
}
_ITEMS: Final = {"stop": str, "tools": dict}


def _check_options(body: Body, settings: Settings) -> None:
    """Refuse what no model takes, before anyone is asked. An option that is not named here is the model's business."""
    most = dict.fromkeys(TOKEN_LIMITS, settings.max_output_tokens) | {"n": settings.max_n}
    for name, limit in most.items():
        found = body.get(name)
        if found is None:
            continue
        if isinstance(found, bool) or not isinstance(found, int) or found < 1:
            raise ApiError(400, f"{name}: must be an integer of at least 1", param=name)
        if found > limit:
            raise ApiError(400, f"{name}: at most {limit} are allowed here", param=name)
    for name, (least, highest) in _RANGES.items():
        found = body.get(name)
        if found is None:
            continue
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise ApiError(400, f"{name}: must be a number", param=name)
        if not least <= found <= highest:
            within = f"at least {least:g}" if highest == inf else f"between {least:g} and {highest:g}"
            raise ApiError(400, f"{name}: must be {within}", param=name)
    for name, (types, what) in _SHAPES.items():
        found = body.get(name)
        fits = isinstance(found, types) and (bool in types or not isinstance(found, bool))
        if fits and isinstance(found, list):
            fits = all(isinstance(item, _ITEMS[name]) for item in found)
        if found is not None and not fits:
            raise ApiError(400, f"{name}: must be {what}", param=name)


def _check_size(size: int, messages: list[Body], settings: Settings) -> None:
    if size <= 4 * settings.max_prompt_tokens:
        return  # 4 bytes a token, as tokens.py has it: a short body cannot hold too many
    tokens = sum(len(text_of(message).encode()) for message in messages) // 4
    if tokens > settings.max_prompt_tokens:
        message = f"messages: about {tokens} tokens, and at most {settings.max_prompt_tokens} are allowed here"
        raise ApiError(400, message, param="messages", code="context_length_exceeded")


def _extension(found: JsonValue) -> Extension:
    if found is None:
        return _NO_EXTENSION
    try:
        return Extension.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = ".".join((EXTENSION, *(str(part) for part in first["loc"])))[:80]
        raise ApiError(400, f"{param}: {first['msg']}", param=param) from None
