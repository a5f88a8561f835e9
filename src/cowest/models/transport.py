"""One HTTP exchange on aiohttp, nothing about models: TLS, proxy, time-outs, and failures that say what they mean for the bill."""

from __future__ import annotations

import asyncio
import ssl
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import aiohttp
from yarl import URL

from cowest.errors import ConfigError
from cowest.models.address import joined

MAX_BODY: Final = 64 * 2**20
"""Bytes of an answer, unpacked; a server that sends more is broken, and its answer is not gathered without bound."""

KEEP_ALIVE_S: Final = 4.0
"""Many servers (uvicorn, Node) drop a connection idle for 5 s: a request sent just then would be lost, and perhaps paid."""

Kind = Literal["connection", "dns", "tls", "timeout", "stalled", "truncated", "too_large"]


@dataclass(frozen=True, slots=True)
class HttpReply:
    """An answer. ``headers`` are case-insensitive."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class TransportError(Exception):
    """A failed exchange. ``sent``: the request may have reached the server, so that it may have to be paid for.

    ``quote`` comes from the system or the server: only an excerpt of it may be shown. The original is never chained, as
    its repr can hold the request's headers, and so the key.
    """

    def __init__(self, kind: Kind, message: str, *, sent: bool, retry: bool = True, quote: str = "") -> None:
        super().__init__(message)
        self.kind, self.sent, self.retry, self.quote = kind, sent, retry, quote


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds.

    ``total`` for a whole exchange, ``connect`` until the connection stands, ``stall`` between two pieces of a stream.
    """

    total: float = 120.0
    connect: float = 10.0
    stall: float = 60.0


class Transport:
    """Connections to one server. Redirects are never followed: they would carry the key to a host that nobody configured.

    Certificates are always verified; ``ca_file`` (PEM) adds to the system's. A proxy is taken from the environment (HTTPS_PROXY,
    NO_PROXY). Usable in several event loops one after the other. Raises ConfigError for a ``ca_file`` that cannot be read, and
    for a proxy that is no HTTP proxy.
    """

    def __init__(
        self, base_url: str, headers: Mapping[str, str], timeouts: Timeouts = Timeouts(), ca_file: Path | None = None
    ) -> None:
        self._base = base_url
        self._headers = dict(headers)
        # Whichever ends first decides whether the request may have been sent: that must not be the total for lack of a connection.
        self._timeouts = replace(timeouts, connect=min(timeouts.connect, 0.9 * timeouts.total))
        self._ssl = _ssl_context(ca_file)
        self._proxy = _proxy(URL(self._base))
        self._urls: dict[str, URL] = {}
        self._session: tuple[asyncio.AbstractEventLoop, aiohttp.ClientSession] | None = None

    async def post(self, path: str, body: bytes) -> HttpReply:
        """POST JSON and read the whole answer. Raises TransportError."""
        return await self.request("POST", path, data=body, headers=_JSON)

    async def request(
        self,
        method: str,
        path: str,
        *,
        data: bytes | aiohttp.FormData | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> HttpReply:
        """One exchange with ``path`` below the base URL. Raises TransportError."""
        session = await self._connect()
        try:
            async with session.request(
                method, self._url(path), data=data, headers=headers, allow_redirects=False, proxy=self._proxy
            ) as response:
                content = await _read(response)
                return HttpReply(response.status, response.headers, content)
        except _FAILURES as error:
            failure = _meaning(error, self._timeouts)
        raise failure  # outside the except block: nothing raw stays chained to it

    @asynccontextmanager
    async def stream(
        self, path: str, body: bytes
    ) -> AsyncIterator[tuple[int, Mapping[str, str], AsyncIterator[bytes]]]:
        """POST JSON; gives status, headers and the pieces of the body as they come. Raises TransportError, also on the way."""
        session = await self._connect()
        t = self._timeouts
        patience = aiohttp.ClientTimeout(total=t.total, connect=t.connect, sock_read=t.stall)
        failure: TransportError
        try:
            async with session.post(
                self._url(path), data=body, headers=_JSON, allow_redirects=False, proxy=self._proxy, timeout=patience
            ) as response:
                yield response.status, response.headers, _pieces(response, t)
            return
        except _FAILURES as error:
            failure = _meaning(error, t)
        raise failure

    async def aclose(self) -> None:
        """Close the connections. May be called twice; a later request opens new ones."""
        held, self._session = self._session, None
        if held is not None:
            await held[1].close()

    def _url(self, path: str) -> URL:
        url = self._urls.get(path)
        if url is None:
            url = URL(joined(self._base, path), encoded=True)
            if len(self._urls) < 64:
                self._urls[path] = url
        return url

    async def _connect(self) -> aiohttp.ClientSession:
        """The running loop's session; that of an earlier loop (a second ``asyncio.run``) is closed."""
        loop, held = asyncio.get_running_loop(), self._session
        if held is not None and held[0] is loop:
            return held[1]
        session = aiohttp.ClientSession(
            # How many are under way is the limiter's business.
            connector=aiohttp.TCPConnector(limit=0, ssl=self._ssl, keepalive_timeout=KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=self._timeouts.total, connect=self._timeouts.connect),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            skip_auto_headers=("Accept-Encoding",),  # answers are short: packing them costs more than it saves
        )
        self._session = (loop, session)  # before any await, so that concurrent first calls share it
        if held is not None:
            await held[1].close()
        return session


_JSON: Final = {"Content-Type": "application/json"}
_FAILURES: Final = (OSError, aiohttp.ClientError, UnicodeError)  # the last: a host that no DNS name can be


async def _read(response: aiohttp.ClientResponse) -> bytes:
    length = response.content_length
    if length is not None and length <= MAX_BODY and "Content-Encoding" not in response.headers:
        return await response.read()
    pieces, size = [], 0
    async for piece in response.content.iter_any():
        size += len(piece)
        if size > MAX_BODY:
            raise aiohttp.ClientPayloadError(_TOO_LARGE)
        pieces.append(piece)
    return b"".join(pieces)


async def _pieces(response: aiohttp.ClientResponse, timeouts: Timeouts) -> AsyncIterator[bytes]:
    """The body as it comes. Raises TransportError; also when it is read after its connection was handed on."""
    try:
        async for piece in response.content.iter_any():
            yield piece
        return
    except _FAILURES as error:
        failure = _meaning(error, timeouts)
    raise failure


_TOO_LARGE: Final = f"the answer is longer than {MAX_BODY} bytes"


def _meaning(error: OSError | aiohttp.ClientError | UnicodeError, timeouts: Timeouts) -> TransportError:
    """What a failure means; the order goes from the special to the general."""
    name = type(error).__name__
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        message = f"no connection to base_url within {timeouts.connect:g} s (connect_timeout_s)"
        return TransportError("timeout", message, sent=False)
    if isinstance(error, aiohttp.SocketTimeoutError):
        return TransportError(
            "stalled", f"the stream stood still for {timeouts.stall:g} s (stall_timeout_s)", sent=True
        )
    if isinstance(error, TimeoutError):
        return TransportError("timeout", f"no full answer within {timeouts.total:g} s (timeout_s)", sent=True)
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        hint = "the certificate of base_url was not accepted (ca_file adds certificates to trust)"
        return TransportError("tls", hint, sent=False, retry=False, quote=str(error))
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return TransportError("dns", "the host in base_url was not found", sent=False, quote=str(error.os_error))
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        message = "connection to the environment's proxy failed (HTTPS_PROXY, NO_PROXY)"
        return TransportError("connection", message, sent=False, quote=str(error.os_error))
    if isinstance(error, aiohttp.ClientConnectorError):
        return TransportError(
            "connection", f"connection to base_url failed ({name})", sent=False, quote=str(error.os_error)
        )
    if isinstance(error, aiohttp.InvalidURL | UnicodeError):
        return TransportError("connection", "base_url cannot be reached as it is written", sent=False, retry=False)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        message = f"the environment's proxy (HTTPS_PROXY, NO_PROXY) refused with status {error.status}"
        return TransportError("connection", message, sent=False, retry=error.status == 429 or error.status >= 500)
    if isinstance(error, aiohttp.ClientPayloadError):
        kind: Kind = "too_large" if _TOO_LARGE in str(error) else "truncated"
        return TransportError(kind, "the answer broke off" if kind == "truncated" else _TOO_LARGE, sent=True)
    return TransportError("connection", f"the connection to base_url broke ({name})", sent=True, quote=str(error))


def _ssl_context(ca_file: Path | None) -> ssl.SSLContext | bool:
    if ca_file is None:
        return True
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ca_file: {ca_file} cannot be read as certificates (PEM): {error}") from None
    return context


def _proxy(url: URL) -> URL | None:
    """The environment's proxy for this host. No netrc: it could add a login that nobody asked for."""
    host = url.host or ""
    if host in ("127.0.0.1", "localhost", "::1") or urllib.request.proxy_bypass(f"{host}:{url.port}"):
        return None
    named = urllib.request.getproxies().get(url.scheme)
    if not named:
        return None
    try:
        proxy = URL(named)
    except ValueError:
        proxy = URL()
    if proxy.scheme not in ("http", "https") or not proxy.host:
        # Not quoted: it may hold a password.
        raise ConfigError(f"{url.scheme.upper()}_PROXY: only http:// and https:// proxies are supported")
    return proxy
