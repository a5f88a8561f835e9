"""The JSON of OpenAI's chat completions: requests written, answers read, errors understood. Pure functions.

Whatever an endpoint sends is untrusted: it is checked field by field, and only an excerpt of it, cleared of the key, is shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from pydantic import JsonValue

from cowest.errors import ConfigError, ModelCallError
from cowest.models.dialect import Dialect
from cowest.models.turns import merged
from cowest.types import Completion, Message, Sampling, TokenLogprob, Usage

RETRIED_STATUS: Final = frozenset({408, 409, 429})
"""Statuses below 500 that may pass by themselves; every 5xx is retried too."""
OVERLOADED_STATUS: Final = frozenset({429, 503, 529})
"""The endpoint has too much to do: fewer calls are made at once."""
ASKED_AGAIN: Final = frozenset({"bad_response", "no_choices", "empty"})
"""An answer came and is of no use. It was paid for and seldom changes, so it is asked for again only once."""
EXCERPT_CHARS: Final = 200
MOST_TOKENS: Final = 10**9
"""A count above it is no count: no request has so many tokens, and the ledger's integers have 64 bits."""
_NOTHING: Final = Usage()
_PLAIN: Final = Dialect()

_HINTS: Final = {
    400: "the endpoint rejects the request; check model and the sampling settings (max_tokens, temperature)",
    401: "the key was not accepted; check the variable named by api_key_env",
    402: "the account has no credit; see the provider's billing page",
    403: "the key has no right to this; check the variable named by api_key_env, and model",
    404: "nothing there; check base_url (it usually ends in /v1) and model",
    405: "the endpoint does not take this request; check base_url (it usually ends in /v1)",
    413: "the request is too long for the endpoint; shorten the input or choose another model",
    422: "the endpoint rejects the request; check model and the sampling settings (max_tokens, temperature)",
}


class EndpointError(ModelCallError):
    """One failed attempt. ``quote`` is raw text from outside: only :func:`excerpt` of it may be shown.

    ``usage`` is what it cost for sure, ``maybe_paid`` whether it may have cost something nobody knows.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        retry: bool,
        quote: str = "",
        retry_after_s: float | None = None,
        overloaded: bool = False,
        usage: Usage = _NOTHING,
        maybe_paid: bool = False,
    ) -> None:
        super().__init__(kind, message)
        self.retry, self.quote, self.retry_after_s, self.overloaded = retry, quote, retry_after_s, overloaded
        self.usage, self.maybe_paid = usage, maybe_paid
        self.rejected: str | None = None  # the field that a 400 names


def check_base_url(base_url: str) -> str:
    """The URL without a trailing slash. Raises :class:`ConfigError`, which quotes no URL that may hold a secret."""
    url = base_url.strip().rstrip("/")
    if any(mark in url for mark in "@?#"):
        raise ConfigError("base_url: must hold no user, password, query or fragment; put the key in api_key_env")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or any(c.isspace() for c in url):
        raise ConfigError(f"base_url: {url!r} is no http(s) URL; write for example https://host/v1")
    if url.endswith("/chat/completions"):
        raise ConfigError(f"base_url: {url!r} must stop before /chat/completions, which is added to it")
    return url


def request_body(
    model: str,
    messages: Sequence[Message],
    sampling: Sampling,
    dialect: Dialect = _PLAIN,
    extra: Mapping[str, JsonValue] | None = None,
    n: int = 1,
) -> dict[str, JsonValue]:
    """The JSON of one request. What is at its default, or what the dialect lacks, is left out; ``extra`` has the last word.

    A seed is left out where decoding is greedy.
    """
    body: dict[str, JsonValue] = {
        "model": model,
        "messages": [
            {"role": m.role, "content": m.content} for m in (messages if dialect.system else merged(messages))
        ],
        dialect.token_limit: sampling.max_tokens,
    }
    if dialect.temperature:
        body["temperature"] = sampling.temperature
    if dialect.top_p and sampling.top_p != 1:
        body["top_p"] = sampling.top_p
    if dialect.seed and sampling.seed is not None and sampling.temperature > 0:
        body["seed"] = sampling.seed
    if dialect.logprobs and sampling.logprobs is not None:
        body["logprobs"] = True
        if sampling.logprobs:
            body["top_logprobs"] = sampling.logprobs
    if sampling.json_schema is not None and dialect.structured != "prompt":
        named: JsonValue = {"name": "answer", "schema": strict_schema(sampling.json_schema), "strict": True}
        schema: JsonValue = {"type": "json_schema", "json_schema": named}
        body["response_format"] = schema if dialect.structured == "json_schema" else {"type": "json_object"}
    if n > 1:
        body["n"] = n
    return body | dict(extra or {})


def strict_schema(schema: JsonValue) -> JsonValue:
    """A JSON schema as OpenAI's strict mode wants it: every property is required, no other is allowed, nothing has a default."""
    if isinstance(schema, list):
        return [strict_schema(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return {key: strict_schema(part) for key, part in schema.items() if key != "default"}
    rest = {key: strict_schema(part) for key, part in schema.items() if key not in ("properties", "default")}
    return {
        **rest,
        "properties": {name: strict_schema(part) for name, part in properties.items()},
        "required": list(properties),
        "additionalProperties": False,
    }


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the answers in a reply."""

    text: str
    finish_reason: str
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """The usable answers to a request, in the order of their index, and what all of them took together."""

    choices: tuple[Choice, ...]
    usage: Usage


def parse_reply(body: bytes, prompt_bytes: int = 0) -> Completion:
    """The first answer in a 2xx body (``latency_s`` 0). Raises :class:`EndpointError`, see :func:`read_reply`."""
    reply = read_reply(body, prompt_bytes)
    first = reply.choices[0]
    return Completion(text=first.text, finish_reason=first.finish_reason, usage=reply.usage, logprobs=first.logprobs)


def read_reply(body: bytes, prompt_bytes: int = 0) -> Reply:
    """The answers in a 2xx body. Where it tells no usage, that is approximated (4 bytes a token).

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
    return read_payload(payload, raw, prompt_bytes)


def read_payload(payload: object, raw: str, prompt_bytes: int) -> Reply:
    """The same from decoded JSON; ``raw`` is only quoted."""
    found = field(payload, "choices")
    told = isinstance(field(payload, "usage"), dict)
    if field(payload, "error"):
        usage = read_usage(payload, prompt_bytes, 0) if told else _NOTHING
        raise EndpointError(
            "server_error",
            "the endpoint reported an error with status 200",
            retry=True,
            quote=_error_text(payload) or raw,
            usage=usage,
            maybe_paid=True,
        )
    texts = [c for c in found if isinstance(c, dict)] if isinstance(found, list) else []
    usage = read_usage(payload, prompt_bytes, sum(len(str(field(field(c, "message"), "content") or "")) for c in texts))
    if not texts:
        kind = "no_choices" if isinstance(found, list) else "bad_response"
        raise EndpointError(kind, "the endpoint's answer holds no choice", retry=True, quote=raw, usage=usage)
    texts.sort(key=lambda c: index if isinstance(index := c.get("index"), int) else 0)
    usable, problems = [], []
    for choice in texts:
        try:
            usable.append(read_choice(choice, raw, usage))
        except EndpointError as problem:
            problems.append(problem)
    if not usable:
        raise problems[0]
    return Reply(tuple(usable), usage)  # of several samples those that are good are not lost for one that is not


def read_choice(choice: Mapping[str, object], raw: str, usage: Usage) -> Choice:
    """One answer. Raises :class:`EndpointError` for one that is none."""
    message = choice.get("message")
    reason = choice.get("finish_reason")
    finish = valid_unicode(reason) if isinstance(reason, str) else "unknown"
    if not isinstance(message, dict):
        raise EndpointError(
            "bad_response", "the endpoint's answer holds no message", retry=True, quote=raw, usage=usage
        )
    if finish == "content_filter":
        raise EndpointError("content_filter", "the endpoint's filter stopped the answer", retry=False, usage=usage)
    if finish in ("error", "abort") or choice.get(
        "error"
    ):  # OpenRouter and vLLM: the text stops where the failure came
        quote = _error_text(choice) or f"finish_reason {finish}"
        raise EndpointError("server_error", "the endpoint broke the answer off", retry=True, quote=quote, usage=usage)
    refusal = message.get("refusal")
    text = _joined(message.get("content"))
    if (isinstance(refusal, str) and refusal.strip()) or finish == "refusal":
        quote = refusal if isinstance(refusal, str) else text or ""
        raise EndpointError("refusal", "the model refused to answer", retry=False, quote=quote, usage=usage)
    if text is None and message.get("content") is not None:
        raise EndpointError("bad_response", "the answer's content is not text", retry=True, quote=raw, usage=usage)
    if text is None or not text.strip():
        hint = "; raise max_tokens (a reasoning model thinks within it)" if finish == "length" else ""
        quote = f"finish_reason {finish}"
        raise EndpointError("empty", f"the model answered no text{hint}", retry=True, quote=quote, usage=usage)
    return Choice(valid_unicode(text), finish, _logprobs(choice.get("logprobs")))


def _joined(content: object) -> str | None:
    """A string, or a list of text parts joined; None for anything else."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        return None
    parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    return "".join(p for p in parts if isinstance(p, str)) if parts else None


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
    usable = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS
    return value if usable and isinstance(value, int) else None


def check_status(status: int, body: bytes, retry_after_s: float | None = None, location: str | None = None) -> None:
    """Return for a 2xx status; raise an :class:`EndpointError` that says whether to try again for any other."""
    if 200 <= status < 300:
        return
    kind = f"http_{status}"
    if 300 <= status < 400:
        where = (location or "").split("?")[0]
        raise EndpointError(
            kind, f"HTTP {status}: base_url redirects, which is not followed; set its target", retry=False, quote=where
        )
    message, codes = server_message(body)
    if status == 429 and out_of_quota(codes):
        hint = "HTTP 429: the account's quota is used up; see the provider's billing page"
        raise EndpointError(kind, hint, retry=False, quote=message)
    hint = f": {_HINTS[status]}" if status in _HINTS else ""
    raise EndpointError(
        kind,
        f"HTTP {status}{hint}",
        retry=status >= 500 or status in RETRIED_STATUS,
        quote=message,
        retry_after_s=retry_after_s,
        overloaded=status in OVERLOADED_STATUS,
    )


def out_of_quota(codes: Sequence[str]) -> bool:
    """Whether a 429 means that the account is empty, which no waiting mends.

    Only codes tell: "exceeded your current quota" is also how Gemini speaks of a limit per minute.
    """
    return any(code == "insufficient_quota" or "billing" in code for code in codes)


def server_message(body: bytes) -> tuple[str, tuple[str, ...]]:
    """What an error body says, and its code and type."""
    try:
        payload: object = json.loads(body)
    except (ValueError, RecursionError):
        return body.decode("utf-8", "replace"), ()
    if isinstance(payload, list) and payload:  # Gemini wraps its error in a list
        payload = payload[0]
    error = field(payload, "error")
    codes = tuple(c for c in (field(error, "code"), field(error, "type")) if isinstance(c, str))
    return _error_text(payload) or body.decode("utf-8", "replace"), codes


def rejected_field(body: bytes) -> str | None:
    """The field that an error names as ``param``."""
    try:
        param = field(field(json.loads(body), "error"), "param")
    except (ValueError, RecursionError):
        return None
    return param if isinstance(param, str) else None


def _error_text(payload: object) -> str | None:
    error = field(payload, "error")
    for text in (field(error, "message"), error, field(payload, "message"), field(payload, "detail")):
        if isinstance(text, str):
            return text
    return None


def excerpt(text: str, secret: str | None) -> str:
    """Untrusted text for an error message: without the secret, printable, on one line and short."""
    if secret:  # before cutting, or half of it could remain
        text = text.replace(secret, "***")
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= EXCERPT_CHARS else line[:EXCERPT_CHARS] + "..."


def without_secret(reply: Reply, secret: str | None) -> Reply:
    """The same answers; where a gateway quotes the key in one, it is struck out before it comes to any file."""
    if not secret or not any(secret in c.text or secret in c.finish_reason for c in reply.choices):
        return reply
    struck = [Choice(c.text.replace(secret, "***"), c.finish_reason.replace(secret, "***")) for c in reply.choices]
    return Reply(tuple(struck), reply.usage)


def field(value: object, key: str) -> object:
    """``value[key]`` where that exists."""
    return value.get(key) if isinstance(value, dict) else None


def valid_unicode(text: str) -> str:
    """JSON may smuggle in lone surrogates, which neither pydantic nor a UTF-8 file takes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
