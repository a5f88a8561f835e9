"""The strong model behind an OpenAI-compatible endpoint: bodies and chunks pass through as the JSON that they are."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from pydantic import JsonValue

from cowest.models.address import address_of
from cowest.models.dialect import Dialect, Quirks, dialect_of
from cowest.models.exchange import Answered, Exchange, Patience, Written, persistently
from cowest.models.failures import EndpointError
from cowest.models.limiter import Limiter, Slot
from cowest.models.replies import flat, is_error
from cowest.models.secrets import Secrets
from cowest.models.stream import Assembler
from cowest.models.transport import Timeouts, Transport, TransportError
from cowest.models.untrusted import excerpt
from cowest.models.wire import request_body
from cowest.recipe.config import OpenAIModelConfig
from cowest.server.answers import chunks_of
from cowest.server.breaker import Breaker
from cowest.server.errors import ApiError, Unavailable
from cowest.server.request import TOKEN_LIMITS, Body, as_json
from cowest.server.room import Room
from cowest.types import Sampling

logger = logging.getLogger(__name__)

LONGEST_STREAM_S: Final = 3600.0
_FAULT_OF_THE_REQUEST: Final = frozenset({400, 413, 422})
_UNREACHED: Final = frozenset({"connection", "dns", "tls", "timeout", "stalled", "truncated", "too_large"})


class Backend(Protocol):
    """A model that answers OpenAI's JSON.

    ``until`` is the event loop's time by which the answer must be there (in a stream: must have begun). Raises Unavailable, or
    ApiError where the request is at fault.
    """

    def check(self, body: Body) -> None:
        """Raise ApiError for what can be told without the model to be beyond it, before anyone is asked."""
        ...

    async def complete(self, body: Body, until: float) -> Body:
        """The ``chat.completion``."""
        ...

    def stream(self, body: Body, until: float) -> AsyncGenerator[Body, None]:
        """The chunks as they arrive. A stream that breaks off raises Unavailable; close it to free the model."""
        ...

    async def aclose(self) -> None: ...


def with_defaults(body: Body, defaults: Body) -> Body:
    """``body`` with the defaults for what it leaves open (null is open); a limit of tokens has two names."""
    if any(body.get(name) is not None for name in TOKEN_LIMITS):
        defaults = {key: value for key, value in defaults.items() if key not in TOKEN_LIMITS}
    return body | {key: value for key, value in defaults.items() if body.get(key) is None}


@asynccontextmanager
async def patience(until: float, down: bool | None = True) -> AsyncIterator[None]:
    """Turns the deadline into Unavailable ``timeout``; ``down`` as there."""
    try:
        async with asyncio.timeout_at(until):
            yield
    except TimeoutError:
        raise _late(down) from None


def _late(down: bool | None) -> Unavailable:
    return Unavailable("timeout", "the model did not answer in time", down=down)


T = TypeVar("T")


@dataclass(slots=True)
class _Opened:
    """A stream that has begun."""

    held: AsyncExitStack
    first: Body
    rest: AsyncIterator[Body]


class HttpBackend:
    """A strong model over HTTP, with retries within the deadline, the recipe's rate limits and a breaker.

    ``answer`` is how the recipe samples; it counts where the client says nothing, but for max_tokens with ``own_limit``: then
    none is sent, and the model's own counts. ``attempted`` is told each attempt's outcome.
    """

    def __init__(
        self,
        config: OpenAIModelConfig,
        secrets: Secrets,
        answer: Sampling,
        breaker: Breaker,
        *,
        backoff_s: float = 0.5,
        attempted: Callable[[str], None] = lambda outcome: None,
        own_limit: bool = False,
        room: Room | None = None,
    ) -> None:
        self._config, self._secrets, self._answer, self._breaker = config, secrets, answer, breaker
        self._patience, self._attempted = Patience(config.max_attempts, 2 * backoff_s, 8.0, float("inf")), attempted
        self._own_limit, self._room = own_limit, room
        address, self._extra = address_of(config.base_url, secrets), secrets.fill_all(config.extra)
        short, long = (
            Transport(
                address.url,
                address.headers,
                Timeouts(total, config.connect_timeout_s, config.stall_timeout_s),
                config.ca_file,
            )
            for total in (config.timeout_s, LONGEST_STREAM_S)
        )
        thinks = config.extra.get("reasoning_effort") != "none"
        quirks = Quirks(
            config.token_limit, config.temperature, config.seed, config.system_prompt, config.structured, thinks=thinks
        )
        limiter = Limiter(
            config.concurrency, config.requests_per_minute, config.tokens_per_minute, longest_pause_s=30.0
        )
        self._exchange = Exchange("strong", short, long, dialect_of(config.model, quirks), limiter, secrets)

    def check(self, body: Body) -> None:
        """See Backend."""
        if self._room is not None:
            self._room.check(body)

    async def complete(self, body: Body, until: float) -> Body:
        """See Backend."""

        async def attempt() -> Body:
            down: bool | None = None  # the wait for a place is no fault of the model
            try:
                async with asyncio.timeout_at(until), self._exchange.limiter.slot(self._expected(body)) as slot:
                    down = True
                    return await self._ask(body, slot, self._whole)
            except TimeoutError:
                raise _late(down) from None

        with self._breaker.guarded():  # around the retries: one request that always fails does not stop the others
            return await self._retrying(attempt, until)

    async def stream(self, body: Body, until: float) -> AsyncGenerator[Body, None]:
        """See Backend."""
        with self._breaker.guarded():
            opened = await self._retrying(lambda: self._open(body, until), until)
        async with opened.held:
            yield opened.first
            try:
                async for chunk in opened.rest:
                    yield chunk
            except (EndpointError, TransportError) as error:
                raise _broken_off(error) from None

    async def aclose(self) -> None:
        """Close the connections."""
        await self._exchange.aclose()

    def _expected(self, body: Body) -> int:
        """The tokens that a call may take, where the recipe limits them."""
        if self._config.tokens_per_minute is None:
            return 0
        limit = next((n for name in TOKEN_LIMITS if isinstance(n := body.get(name), int)), self._answer.max_tokens)
        return len(json.dumps(body.get("messages"))) // 4 + limit

    async def _open(self, body: Body, until: float) -> _Opened:
        usage = isinstance(body.get("stream_options"), dict)

        async def begin(answer: Answered) -> tuple[Body, AsyncIterator[Body]]:
            chunks = answer.chunks or _replay(self._completion(answer.body), usage)  # a server that does not stream
            try:
                return await anext(chunks), chunks
            except StopAsyncIteration:
                raise EndpointError("bad_response", "", retry=True) from None

        async with AsyncExitStack() as held:
            async with patience(until, down=None):  # the wait for a place is no fault of the model
                slot = await held.enter_async_context(self._exchange.limiter.slot(self._expected(body)))
            async with patience(until):
                first, rest = await self._ask(body, slot, begin, held)
            return _Opened(held.pop_all(), first, rest)

    async def _whole(self, answer: Answered) -> Body:
        if answer.chunks is not None:  # a server that streams unasked
            return (await Assembler().all(answer.chunks)).payload()
        return self._completion(answer.body)

    def _completion(self, raw: bytes) -> Body:
        """A ``chat.completion``, its content as text and without secrets. Raises EndpointError for what is none."""
        try:
            answer: JsonValue = json.loads(raw)
        except (ValueError, RecursionError):
            answer = None
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(answer, dict) or not isinstance(choices, list) or not choices:
            raise EndpointError("server_error" if is_error(answer) else "bad_response", "", retry=True)
        for choice in choices:
            if isinstance(choice, dict) and isinstance(message := choice.get("message"), dict):
                choice["message"] = flat(message)
        return {key: self._secrets.strike_all(value) for key, value in answer.items()} if self._secrets else answer

    async def _ask(
        self, body: Body, slot: Slot, read: Callable[[Answered], Awaitable[T]], held: AsyncExitStack | None = None
    ) -> T:
        """One exchange; ``held`` for a stream. Raises Unavailable, and ApiError where the request is at fault."""

        def write(dialect: Dialect) -> Written:
            return self._written(body, dialect)

        try:
            return await self._exchange.ask(write, read, slot, stream=held is not None, held=held)
        except EndpointError as error:
            raise self._meaning(error) from None

    def _written(self, body: Body, dialect: Dialect) -> Written:
        """The request; only what the recipe added to it may be written otherwise."""
        defaults = request_body(self._config.model, (), self._answer, dialect, self._extra)
        del defaults["messages"], defaults["model"]
        if self._own_limit and dialect.token_limit not in self._config.extra:
            del defaults[dialect.token_limit]
        whole = with_defaults(body, defaults)
        ours = {key: value for key, value in defaults.items() if body.get(key) is None and key in whole}
        whole["model"] = self._config.model
        n = whole.get("n")
        return Written(as_json(whole), ours, n if isinstance(n, int) else 1)

    def _meaning(self, error: EndpointError) -> Unavailable | ApiError:
        """What a failure is to a client. The endpoint's own words only of its complaint about the request, which can be mended."""
        if error.status in _FAULT_OF_THE_REQUEST:
            told = excerpt(error.quote, self._secrets) or "the model's endpoint rejects the request"
            param, code = (value and excerpt(value, self._secrets) for value in (error.rejected, error.code))
            return ApiError(error.status, told, param=param, code=code)
        if error.status is not None:
            told = f"the model's endpoint answered HTTP {error.status}"
            down, wait = error.status != 429, error.retry_after_s
            return Unavailable(error.kind, told, down=down, retry=error.retry, retry_after_s=wait)
        if error.kind in _UNREACHED:
            retry = error.retry and error.kind != "too_large"
            return Unavailable(error.kind, f"the model's endpoint gave no answer ({error.kind})", retry=retry)
        return Unavailable(error.kind, "the model's endpoint answered nothing usable", retry=True)

    async def _retrying(self, attempt: Callable[[], Awaitable[T]], until: float) -> T:
        """Attempts until one succeeds, the recipe's ``max_attempts`` are made, or the next would begin after the deadline."""

        async def counted() -> T:
            try:
                done = await attempt()
            except Unavailable as error:
                self._attempted(error.kind)
                logger.debug("strong: an attempt failed: %s", error.kind)
                raise
            self._attempted("ok")
            return done

        return await persistently(counted, _hope, self._patience, until=until)


def _hope(error: Exception) -> float | None:
    return (error.retry_after_s or 0.0) if isinstance(error, Unavailable) and error.retry else None


def _broken_off(error: EndpointError | TransportError) -> Unavailable:
    """A stream that ended in the middle. The transport's words name the endpoint, which is no business of a client's."""
    kind = error.kind if error.kind in ("stalled", "timeout", "server_error") else "truncated"
    words = "stood still" if kind == "stalled" else "broke off"
    return Unavailable(kind, f"the model's stream {words}", retry=True)


async def _replay(whole: Body, with_usage: bool) -> AsyncIterator[Body]:
    for chunk in chunks_of(whole, with_usage):
        yield chunk
