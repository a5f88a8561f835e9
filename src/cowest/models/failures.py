"""Failed exchanges with an endpoint: what each means for the bill, for another attempt, and for who has to mend it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final

from cowest.errors import ModelCallError
from cowest.models.limiter import parse_retry_after, told_wait
from cowest.models.transport import TransportError
from cowest.models.untrusted import field
from cowest.types import Usage

RETRIED_STATUS: Final = frozenset({408, 409, 429})
"""Statuses below 500 that may pass by themselves; every 5xx is retried too."""
OVERLOADED_STATUS: Final = frozenset({429, 503, 529})
"""The endpoint has too much to do: fewer calls are made at once."""
ASKED_AGAIN: Final = frozenset({"bad_response", "no_choices", "empty"})
"""An answer came and is of no use. It was paid for and seldom changes, so it is asked for again only once."""
_NOTHING: Final = Usage()
_NO_HEADERS: Final[Mapping[str, str]] = {}
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

    ``usage`` is what it cost for sure, ``maybe_paid`` whether it may have cost something nobody knows. ``overloaded``: the endpoint
    has too much to do. ``status`` is that of an HTTP answer that is no success; ``rejected`` is its ``param``.
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
        self.status: int | None = None
        self.rejected: str | None = None
        self.code: str | None = None


def failed_exchange(error: TransportError) -> EndpointError:
    """What the transport tells, as a failed attempt."""
    return EndpointError(error.kind, str(error), retry=error.retry, quote=error.quote, maybe_paid=error.sent)


def check_status(status: int, body: bytes, headers: Mapping[str, str] = _NO_HEADERS) -> None:
    """Return for a 2xx status; raise an :class:`EndpointError` that says whether to try again for any other."""
    if 200 <= status < 300:
        return
    message, error = server_message(body)
    codes = tuple(c for c in (field(error, "code"), field(error, "type")) if isinstance(c, str))
    if 300 <= status < 400:
        hint, message = (
            "base_url redirects, which is not followed; set its target",
            headers.get("Location", "").split("?")[0],
        )
    elif status == 429 and out_of_quota(codes):
        hint = "the account's quota is used up; see the provider's billing page"
    else:
        hint = _HINTS.get(status, "")
    retry = (status >= 500 or status in RETRIED_STATUS) and not (status == 429 and out_of_quota(codes))
    wait = parse_retry_after(headers)
    failure = EndpointError(
        f"http_{status}",
        f"HTTP {status}: {hint}" if hint else f"HTTP {status}",
        retry=retry,
        quote=message,
        retry_after_s=wait if wait is not None or not retry else told_wait(body.decode("utf-8", "replace")),
        overloaded=status in OVERLOADED_STATUS,
    )
    param, code = field(error, "param"), field(error, "code")
    failure.status = status
    failure.rejected = param if isinstance(param, str) else None
    failure.code = code if isinstance(code, str) else None
    raise failure


def out_of_quota(codes: Sequence[str]) -> bool:
    """Whether a 429 means that the account is empty, which no waiting mends.

    Only codes tell: "exceeded your current quota" is also how Gemini speaks of a limit per minute.
    """
    return any(code == "insufficient_quota" or "billing" in code for code in codes)


def server_message(body: bytes) -> tuple[str, object]:
    """What an error body says, and its ``error`` object."""
    try:
        payload: object = json.loads(body)
    except (ValueError, RecursionError):
        return body.decode("utf-8", "replace"), None
    if isinstance(payload, list) and payload:  # Gemini wraps its error in a list
        payload = payload[0]
    return error_text(payload) or body.decode("utf-8", "replace"), field(payload, "error")


def error_text(payload: object) -> str | None:
    """The words of an error, wherever a server puts them."""
    error = field(payload, "error")
    for text in (field(error, "message"), error, field(payload, "message"), field(payload, "detail")):
        if isinstance(text, str):
            return text
    return None
