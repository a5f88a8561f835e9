"""One HTTP exchange, against servers that behave and servers that do not; every failure says whether it may have to be paid."""

from __future__ import annotations

import asyncio
import gzip
import http.server
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.helpers import unused_url
from tests.models.scripted_endpoint import KEY

from cowest.errors import ConfigError
from cowest.models import transport
from cowest.models.transport import Timeouts, Transport, TransportError

AUTH = {"Authorization": f"Bearer {KEY}"}
QUICK = Timeouts(total=5.0, connect=2.0, stall=0.2)


class Server:
    """Sockets only. It keeps the heads and bodies that it was sent, and counts the connections."""

    def __init__(self, *answers: bytes, close: bool = False, wait_s: float = 0.0) -> None:
        self._answers, self._close, self._wait_s = answers, close, wait_s
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.url = ""

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
                self.heads.append(head)
                self.bodies.append(await reader.readexactly(int(fields.get("content-length", "0"))))
                for i, piece in enumerate(self._answers):
                    await asyncio.sleep(self._wait_s if i else 0)
                    writer.write(piece)
                    await writer.drain()
                if self._close:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(*answers: bytes, close: bool = False, wait_s: float = 0.0) -> AsyncIterator[Server]:
    held = Server(*answers, close=close, wait_s=wait_s)
    server = await asyncio.start_server(held.talk, "127.0.0.1", 0)
    held.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield held
    finally:
        server.close()


def answer(body: bytes = b"{}", *fields: str, status: str = "200 OK") -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields])
    return head.encode() + b"\r\n\r\n" + body


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def nothing_leaks(error: BaseException) -> None:
    """Neither the failure nor what it is chained to holds the key, however it is printed."""
    chain: list[BaseException] = [error]
    for one in chain:
        assert KEY not in f"{one} {one!r} {vars(one) if hasattr(one, '__dict__') else ''}"
        chain += [other for other in (one.__cause__, one.__context__) if other is not None]


async def failure(url: str, timeouts: Timeouts = QUICK) -> TransportError:
    client = Transport(url, AUTH, timeouts)
    with pytest.raises(TransportError) as caught:
        await client.post("x", b"{}")
    await client.aclose()
    nothing_leaks(caught.value)
    return caught.value


# What is sent, and what comes back


async def test_an_exchange_as_it_is_on_the_wire() -> None:
    async with serving(answer(b"\xff{odd", "X-Some: Thing", status="418 teapot")) as server:
        client = Transport(server.url + "/", AUTH, QUICK)
        got = await client.post("chat/completions", "{ü}".encode())
        await client.aclose()
    assert (got.status, got.body, got.headers["x-SOME"]) == (418, b"\xff{odd", "Thing")
    head = server.heads[0]
    assert head.startswith("POST /v1/chat/completions HTTP/1.1\r\n") and server.bodies == ["{ü}".encode()]
    assert f"Authorization: Bearer {KEY}" in head and "Content-Type: application/json" in head
    assert "accept-encoding" not in head.lower()


async def test_a_connection_is_kept_and_cookies_are_not() -> None:
    async with serving(answer(b"{}", "Set-Cookie: who=you")) as server:
        client = Transport(server.url, AUTH, QUICK)
        for _ in range(5):
            await client.post("x", b"{}")
        assert server.connections == 1 and len(server.heads) == 5
        assert "cookie" not in "".join(server.heads).lower()
        await client.aclose()
        await client.aclose()
        assert (await client.post("x", b"{}")).status == 200, "a later request opens a new one"
        await client.aclose()
    assert server.connections == 2


async def test_as_many_connections_as_calls() -> None:
    async with serving(b"", answer(), wait_s=0.2) as server:
        client = Transport(server.url, AUTH, QUICK)
        await asyncio.gather(*(client.post("x", b"{}") for _ in range(150)))
        await client.aclose()
    assert server.connections == 150, "how many are under way is for the limiter to say"


async def test_a_redirect_is_an_answer() -> None:
    async with (
        serving(answer()) as other,
        serving(answer(b"", f"Location: {other.url}/x", status="307 Temporary Redirect")) as server,
    ):
        client = Transport(server.url, AUTH, QUICK)
        got = await client.post("x", b"{}")
        async with client.stream("x", b"{}") as (status, headers, _):
            assert status == 307 and headers["location"] == f"{other.url}/x"
        await client.aclose()
    assert got.status == 307 and other.connections == 0


def test_it_outlives_an_event_loop() -> None:
    """With a connection left open in the first."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.wfile.write(answer())

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = Transport(f"http://127.0.0.1:{server.server_port}", {}, QUICK)

        async def ask() -> int:
            return (await client.post("x", b"{}")).status

        async def ask_and_close() -> int:
            try:
                return await ask()
            finally:
                await client.aclose()

        assert [asyncio.run(ask()), asyncio.run(ask_and_close()), asyncio.run(ask_and_close())] == [200] * 3
        server.shutdown()


# Answers without bound


@pytest.mark.parametrize(
    "body",
    [
        answer(b"a" * 3000),
        CHUNKED + b"5dc\r\n" + b"a" * 1500 + b"\r\n" + b"5dc\r\n" + b"a" * 1500 + b"\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"a" * 3000,
        answer(gzip.compress(b"a" * 300_000), "Content-Encoding: gzip"),
    ],
    ids=["announced", "chunked", "until the end", "packed"],
)
async def test_an_answer_too_large_is_not_gathered(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_BODY", 2000)
    async with serving(body, close=True) as server:
        error = await failure(server.url)
    assert error.kind == "too_large" and error.sent


async def test_a_packed_answer_is_read_where_a_server_sends_one_unasked() -> None:
    async with serving(answer(gzip.compress(b'{"a": 1}'), "Content-Encoding: gzip")) as server:
        client = Transport(server.url, {}, QUICK)
        assert (await client.post("x", b"{}")).body == b'{"a": 1}'
        await client.aclose()


# Failures on the way


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (answer(b"a" * 100)[:-50], "truncated"),
        (CHUNKED + b"64\r\naaa", "truncated"),
        (answer(b"no gzip", "Content-Encoding: gzip"), "truncated"),
        (b"", "connection"),
        (b"garbage\r\n\r\n", "connection"),
        (CHUNKED + b"zz\r\n", "connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "connection"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", "connection"),
    ],
    ids=["short", "short chunk", "not packed", "nothing", "no HTTP", "no chunk", "negative", "long header"],
)
async def test_what_is_no_answer_may_have_to_be_paid(reply: bytes, kind: str) -> None:
    async with serving(reply, close=True) as server:
        error = await failure(server.url)
    assert (error.kind, error.sent, error.retry) == (kind, True, True) and len(server.bodies) == 1


async def test_nobody_listens() -> None:
    with unused_url() as url:
        error = await failure(url)
    assert (error.kind, error.sent) == ("connection", False) and "base_url" in str(error)


async def test_no_such_host() -> None:
    error = await failure("http://nowhere.invalid/v1")
    assert (error.kind, error.sent) == ("dns", False) and "base_url" in str(error)


@pytest.mark.parametrize("host", ["a" * 70 + ".invalid", "a..invalid"])
async def test_a_name_that_no_host_can_have(host: str) -> None:
    error = await failure(f"http://{host}/v1")
    assert (error.sent, error.retry) == (False, False) and "base_url" in str(error)


@pytest.mark.parametrize("timeouts", [Timeouts(total=5, connect=0.2), Timeouts(total=0.2, connect=10)])
async def test_without_a_connection_nothing_was_sent(timeouts: Timeouts) -> None:
    """Also where the limit for the whole exchange is the shorter one."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(8)]  # they fill the queue of connections that nobody accepts
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        await asyncio.sleep(0.05)
        error = await failure(f"http://127.0.0.1:{full.getsockname()[1]}/v1", timeouts)
        for one in waiting:
            one.close()
    assert (error.kind, error.sent) == ("timeout", False) and "connect_timeout_s" in str(error)


async def test_a_server_that_never_shakes_hands() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        error = await failure(f"https://localhost:{port}/v1", Timeouts(total=5, connect=0.2))
    assert (error.kind, error.sent) == ("timeout", False)


async def test_no_answer_in_time() -> None:
    async with serving(b"", answer(), wait_s=1.0) as server:
        error = await failure(server.url, Timeouts(total=0.2))
    assert (error.kind, error.sent) == ("timeout", True) and "timeout_s" in str(error)


# Streams


async def test_pieces_come_as_they_are_sent() -> None:
    async with serving(CHUNKED + b"3\r\none\r\n", b"3\r\ntwo\r\n", b"0\r\n\r\n", wait_s=0.05) as server:
        client = Transport(server.url, AUTH, QUICK)
        async with client.stream("x", b"{}") as (status, _, pieces):
            assert (status, [p async for p in pieces]) == (200, [b"one", b"two"])
        await client.aclose()


@pytest.mark.parametrize(
    ("answers", "kind", "before"),
    [
        ((b"", answer()), "stalled", 0),
        ((CHUNKED, b"0\r\n\r\n"), "stalled", 0),
        ((CHUNKED + b"3\r\none\r\n", b"0\r\n\r\n"), "stalled", 1),
        ((CHUNKED + b"3\r\none\r\n",), "truncated", 1),
        ((b"garbage\r\n\r\n",), "connection", 0),
    ],
    ids=["before the head", "before a piece", "between pieces", "cut", "no HTTP"],
)
async def test_a_stream_that_does_not_come_to_its_end(answers: tuple[bytes, ...], kind: str, before: int) -> None:
    found: list[bytes] = []
    async with serving(*answers, close=True, wait_s=1.0) as server:
        client = Transport(server.url, AUTH, QUICK)
        with pytest.raises(TransportError) as caught:
            async with client.stream("x", b"{}") as (_, _, pieces):
                async for piece in pieces:
                    found.append(piece)
        await client.aclose()
    assert (caught.value.kind, caught.value.sent, len(found)) == (kind, True, before)
    assert kind != "stalled" or "stall_timeout_s" in str(caught.value)
    nothing_leaks(caught.value)


# Proxies, certificates


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the proxies of the environment, those of this machine removed."""

    def set_(**proxies: str) -> None:
        for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        for name, value in proxies.items():
            monkeypatch.setenv(name, value)

    return set_


Environment = Callable[..., None]


async def test_the_environments_proxy_is_asked(environment: Environment) -> None:
    async with serving(answer(b"from the proxy")) as proxy:
        environment(HTTP_PROXY=proxy.url.removesuffix("/v1"), NO_PROXY="other.invalid:8000")
        client = Transport("http://model.invalid:8000/v1", AUTH, QUICK)
        assert (await client.post("x", b"{}")).body == b"from the proxy"
        await client.aclose()
        assert (await failure("http://other.invalid:8000/v1")).kind == "dns", "NO_PROXY: it was looked up from here"
        async with serving(answer()) as local:
            direct = Transport(local.url, AUTH, QUICK)
            assert (await direct.post("x", b"{}")).status == 200
            await direct.aclose()
    assert [h.split("\r\n")[0] for h in proxy.heads] == ["POST http://model.invalid:8000/v1/x HTTP/1.1"]


@pytest.mark.parametrize(
    ("status", "retry"), [("407 Proxy Authentication Required", False), ("403 Forbidden", False), ("502 Bad", True)]
)
async def test_a_proxy_that_refuses(status: str, retry: bool, environment: Environment) -> None:
    async with serving(answer(status=status)) as proxy:
        environment(HTTPS_PROXY=proxy.url.removesuffix("/v1").replace("//", "//me:secret-password@"))
        error = await failure("https://model.invalid/v1")
    assert (error.sent, error.retry) == (False, retry) and "HTTPS_PROXY" in str(error) and status[:3] in str(error)
    assert "secret-password" not in f"{error!r} {error.quote}"
    assert KEY not in "".join(proxy.heads), "the key is for the server behind it"


async def test_a_proxy_that_is_not_there(environment: Environment) -> None:
    with unused_url() as url:
        environment(HTTPS_PROXY=url.removesuffix("/v1"))
        error = await failure("https://model.invalid/v1")
    assert error.sent is False and "HTTPS_PROXY" in str(error)


@pytest.mark.parametrize("proxy", ["socks5://me:secret-password@localhost:1", "http://", "http://[secret-password"])
def test_a_proxy_that_cannot_be_used(proxy: str, environment: Environment) -> None:
    environment(HTTPS_PROXY=proxy)
    with pytest.raises(ConfigError, match="HTTPS_PROXY") as caught:
        Transport("https://model.invalid/v1", AUTH)
    assert "secret-password" not in str(caught.value)


async def test_no_login_is_taken_from_a_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password secret-password\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    async with serving(answer()) as server:
        client = Transport(server.url, {}, QUICK)
        await client.post("x", b"{}")
        await client.aclose()
    assert "authorization" not in server.heads[0].lower()


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_ca_file_that_is_none(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match="ca_file"):
        Transport("https://model.invalid/v1", {}, ca_file=file)
