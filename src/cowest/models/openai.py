"""A black-box model behind any OpenAI-compatible endpoint: the usual strong model pi_s of the paper.

One request is ``POST {base_url}/chat/completions``; the mapping to and from its JSON is in the pure functions
:func:`request_body` and :func:`parse_reply`. A thin client on aiohttp, because it takes a small fraction of the
CPU time per call that the SDKs take. Whatever the endpoint sends back is untrusted: it is checked,
excerpted and cleared of the key before it can reach an error message.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from cowest.errors import ConfigError, ModelCallError
from cowest.types import Completion, Message, Sampling, Usage

logger = logging.getLogger(__name__)

RETRIED_STATUS = frozenset({408, 409, 429})
"""Statuses below 500 that may pass by themselves; every 5xx is retried too."""
UNUSABLE_KINDS = frozenset({"bad_response", "empty"})
"""An answer came and cannot be used. It was paid for and seldom changes, so it is asked for again only once."""
UNUSABLE_ATTEMPTS = 2
EXCERPT_CHARS = 200

_HINTS = {
    400: "the endpoint rejects the request; check model and the sampling settings (max_tokens, temperature)",
    401: "the key was not accepted; check the variable named by api_key_env",
    403: "the key has no right to this; check the variable named by api_key_env, and model",
    404: "nothing there; check base_url (it usually ends in /v1) and model",
    405: "the endpoint does not take this request; check base_url (it usually ends in /v1)",
    413: "the request is too long for the endpoint; shorten the input or choose another model",
    422: "the endpoint rejects the request; check model and the sampling settings (max_tokens, temperature)",
}


class EndpointError(ModelCallError):
    """One failed attempt. ``quote`` is raw text from outside: only :func:`excerpt` of it may be shown."""

    def __init__(
        self, kind: str, message: str, *, retry: bool, quote: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(kind, message)
        self.retry = retry
        self.quote = quote
        self.retry_after_s = retry_after_s


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


def request_body(model: str, messages: Sequence[Message], sampling: Sampling) -> dict[str, object]:
    """The JSON of one request; ``top_p`` 1 and an absent seed are left out, as some endpoints reject them."""
    body: dict[str, object] = {
        "model": model,
        "messages": [{"role": m.role, "content": m.content} for m in messages],
        "temperature": sampling.temperature,
        "max_tokens": sampling.max_tokens,
    }
    if sampling.top_p != 1:
        body["top_p"] = sampling.top_p
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    return body


def parse_reply(body: bytes) -> Completion:
    """The completion in a 2xx body (``latency_s`` 0). Raises :class:`EndpointError` ``bad_response`` or ``empty``."""
    raw = body.decode("utf-8", "replace")
    try:
        payload: object = json.loads(body)
    except (ValueError, RecursionError):
        hint = "the endpoint's answer is not JSON; check base_url (it usually ends in /v1)"
        raise EndpointError("bad_response", hint, retry=True, quote=raw) from None
    choices = _field(payload, "choices")
    message = _field(choices[0], "message") if isinstance(choices, list) and choices else None
    if not isinstance(message, dict):
        raise EndpointError("bad_response", "the endpoint's answer holds no choice", retry=True, quote=raw)
    text = message.get("content")
    if text is not None and not isinstance(text, str):
        raise EndpointError("bad_response", "the answer's content is not text", retry=True, quote=raw)
    reason = _field(choices[0], "finish_reason") if isinstance(choices, list) else None
    finish_reason = _valid_unicode(reason) if isinstance(reason, str) else "unknown"
    if text is None or not text.strip():
        hint = "; raise max_tokens" if finish_reason == "length" else ""
        raise EndpointError(
            "empty", f"the model answered no text{hint}", retry=True, quote=f"finish_reason {finish_reason}"
        )
    return Completion(text=_valid_unicode(text), finish_reason=finish_reason, usage=_usage(payload))


def check_status(status: int, retry_after: str | None, body: bytes, location: str | None = None) -> None:
    """Return for a 2xx status; raise an :class:`EndpointError` that says whether to try again for any other."""
    if 200 <= status < 300:
        return
    kind = f"http_{status}"
    if 300 <= status < 400:
        where = (location or "").split("?")[0]
        raise EndpointError(
            kind, f"HTTP {status}: base_url redirects, which is not followed; set its target", retry=False, quote=where
        )
    retry = status >= 500 or status in RETRIED_STATUS
    hint = f": {_HINTS[status]}" if status in _HINTS else ""
    raise EndpointError(
        kind, f"HTTP {status}{hint}", retry=retry, quote=_server_message(body), retry_after_s=parse_seconds(retry_after)
    )


def parse_seconds(value: str | None) -> float | None:
    """A ``Retry-After`` header in seconds; None for its date form or nonsense (the back-off then decides alone)."""
    try:
        seconds = float(value or "")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def excerpt(text: str, secret: str | None) -> str:
    """Untrusted text for an error message: without the secret, printable, on one line and short."""
    if secret:  # before cutting, or half of it could remain
        text = text.replace(secret, "***")
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= EXCERPT_CHARS else line[:EXCERPT_CHARS] + "..."


def transport_failure(error: OSError | aiohttp.ClientError, timeout_s: float) -> EndpointError:
    """What a failed exchange means; the original is not chained, as its repr can hold the request's headers."""
    if isinstance(error, TimeoutError):
        return EndpointError("timeout", f"no full answer within {timeout_s:g} s (timeout_s)", retry=True)
    # A bad certificate or URL stays bad.
    retry = not isinstance(error, aiohttp.ClientSSLError | aiohttp.InvalidURL)
    message = f"connection to base_url failed ({type(error).__name__})"
    return EndpointError("connection", message, retry=retry, quote=str(error))


def _field(value: object, key: str) -> object:
    return value.get(key) if isinstance(value, dict) else None


def _valid_unicode(text: str) -> str:
    """JSON may smuggle in lone surrogates, which neither pydantic nor a UTF-8 file takes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _usage(payload: object) -> Usage:
    """A missing or odd count is 0: it must not lose an answer that was paid for."""
    usage = _field(payload, "usage")
    counts = [_field(usage, key) for key in ("prompt_tokens", "completion_tokens")]
    tokens = [c if isinstance(c, int) and not isinstance(c, bool) and c >= 0 else 0 for c in counts]
    return Usage(calls=1, input_tokens=tokens[0], output_tokens=tokens[1])


def _server_message(body: bytes) -> str:
    """``error.message`` where the body has the OpenAI shape, else the body."""
    try:
        message = _field(_field(json.loads(body), "error"), "message")
    except (ValueError, RecursionError):
        message = None
    return message if isinstance(message, str) else body.decode("utf-8", "replace")


def _may_retry(error: BaseException) -> bool:
    return isinstance(error, EndpointError) and error.retry


@dataclass(frozen=True)
class _Connection:
    """What belongs to one event loop."""

    loop: asyncio.AbstractEventLoop
    session: aiohttp.ClientSession
    slots: asyncio.Semaphore


class OpenAIChatModel:
    """A :class:`cowest.protocols.ChatModel` over an OpenAI-compatible endpoint.

    At most ``concurrency`` calls are under way; a call that waits to try again keeps its slot, so that an
    overloaded endpoint sees fewer requests and not more. Connection errors, time-outs and statuses 408, 409, 429
    and 5xx are tried up to ``max_attempts`` times; an unusable answer twice. The wait is random up to
    ``backoff_s * 2**n`` seconds, plus the endpoint's ``Retry-After``, and never above ``max_wait_s``.
    ``timeout_s`` holds for each attempt. Raises :class:`ConfigError` for a value that cannot be right.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key: str | None,
        concurrency: int = 16,
        timeout_s: float = 120,
        max_attempts: int = 6,
        name: str | None = None,
        backoff_s: float = 1.0,
        max_wait_s: float = 60.0,
    ) -> None:
        if not model.strip():
            raise ConfigError("model: must not be empty")
        if api_key is not None and not (api_key and all("!" <= c <= "~" for c in api_key)):
            raise ConfigError("api_key_env: the key is empty or holds blanks or characters that no key has")
        for setting, number, low in (("concurrency", concurrency, 1), ("max_attempts", max_attempts, 1)):
            if number < low:
                raise ConfigError(f"{setting}: {number} must be at least {low}")
        if not (math.isfinite(timeout_s) and timeout_s > 0):
            raise ConfigError(f"timeout_s: {timeout_s} must be above 0")
        for setting, seconds in (("backoff_s", backoff_s), ("max_wait_s", max_wait_s)):
            if not (math.isfinite(seconds) and seconds >= 0):
                raise ConfigError(f"{setting}: {seconds} must be 0 or more")
        self._url = check_base_url(base_url) + "/chat/completions"
        self._model = model
        self._api_key = api_key
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._max_attempts = max_attempts
        self._name = name or model
        self._jitter = wait_random_exponential(multiplier=backoff_s, max=max_wait_s)
        self._max_wait_s = max_wait_s
        self._connection: _Connection | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self._model!r}, url={self._url!r})"

    @property
    def name(self) -> str:
        """The name given, else the model's."""
        return self._name

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Ask once, with retries. ``usage`` is that of the answer returned, 0 tokens where the endpoint tells none.

        Raises :class:`ModelCallError` with kind ``connection``, ``timeout``, ``http_STATUS``, ``bad_response`` or
        ``empty``; its message names the setting to look at and never holds the key.
        """
        started = time.perf_counter()
        connection = await self._connect()
        retrying = AsyncRetrying(
            retry=retry_if_exception(_may_retry),
            wait=self._wait,
            stop=self._stop(),
            before_sleep=self._log_retry,
            reraise=True,
        )
        body = request_body(self._model, messages, sampling)
        try:
            async with connection.slots:
                completion: Completion = await retrying(self._attempt, connection.session, body)
        except EndpointError as error:
            failure = self._report(error, int(retrying.statistics.get("attempt_number", 1)))
        else:
            return completion.model_copy(update={"latency_s": time.perf_counter() - started})
        raise failure  # outside the except block: nothing raw stays chained to it

    async def aclose(self) -> None:
        """Close the connections. May be called twice; a later ``generate`` opens new ones."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.session.close()

    async def _connect(self) -> _Connection:
        """The running loop's session; a session of an earlier loop (a second ``asyncio.run``) is closed."""
        loop = asyncio.get_running_loop()
        old = self._connection
        if old is not None and old.loop is loop:
            return old
        connection = _Connection(
            loop=loop,
            session=aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),  # the slots are the one limit
                timeout=aiohttp.ClientTimeout(total=self._timeout_s),
                headers={"Authorization": f"Bearer {self._api_key}"} if self._api_key else None,
            ),
            slots=asyncio.Semaphore(self._concurrency),
        )
        self._connection = connection  # before any await, so that concurrent first calls share it
        if old is not None:
            await old.session.close()
        return connection

    async def _attempt(self, session: aiohttp.ClientSession, body: dict[str, object]) -> Completion:
        try:
            # A redirect would carry the key to a host that nobody configured.
            async with session.post(self._url, json=body, allow_redirects=False) as response:
                content = await response.read()
                status, headers = response.status, response.headers
        except (OSError, aiohttp.ClientError) as error:
            failure = transport_failure(error, self._timeout_s)
        else:
            check_status(status, headers.get("Retry-After"), content, headers.get("Location"))
            return parse_reply(content)
        raise failure

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after_s if isinstance(error, EndpointError) else None
        return min(self._max_wait_s, self._jitter(state) + (asked or 0.0))

    def _stop(self) -> Callable[[RetryCallState], bool]:
        """The stopping rule of one call; tenacity asks it once per failed attempt."""
        unusable = 0

        def stop(state: RetryCallState) -> bool:
            nonlocal unusable
            error = state.outcome.exception() if state.outcome else None
            unusable += isinstance(error, EndpointError) and error.kind in UNUSABLE_KINDS
            return unusable >= UNUSABLE_ATTEMPTS or state.attempt_number >= self._max_attempts

        return stop

    def _log_retry(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        kind = error.kind if isinstance(error, ModelCallError) else type(error).__name__
        wait = state.next_action.sleep if state.next_action else 0.0
        logger.info("%s: %s; attempt %d follows in %.1f s", self._name, kind, state.attempt_number + 1, wait)

    def _report(self, error: EndpointError, attempts: int) -> ModelCallError:
        said = excerpt(error.quote, self._api_key)
        tries = f" ({attempts} attempts)" if attempts > 1 else ""
        return ModelCallError(
            error.kind, f"{self._name} at {self._url}: {error}{tries}" + (f": {said}" if said else "")
        )
