"""Every fault an endpoint can have, injected by a real server: each ends as an answer or as a failure with its reason."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from aiohttp import web
from tests.helpers import unused_url
from tests.models.scripted_endpoint import ASK, KEY, Step, cut_off, endpoint, reply, step

from cowest.errors import ModelCallError
from cowest.models.openai import OpenAIChatModel
from cowest.types import Completion, Sampling

Conversation = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def ask(url: str, **settings: object) -> Completion:
    """One call with quick retries."""
    given: dict[str, object] = {"api_key": KEY, "max_attempts": 3, "backoff_s": 0.002, "timeout_s": 5.0} | settings
    model = OpenAIChatModel(base_url=url, model="big", **given)  # type: ignore[arg-type]
    try:
        return await model.generate(ASK, Sampling())
    finally:
        await model.aclose()


async def failure(url: str, **settings: object) -> ModelCallError:
    with pytest.raises(ModelCallError) as caught:
        await ask(url, **settings)
    assert KEY not in str(caught.value) and caught.value.__context__ is None
    assert str(caught.value)
    return caught.value


@asynccontextmanager
async def raw_server(talk: Conversation, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server on sockets, for what no HTTP library would do."""
    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield f"{'https' if tls else 'http'}://localhost:{port}/v1"


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with a reset."""
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# Connections


async def test_refused() -> None:
    with unused_url() as url:
        error = await failure(url)
    assert error.kind == "connection" and "base_url" in str(error)
    assert [(a.maybe_paid, a.usage.calls) for a in error.attempts] == [(False, 0)] * 3


async def test_reset_before_the_request() -> None:
    asked = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        reset(writer)

    async with raw_server(talk) as url:
        error = await failure(url)
    assert error.kind == "connection" and "base_url" in str(error) and asked == len(error.attempts) == 3
    assert all(a.maybe_paid for a in error.attempts), "how far the request came cannot be known from here"


async def test_reset_after_the_request() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        reset(writer)

    async with raw_server(talk) as url:
        error = await failure(url)
    assert error.kind == "connection" and len(error.attempts) == 3
    assert all(a.maybe_paid for a in error.attempts), "the request was sent: it may be on the bill"


async def test_unknown_host() -> None:
    error = await failure("http://nowhere.invalid/v1")
    assert error.kind == "dns" and "host in base_url" in str(error)
    assert not any(a.maybe_paid for a in error.attempts)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost, with its key, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"]
    try:
        subprocess.run(made, cwd=folder, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed: the TLS tests DO NOT RUN")
    return folder


def server_tls(folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    await reader.readexactly(length)
    body = json.dumps(reply("over TLS")).encode()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    writer.close()


async def test_a_certificate_that_nobody_vouches_for(certificate: Path) -> None:
    async with raw_server(answer_once, server_tls(certificate)) as url:
        error = await failure(url)
        assert error.kind == "tls" and "ca_file" in str(error) and len(error.attempts) == 1, "it stays bad: no retry"
        trusted = await ask(url, ca_file=certificate / "cert.pem")
    assert trusted.text == "over TLS"


# Time-outs


async def test_no_connection_in_time() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port, waiting = full.getsockname()[1], []
        for _ in range(8):  # fill the queue of connections that nobody accepts
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
            waiting.append(one)
        await asyncio.sleep(0.05)
        error = await failure(f"http://127.0.0.1:{port}/v1", connect_timeout_s=0.2, max_attempts=2)
        for one in waiting:
            one.close()
    assert error.kind == "timeout" and "connect_timeout_s" in str(error)
    assert not any(a.maybe_paid for a in error.attempts)


async def test_no_answer_in_time() -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(1)
        return web.json_response(reply())

    async with endpoint(silent) as server:
        error = await failure(server.url, timeout_s=0.1, max_attempts=2)
    assert error.kind == "timeout" and "timeout_s" in str(error)
    assert all(a.maybe_paid for a in error.attempts) and len(server.bodies) == 2


async def test_a_stalled_stream() -> None:
    async def stalls(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"choices": [{"index": 0, "delta": {"content": "half an"}}]}\n\n')
        await asyncio.sleep(1)
        return response

    async with endpoint(stalls) as server:
        error = await failure(server.url, stream=True, stall_timeout_s=0.1, max_attempts=2)
    assert error.kind == "stalled" and "stall_timeout_s" in str(error)
    assert all(a.maybe_paid for a in error.attempts) and len(server.bodies) == 2


# Statuses


@pytest.mark.parametrize(
    ("status", "names"),
    [
        (400, "max_tokens"),
        (401, "api_key_env"),
        (403, "api_key_env"),
        (404, "base_url"),
        (413, "too long"),
        (422, "model"),
    ],
)
async def test_a_status_that_stays_is_not_retried(status: int, names: str) -> None:
    async with endpoint(step({"error": {"message": f"no: Bearer {KEY}"}}, status)) as server:
        error = await failure(server.url)
    assert error.kind == f"http_{status}" and names in str(error) and len(server.bodies) == 1
    assert [(a.maybe_paid, a.usage.calls) for a in error.attempts] == [(False, 0)]


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
async def test_a_status_that_may_pass_is_retried_and_capped(status: int) -> None:
    async with endpoint(step("busy", status)) as server:
        error = await failure(server.url)
    assert error.kind == f"http_{status}" and len(server.bodies) == 3 and len(error.attempts) == 3
    async with endpoint(step("busy", status), step(reply())) as server:
        got = await ask(server.url)
    assert got.text == "fine" and [a.outcome for a in got.attempts] == [f"http_{status}", "ok"]


async def test_an_empty_account_is_not_asked_again() -> None:
    body = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    async with endpoint(step(body, 429)) as server:
        error = await failure(server.url)
    assert error.kind == "http_429" and "billing" in str(error) and len(server.bodies) == 1


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_retry_after_is_waited_for(form: str) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=2)
    value = "0.4" if form == "seconds" else format_datetime(soon, usegmt=True)
    times: list[float] = []

    def timed(then: Step) -> Step:
        async def note(request: web.Request) -> web.StreamResponse:
            times.append(asyncio.get_running_loop().time())
            return await then(request)

        return note

    async with endpoint(timed(step("busy", 429, {"Retry-After": value})), timed(step(reply()))) as server:
        assert (await ask(server.url)).text == "fine"
    waited = times[1] - times[0]
    assert waited >= 0.39 if form == "seconds" else datetime.now(UTC) >= soon - timedelta(seconds=1.1)


# Answers that are none


USAGE = {"prompt_tokens": 11, "completion_tokens": 3}


def choice(finish: str = "stop", **message: object) -> dict[str, object]:
    return {"choices": [{"message": {"role": "assistant", **message}, "finish_reason": finish}], "usage": USAGE}


@pytest.mark.parametrize(
    ("body", "kind", "requests", "paid"),
    [
        ('{"choices": [{"mess', "bad_response", 2, False),
        ("<!DOCTYPE html><html><body>Sign in</body></html>", "bad_response", 2, False),
        ({"choices": [], "usage": USAGE}, "no_choices", 2, True),
        (choice(content=None), "empty", 2, True),
        (choice(content="  \n"), "empty", 2, True),
        (choice("length", content=""), "cut_off", 1, True),
        (choice(content=None, refusal="I cannot help with that."), "refusal", 1, True),
        (choice("content_filter", content="Half of an ans"), "content_filter", 1, True),
        ({"error": {"message": "model crashed"}}, "server_error", 3, False),
        (choice("error", content="Half of an ans"), "server_error", 3, True),
    ],
    ids=[
        "not JSON",
        "HTML page",
        "no choices",
        "null",
        "blank",
        "length, empty",
        "refusal",
        "filter",
        "error in 200",
        "broke off",
    ],
)
async def test_an_answer_that_is_none_is_a_failure_with_its_reason(
    body: object, kind: str, requests: int, paid: bool
) -> None:
    async with endpoint(step(body)) as server:
        error = await failure(server.url)
    assert error.kind == kind and len(server.bodies) == requests
    assert all((a.usage.calls == 1 and a.usage.input_tokens == 11) is paid for a in error.attempts)


async def test_a_truncated_body() -> None:
    async with endpoint(cut_off) as server:
        error = await failure(server.url)
    assert error.kind == "truncated" and len(server.bodies) == 3 and all(a.maybe_paid for a in error.attempts)


async def test_answers_that_are_odd_but_answers() -> None:
    odd = [
        step(choice("length", content="The limit is 40 mg, so")),
        step({"choices": [{"message": {"content": "fine"}}]}),  # no usage, no finish_reason
        step(choice(content="fine"), kind="text/plain"),
        step(choice(content=[{"type": "text", "text": "fi"}, {"type": "text", "text": "ne"}])),
        step(choice(content="fine", reasoning_content="Let me think. Answer: no", refusal=None)),
    ]
    got = []
    for one in odd:
        async with endpoint(one) as server:
            got.append(await ask(server.url))
        assert len(server.bodies) == 1
    assert [g.text for g in got] == ["The limit is 40 mg, so", *["fine"] * 4]
    assert got[0].finish_reason == "length"
    assert got[1].usage.estimated_calls == 1 and got[1].usage.input_tokens > 0 and got[1].usage.output_tokens > 0


# Streams


def chunk(text: str | None = None, finish: str | None = None, id: str = "c1", **more: object) -> dict[str, object]:
    delta = {} if text is None else {"content": text}
    return {"id": id, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


def stream(*events: object, done: bool = True, numbers: tuple[int, ...] = ()) -> Step:
    lines = []
    for i, event in enumerate(events):
        number = f"id: {numbers[i]}\n" if numbers else ""
        lines.append(f"{number}data: {json.dumps(event)}\n\n")
    text = "".join(lines) + ("data: [DONE]\n\n" if done else "")
    return step(text, kind="text/event-stream")


ROLE = {"id": "c1", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
WHOLE = (ROLE, chunk("It is "), chunk("safe."), chunk(finish="stop"), {"id": "c1", "choices": [], "usage": USAGE})


async def test_a_stream_is_an_answer() -> None:
    async with endpoint(stream(*WHOLE)) as server:
        got = await ask(server.url, stream=True)
    assert got.text == "It is safe." and got.usage.input_tokens == 11 and got.usage.output_tokens == 3
    assert server.bodies[0]["stream"] is True and server.bodies[0]["stream_options"] == {"include_usage": True}


async def test_a_server_that_does_not_stream_is_understood() -> None:
    async with endpoint(step(reply("whole"))) as server:
        assert (await ask(server.url, stream=True)).text == "whole"


async def test_numbered_events_that_repeat_are_dropped() -> None:
    doubled = (*WHOLE[:2], WHOLE[1], *WHOLE[2:])
    async with endpoint(stream(*doubled, numbers=(1, 2, 2, 3, 4, 5))) as server:
        assert (await ask(server.url, stream=True)).text == "It is safe."


@pytest.mark.parametrize(
    "broken",
    [
        stream(*WHOLE[:3], done=False),
        stream(*WHOLE[:3]),
        stream(WHOLE[0], WHOLE[2], WHOLE[1], *WHOLE[3:], numbers=(1, 3, 2, 4, 5)),
        stream(*WHOLE[:2], WHOLE[1], WHOLE[1], *WHOLE[2:]),
        stream(*WHOLE[:4], chunk("More."), *WHOLE[4:]),
        stream(*WHOLE[:2], ROLE, *WHOLE[2:]),
        stream(*WHOLE[:2], chunk("safe.", id="c2"), *WHOLE[3:]),
        stream(*WHOLE[:2], {"error": {"message": "out of memory"}}),
        step('data: {"choices": [\n\n', kind="text/event-stream"),
        step(": keep-alive\n\n", kind="text/event-stream"),
    ],
    ids=[
        "ends early",
        "ends early, politely",
        "reordered, numbered",
        "doubled, not numbered",
        "goes on after the end",
        "begins again",
        "mixes two answers",
        "error inside",
        "not JSON",
        "nothing",
    ],
)
async def test_a_broken_stream_is_never_a_part_of_an_answer(broken: Step) -> None:
    async with endpoint(broken) as server:
        error = await failure(server.url, stream=True)
    assert error.kind in ("bad_response", "server_error", "no_choices") and len(server.bodies) >= 2
    assert all(a.maybe_paid or a.usage.calls for a in error.attempts)
    async with endpoint(broken, stream(*WHOLE)) as server:
        assert (await ask(server.url, stream=True)).text == "It is safe."


# The key


async def test_a_redirect_does_not_carry_the_key_to_another_host() -> None:
    async with endpoint(step(reply())) as other:
        async with endpoint(step("", 307, {"Location": f"{other.url}/chat/completions?key=1"})) as server:
            error = await failure(server.url)
        assert error.kind == "http_307" and "redirects" in str(error) and len(server.bodies) == 1
        assert other.bodies == [] and other.headers == []
