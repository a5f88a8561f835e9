"""The strong model behind an OpenAI-compatible endpoint: bodies and chunks pass through as the JSON that they are."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import aiohttp
from pydantic import JsonValue

from cowest.models.dialect import Dialect, Quirks, dialect_of, learn
from cowest.models.limiter import Limiter, Slot, parse_retry_after
from cowest.models.openai import PATH
from cowest.models.stream import EventReader, bounded
from cowest.models.transport import HttpReply, Timeouts, Transport, TransportError
from cowest.models.wire import (
    EndpointError,
    check_base_url,
    check_status,
    excerpt,
    field,
    rejected_field,
    request_body,
    server_message,
)
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
_TRIED_AGAIN: Final = frozenset({"truncated", "connection", "dns", "timeout", "stalled"})
T = TypeVar("T")


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
        key: str | None,
        answer: Sampling,
        breaker: Breaker,
        *,
        backoff_s: float = 0.5,
        attempted: Callable[[str], None] = lambda outcome: None,
        own_limit: bool = False,
        room: Room | None = None,
    ) -> None:
        self._config, self._key, self._answer, self._breaker = config, key, answer, breaker
        self._backoff_s, self._attempted = backoff_s, attempted
        self._own_limit, self._room = own_limit, room
        base, headers = check_base_url(config.base_url), {"Authorization": f"Bearer {key}"} if key else {}
        patience = Timeouts(config.timeout_s, config.connect_timeout_s, config.stall_timeout_s)
        long = Timeouts(LONGEST_STREAM_S, config.connect_timeout_s, config.stall_timeout_s)
        self._transport = Transport(base, headers, patience, config.ca_file)
        self._streams = Transport(base, headers, long, config.ca_file)
        self._limiter = Limiter(
            config.concurrency, config.requests_per_minute, config.tokens_per_minute, longest_pause_s=30.0
        )
        self._dialect = dialect_of(
            config.model,
            Quirks(config.token_limit, config.temperature, config.seed, config.system_prompt, config.structured),
        )

    def check(self, body: Body) -> None:
        """See Backend."""
        if self._room is not None:
            self._room.check(body)

    async def complete(self, body: Body, until: float) -> Body:
        """See Backend."""

        async def attempt() -> Body:
            down: bool | None = None  # the wait for a place is no fault of the model
            try:
                async with asyncio.timeout_at(until), self._limiter.slot(self._expected(body)) as slot:
                    down = True
                    answer = await self._exchange(body, slot)
            except TimeoutError:
                raise _late(down) from None
            self._limiter.succeeded()
            return answer

        with self._breaker.guarded():  # around the retries: one request that always fails does not stop the others
            return await self._retrying(attempt, until)

    async def stream(self, body: Body, until: float) -> AsyncGenerator[Body, None]:
        """See Backend."""
        with self._breaker.guarded():
            opened = await self._retrying(lambda: self._open(body, until), until)
        async with opened.held:
            yield opened.first
            async for chunk in opened.rest:
                yield chunk

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()
        await self._streams.aclose()

    def _expected(self, body: Body) -> int:
        """The tokens that a call may take, where the recipe limits them."""
        if self._config.tokens_per_minute is None:
            return 0
        limit = next((n for name in TOKEN_LIMITS if isinstance(n := body.get(name), int)), self._answer.max_tokens)
        return len(json.dumps(body.get("messages"))) // 4 + limit

    async def _exchange(self, body: Body, slot: Slot) -> Body:
        while True:
            used = self._dialect
            sent, ours = self._written(body, used)
            try:
                got = await self._transport.post(PATH, sent)
            except TransportError as error:
                raise _unreachable(error) from None
            self._heed(got, slot)
            if self._learn(got, ours, used):
                continue
            return self._read(got)

    async def _open(self, body: Body, until: float) -> _Opened:
        async with AsyncExitStack() as held:
            async with patience(until, down=None):  # the wait for a place is no fault of the model
                slot = await held.enter_async_context(self._limiter.slot(self._expected(body)))
            async with patience(until):
                chunks = await self._begin(held, body, slot)
                try:
                    first = await anext(chunks)
                except StopAsyncIteration:
                    raise Unavailable("bad_response", "the model's stream was empty", retry=True) from None
            self._limiter.succeeded()
            return _Opened(held.pop_all(), first, chunks)

    async def _begin(self, held: AsyncExitStack, body: Body, slot: Slot) -> AsyncIterator[Body]:
        """The chunks of a stream that the endpoint has accepted."""
        while True:
            used = self._dialect
            sent, ours = self._written(body, used)
            exchange = AsyncExitStack()
            try:
                status, headers, pieces = await exchange.enter_async_context(self._streams.stream(PATH, sent))
            except TransportError as error:
                raise _unreachable(error) from None
            held.push_async_exit(exchange)
            kind = headers.get("Content-Type", "")
            if status == 200 and "json" not in kind and "html" not in kind:
                return _chunks(pieces)
            got = HttpReply(status, headers, await _whole(pieces))
            await exchange.aclose()
            self._heed(got, slot)
            if self._learn(got, ours, used):
                continue
            whole = self._read(got)  # a server that does not stream
            return _replay(whole, isinstance(body.get("stream_options"), dict))

    def _written(self, body: Body, dialect: Dialect) -> tuple[bytes, Body]:
        """The request as sent, and the part of it that is ours."""
        defaults = request_body(self._config.model, (), self._answer, dialect, self._config.extra)
        del defaults["messages"], defaults["model"]
        if self._own_limit and dialect.token_limit not in self._config.extra:
            del defaults[dialect.token_limit]
        whole = with_defaults(body, defaults)
        ours = {key: value for key, value in defaults.items() if body.get(key) is None and key in whole}
        whole["model"] = self._config.model
        return as_json(whole), ours

    def _learn(self, got: HttpReply, ours: Body, used: Dialect) -> bool:
        """Whether requests are now written otherwise than this one, of which the endpoint rejected a field that we added."""
        if got.status not in (400, 422):
            return False
        if self._dialect != used:
            return True
        learned = learn(used, ours, server_message(got.body)[0], rejected_field(got.body))
        if learned is None:
            return False
        self._dialect = learned
        return True

    def _heed(self, got: HttpReply, slot: Slot) -> None:
        self._limiter.note(got.headers)
        if got.status in (429, 503, 529):
            self._limiter.overloaded(slot, parse_retry_after(got.headers))

    def _read(self, got: HttpReply) -> Body:
        """The completion. Raises ApiError where the request was at fault, else Unavailable."""
        if got.status in _FAULT_OF_THE_REQUEST:
            raise self._rejected(got)
        try:
            check_status(got.status, got.body, parse_retry_after(got.headers))
        except EndpointError as error:
            down = got.status != 429
            message = f"the model's endpoint answered HTTP {got.status}"
            raise Unavailable(
                error.kind, message, down=down, retry=error.retry, retry_after_s=error.retry_after_s
            ) from None
        try:
            answer: JsonValue = json.loads(got.body)
        except (ValueError, RecursionError):
            raise Unavailable("bad_response", "the model's endpoint answered no JSON", retry=True) from None
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(answer, dict) or not isinstance(choices, list) or not choices:
            kind = "server_error" if field(answer, "error") else "bad_response"
            raise Unavailable(kind, "the model's endpoint answered nothing usable", retry=True)
        return answer

    def _rejected(self, got: HttpReply) -> ApiError:
        """The endpoint's own complaint about the request, which the client can mend."""
        message, _ = server_message(got.body)
        try:
            error = field(json.loads(got.body), "error")
        except (ValueError, RecursionError):
            error = None
        param, code = field(error, "param"), field(error, "code")
        return ApiError(
            got.status,
            excerpt(message, self._key) or "the model's endpoint rejects the request",
            param=excerpt(param, self._key) if isinstance(param, str) else None,
            code=excerpt(code, self._key) if isinstance(code, str) else None,
        )

    async def _retrying(self, attempt: Callable[[], Awaitable[T]], until: float) -> T:
        """Attempts until one succeeds, the recipe's ``max_attempts`` are made, or the next would begin after the deadline."""
        loop = asyncio.get_running_loop()
        for number in itertools.count(1):
            try:
                done = await attempt()
            except Unavailable as error:
                self._attempted(error.kind)
                logger.debug("strong: attempt %d failed: %s", number, error.kind)
                pause = random.uniform(0, min(8.0, self._backoff_s * 2**number)) + (error.retry_after_s or 0.0)
                if not error.retry or number >= self._config.max_attempts or loop.time() + pause >= until:
                    raise
            else:
                self._attempted("ok")
                return done
            await asyncio.sleep(pause)
        raise AssertionError("unreachable: count() has no end")


def _unreachable(error: TransportError) -> Unavailable:
    """Without the transport's words: they name the endpoint, which is no business of a client's."""
    retry = error.retry and error.kind in _TRIED_AGAIN
    return Unavailable(error.kind, f"the model's endpoint gave no answer ({error.kind})", retry=retry)


async def _whole(pieces: AsyncIterator[bytes]) -> bytes:
    try:
        return b"".join([piece async for piece in bounded(pieces)])
    except (OSError, aiohttp.ClientError, EndpointError):
        raise Unavailable("truncated", "the model's answer broke off", retry=True) from None


async def _replay(whole: Body, with_usage: bool) -> AsyncIterator[Body]:
    for chunk in chunks_of(whole, with_usage):
        yield chunk


async def _chunks(pieces: AsyncIterator[bytes]) -> AsyncIterator[Body]:
    """The chunks of a stream of server-sent events, up to ``[DONE]``. Raises Unavailable for one that breaks off."""
    reader, ended = EventReader(), False
    try:
        async for piece in bounded(pieces):
            for event in reader.feed(piece):
                if event.data.strip() == "[DONE]":
                    return
                chunk = _chunk(event.data)
                ended = ended or _has_end(chunk)
                yield chunk
    except TimeoutError:
        raise Unavailable("stalled", "the model's stream stood still", retry=True) from None
    except (OSError, aiohttp.ClientError, EndpointError):
        raise Unavailable("truncated", "the model's stream broke off", retry=True) from None
    for event in reader.finish():
        if event.data.strip() != "[DONE]":
            chunk = _chunk(event.data)
            ended = ended or _has_end(chunk)
            yield chunk
        else:
            ended = True
    if not ended:
        raise Unavailable("truncated", "the model's stream broke off", retry=True)


def _chunk(data: str) -> Body:
    try:
        chunk: JsonValue = json.loads(data)
    except (ValueError, RecursionError):
        chunk = None
    if not isinstance(chunk, dict) or chunk.get("error"):
        raise Unavailable("server_error", "the model's endpoint broke its stream off", retry=True)
    return chunk


def _has_end(chunk: Body) -> bool:
    choices = chunk.get("choices")
    return isinstance(choices, list) and any(field(choice, "finish_reason") for choice in choices)
