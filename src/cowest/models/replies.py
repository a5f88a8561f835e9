"""The JSON of OpenAI's chat completions, as it is answered. Pure functions.

Whatever an endpoint sends is untrusted: it is checked field by field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from cowest.models.answer import CUT, CUT_OFF, finish_of
from cowest.models.failures import EndpointError, error_text
from cowest.models.secrets import Secrets
from cowest.models.tools import spoken
from cowest.models.untrusted import field, valid_unicode
from cowest.types import Completion, TokenLogprob, Tool, Usage

MOST_TOKENS: Final = 10**9
"""A count above it is no count: no request has so many tokens, and the ledger's integers have 64 bits."""
_NOTHING: Final = Usage()


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the answers in a reply. ``finish_reason`` is ``length`` wherever the limit cut it off, see :func:`finish_of`."""

    text: str
    finish_reason: str
    logprobs: tuple[TokenLogprob, ...] | None = None
    thinking: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """The usable answers to a request, in the order of their index, and what all of them took together."""

    choices: tuple[Choice, ...]
    usage: Usage


def parse_reply(body: bytes, prompt_bytes: int = 0) -> Completion:
    """The first answer in a 2xx body (``latency_s`` 0). Raises :class:`EndpointError`, see :func:`read_reply`."""
    reply = read_reply(body, prompt_bytes)
    first = reply.choices[0]
    return Completion(
        text=first.text,
        thinking=first.thinking,
        finish_reason=first.finish_reason,
        usage=reply.usage,
        logprobs=first.logprobs,
    )


def read_reply(body: bytes, prompt_bytes: int = 0, limit: int | None = None, tool: Tool | None = None) -> Reply:
    """The answers in a 2xx body; ``limit`` is the most tokens that each was to have. Without usage, that is 4 bytes a token.

    A call of ``tool`` is read as the line that it is in a text.

    Raises :class:`EndpointError` of kind ``bad_response``, ``no_choices``, ``empty``, ``refusal``, ``content_filter`` or
    ``server_error`` (an error under status 200).
    """
    raw = body.decode("utf-8", "replace")
    try:
        payload: object = json.loads(body)
    except (ValueError, RecursionError):
        html = raw.lstrip()[:15].lower().startswith(("<!doctype", "<html"))
        what = "an HTML page" if html else "not JSON"
        hint = f"the endpoint's answer is {what}; check base_url (it usually ends in /v1)"
        raise EndpointError("bad_response", hint, retry=True, quote=raw, maybe_paid=not html) from None
    return read_payload(payload, raw, prompt_bytes, limit, tool)


def read_payload(
    payload: object, raw: str, prompt_bytes: int, limit: int | None = None, tool: Tool | None = None
) -> Reply:
    """The same from decoded JSON; ``raw`` is only quoted."""
    found = field(payload, "choices")
    told = isinstance(field(payload, "usage"), dict)
    if is_error(payload):
        usage = read_usage(payload, prompt_bytes, 0) if told else _NOTHING
        raise EndpointError(
            "server_error",
            "the endpoint reported an error with status 200",
            retry=True,
            quote=error_text(payload) or raw,
            usage=usage,
            maybe_paid=True,
        )
    texts = [c for c in found if isinstance(c, dict)] if isinstance(found, list) else []
    usage = read_usage(payload, prompt_bytes, sum(len(_text_in(c)) for c in texts))
    if not texts:
        kind = "no_choices" if isinstance(found, list) else "bad_response"
        raise EndpointError(kind, "the endpoint's answer holds no choice", retry=True, quote=raw, usage=usage)
    texts.sort(key=lambda c: index if isinstance(index := c.get("index"), int) else 0)
    full = _at_limit(usage, limit, len(texts))
    usable, problems = [], []
    for choice in texts:
        try:
            usable.append(read_choice(choice, raw, usage, full, tool))
        except EndpointError as problem:
            problems.append(problem)
    if not usable:
        raise problems[0]
    return Reply(tuple(usable), usage)  # of several samples those that are good are not lost for one that is not


def is_error(payload: object) -> bool:
    """Whether this is an error in place of an answer, or beside one."""
    return bool(field(payload, "error")) or field(payload, "object") == "error"


def read_choice(
    choice: Mapping[str, object], raw: str, usage: Usage, full: bool = False, tool: Tool | None = None
) -> Choice:
    """One answer; ``full``: it has as many tokens as it may. Raises :class:`EndpointError` for one that is none."""
    found, finish = choice.get("message"), finish_of(choice.get("finish_reason"), full)
    if not isinstance(found, dict):
        raise EndpointError(
            "bad_response", "the endpoint's answer holds no message", retry=True, quote=raw, usage=usage
        )
    if finish == "content_filter":
        raise EndpointError("content_filter", "the endpoint's filter stopped the answer", retry=False, usage=usage)
    if finish in ("error", "abort") or choice.get(
        "error"
    ):  # OpenRouter and vLLM: the text stops where the failure came
        quote = error_text(choice) or f"finish_reason {finish}"
        raise EndpointError("server_error", "the endpoint broke the answer off", retry=True, quote=quote, usage=usage)
    message = flat(found) if tool is None else spoken(flat(found), tool)
    refusal, text = message.get("refusal"), message.get("content")
    if (isinstance(refusal, str) and refusal.strip()) or finish == "refusal":
        quote = refusal if isinstance(refusal, str) else str(text or "")
        raise EndpointError("refusal", "the model refused to answer", retry=False, quote=quote, usage=usage)
    if text is not None and not isinstance(text, str):
        raise EndpointError("bad_response", "the answer's content is not text", retry=True, quote=raw, usage=usage)
    thinking = valid_unicode(thinking_of(message)) or None
    if text is None or not text.strip():
        cut, quote = finish == CUT, f"finish_reason {finish}"
        if cut and thinking is not None:
            return Choice(f"<think>\n{thinking}", finish)  # as the model wrote it: cut off within its thinking
        hint = "; raise max_tokens (a reasoning model thinks within it)" if cut else ""
        kind = CUT_OFF if cut else "empty"  # the same limit would cut it off again
        raise EndpointError(kind, f"the model answered no text{hint}", retry=not cut, quote=quote, usage=usage)
    return Choice(valid_unicode(text), finish, _logprobs(choice.get("logprobs")), thinking)


def _at_limit(usage: Usage, limit: int | None, answers: int) -> bool:
    """Whether each of the answers has exactly the tokens that it may; some providers do not count thinking among them."""
    counts = (usage.output_tokens, usage.output_tokens - usage.reasoning_tokens)
    return limit is not None and not usage.estimated_calls and limit * answers in counts


def flat(message: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """A message or delta whose content is text: parts are joined, each into the field where OpenAI's clients look for it.

    Content in which nothing can be read (an image alone) stays what it is.
    """
    content = message.get("content")
    if content is None or isinstance(content, str):
        return dict(message)
    found: dict[str, list[str]] = {"content": [], "reasoning_content": [], "refusal": []}
    for part in content if isinstance(content, list) else [content]:
        place = _place_of(part)
        if place is not None:
            found[place].append(_words(part))
    if not any(found.values()):
        return dict(message)
    joined: dict[str, JsonValue] = {place: "".join(words) for place, words in found.items() if words}
    return {**message, "content": "", **joined}


def _place_of(part: JsonValue) -> str | None:
    """Where the words of a part of a message belong."""
    if isinstance(part, str):
        return "content"
    kind = field(part, "type")
    if kind in (None, "text", "output_text") and isinstance(field(part, "text"), str):
        return "content"
    if kind == "refusal":
        return "refusal"
    return "reasoning_content" if isinstance(kind, str) and ("thinking" in kind or "reasoning" in kind) else None


def _words(part: object) -> str:
    """The text of a part, in which thinking may be a list of parts again."""
    if isinstance(part, str):
        return part
    if isinstance(part, list):
        return "".join(_words(inner) for inner in part)
    inner = (field(part, key) for key in ("text", "thinking", "reasoning", "refusal", "content"))
    return next((_words(w) for w in inner if isinstance(w, str | list)), "")


def thinking_of(message: Mapping[str, object]) -> str:
    """What a message or delta tells of the model's thinking, which is no part of its answer."""
    told = (message.get(key) for key in ("reasoning_content", "reasoning", "thinking"))
    return next((text for text in told if isinstance(text, str) and text), "")


def _text_in(choice: Mapping[str, JsonValue]) -> str:
    message = choice.get("message")
    return str((flat(message) if isinstance(message, dict) else {}).get("content") or "")


def _logprobs(found: object) -> tuple[TokenLogprob, ...] | None:
    """Log-probabilities where they are there and whole; they are an extra, so an odd one loses no answer."""
    content = field(found, "content")
    if not isinstance(content, list) or not content:
        return None
    tokens = []
    for entry in content:
        token, value, top = field(entry, "token"), _logprob(entry), field(entry, "top_logprobs")
        if not isinstance(token, str) or value is None:
            return None
        others = [(field(o, "token"), _logprob(o)) for o in top] if isinstance(top, list) else []
        kept = tuple((valid_unicode(t), v) for t, v in others if isinstance(t, str) and v is not None)
        tokens.append(TokenLogprob(token=valid_unicode(token), logprob=value, top=kept))
    return tuple(tokens)


def _logprob(entry: object) -> float | None:
    """A finite number: -Infinity, as some servers write it, is OpenAI's -9999; NaN or a probability above 1 is nothing."""
    value = field(entry, "logprob")
    if not isinstance(value, int | float) or isinstance(value, bool) or not value <= 1e-3:
        return None
    return float(max(-9999.0, value))


def read_usage(payload: object, prompt_bytes: int, answer_chars: int) -> Usage:
    """The counts of a 2xx answer, or an approximation where it has none: they must not lose an answer that was paid for."""
    usage = field(payload, "usage")
    told, answered = (_count(field(usage, key)) for key in ("prompt_tokens", "completion_tokens"))
    thinking = _count(field(field(usage, "completion_tokens_details"), "reasoning_tokens"))
    if told is None or answered is None:
        return Usage(
            calls=1,
            input_tokens=told if told is not None else -(-prompt_bytes // 4),
            output_tokens=answered if answered is not None else -(-answer_chars // 4),
            estimated_calls=1,
        )
    return Usage(calls=1, input_tokens=told, output_tokens=answered, reasoning_tokens=min(thinking or 0, answered))


def _count(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    usable = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS
    return value if usable and isinstance(value, int) else None


def without_secrets(reply: Reply, secrets: Secrets) -> Reply:
    """The same answers; where a gateway quotes a secret in one, it is struck out before it comes to any file."""
    if not secrets:
        return reply
    return Reply(tuple(_struck(choice, secrets) for choice in reply.choices), reply.usage)


def _struck(choice: Choice, secrets: Secrets) -> Choice:
    tokens = "".join(t.token for t in choice.logprobs or ())
    plain = (choice.text, choice.finish_reason, choice.thinking or "", tokens)
    struck = [secrets.strike(text) for text in plain]
    return choice if struck == [*plain] else Choice(struck[0], struck[1], None, struck[2] or None)
