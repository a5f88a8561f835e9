"""One exchange with an endpoint, for the client and for the server's upstream: written, sent, paced, understood, learned from."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final, TypeVar

from cowest.models.chunks import Chunk, bounded, read_chunks
from cowest.models.dialect import Dialect, about_tools, learn
from cowest.models.events import begins_events
from cowest.models.failures import EndpointError, check_status, failed_exchange
from cowest.models.limiter import Limiter, Slot
from cowest.models.secrets import Secrets
from cowest.models.transport import Transport, TransportError

logger = logging.getLogger(__name__)

PATH: Final = "chat/completions"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Written:
    """A request for ``n`` samples in some dialect.

    ``learnable`` are those of its fields that may be written otherwise if the endpoint complains.
    """

    body: bytes
    learnable: Mapping[str, object]
    n: int = 1


@dataclass(frozen=True, slots=True)
class Answered:
    """A success: the ``chunks`` of a stream, or else the whole ``body``. Some servers stream unasked, some never do."""

    chunks: AsyncIterator[Chunk] | None
    body: bytes = b""


class Exchange:
    """Chat completions at one endpoint, called ``name`` in the log.

    ``limiter`` is whose slots are given; ``dialect`` how requests are written by now.
    ``streams`` are the connections for streams, with a patience of their own.
    """

    def __init__(
        self, name: str, transport: Transport, streams: Transport, dialect: Dialect, limiter: Limiter, secrets: Secrets
    ) -> None:
        self._name = name
        self._transport, self._streams = transport, streams
        self.dialect, self.limiter, self.secrets = dialect, limiter, secrets

    async def ask(
        self,
        write: Callable[[Dialect], Written],
        read: Callable[[Answered], Awaitable[T]],
        slot: Slot,
        *,
        stream: bool,
        failed: Callable[[EndpointError], None] = lambda error: None,
        held: AsyncExitStack | None = None,
    ) -> T:
        """What ``read`` makes of the answer to one request.

        What a 400 teaches is applied at once, with another request. ``held`` gets the connection of a stream that is read on
        later; without it the connection is done with. ``failed`` hears of each request that failed, also where it taught.
        Raises EndpointError; what else ``read`` raises goes through.
        """
        while True:
            used = self.dialect
            written = write(used)
            failure: EndpointError
            try:
                async with AsyncExitStack() as opened:
                    done = await read(await self._open(opened, written, slot, stream))
                    if held is not None:
                        held.push_async_exit(opened.pop_all())
                self.limiter.succeeded()
                return done
            except EndpointError as error:
                failure = error
            except TransportError as error:
                failure = failed_exchange(error)
            failed(failure)
            if not self._learn(failure, written.learnable, used):
                raise failure  # outside the except block: nothing raw stays chained to it

    async def aclose(self) -> None:
        """Close the connections. May be called twice; a later request opens new ones."""
        await self._transport.aclose()
        await self._streams.aclose()

    async def _open(self, opened: AsyncExitStack, written: Written, slot: Slot, stream: bool) -> Answered:
        pieces: AsyncIterator[bytes]
        if stream:
            status, headers, pieces = await opened.enter_async_context(self._streams.stream(PATH, written.body))
        else:
            got = await self._transport.post(PATH, written.body)
            status, headers, pieces = got.status, got.headers, _one(got.body)
        self.limiter.note(headers)
        if not 200 <= status < 300:
            try:
                check_status(status, b"".join([piece async for piece in bounded(pieces)]), headers)
            except EndpointError as error:
                if error.overloaded:
                    self.limiter.overloaded(slot, error.retry_after_s)
                raise
        return await self._answered(pieces, "event-stream" in headers.get("Content-Type", ""), written.n)

    async def _answered(self, pieces: AsyncIterator[bytes], events: bool, n: int) -> Answered:
        """A stream is known by its type, or by how it begins: some call it text or JSON."""
        head = b""
        if not events:
            async for piece in pieces:
                head += piece
                if len(head.lstrip()) >= _ENOUGH:
                    break
        if events or begins_events(head):
            return Answered(read_chunks(_chained(head, pieces), n, self.secrets))
        return Answered(None, b"".join([piece async for piece in bounded(_chained(head, pieces))]))

    def _learn(self, failure: EndpointError, learnable: Mapping[str, object], used: Dialect) -> bool:
        """Whether requests are now written otherwise than this one, which the endpoint rejected."""
        toolless = failure.status in _NO_TOOLS and about_tools(learnable, failure.quote)
        if failure.status not in (400, 422) and not toolless:
            return False
        if self.dialect != used:
            return True  # another call has learned meanwhile
        learned = learn(used, learnable, failure.quote, failure.rejected)
        if learned is None:
            return False
        told = "%s: the endpoint rejects a field; requests are written otherwise from now on: %s"
        logger.info(told, self._name, learned)
        self.dialect = learned
        return True


_NO_TOOLS: Final = (404, 500, 501)
"""What some servers say, beside 400, where a model or a server has no tool calls: OpenRouter, llama.cpp."""
_ENOUGH: Final = 9
"""Bytes, blanks at the beginning apart, that show every name of a field of an event, after a byte order mark."""


async def _one(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _chained(head: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield head
    async for piece in pieces:
        yield piece


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how long to try: the wait before attempt n + 1 is random up to ``backoff_s * 2**(n - 1)`` seconds.

    That is at most ``most_backoff_s``; with what the endpoint asked for, at most ``most_wait_s``.
    """

    attempts: int
    backoff_s: float
    most_backoff_s: float
    most_wait_s: float

    def wait(self, attempt: int, asked_s: float) -> float:
        """Seconds after this attempt, of which the first is 1."""
        return min(
            self.most_wait_s,
            random.uniform(0, min(self.most_backoff_s, self.backoff_s * 2.0 ** (attempt - 1))) + asked_s,
        )


async def persistently(
    attempt: Callable[[], Awaitable[T]],
    hope: Callable[[Exception], float | None],
    patience: Patience,
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    until: float = float("inf"),
    before_sleep: Callable[[Exception, int, float], None] = lambda error, number, seconds: None,
) -> T:
    """Attempt until it succeeds, ``patience`` ends, the next would begin after ``until`` (of the event loop), or there is no hope.

    ``hope`` gives the seconds that the endpoint asked to wait; None: another attempt would do no better.
    """
    loop = asyncio.get_running_loop()
    for number in itertools.count(1):
        try:
            return await attempt()
        except Exception as error:
            asked = hope(error)
            wait = patience.wait(number, asked or 0.0)
            if asked is None or number >= patience.attempts or loop.time() + wait >= until:
                raise
            before_sleep(error, number, wait)
        await sleep(wait)
    raise AssertionError("unreachable: count() has no end")
