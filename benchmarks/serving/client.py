"""A small HTTP client on raw sockets, so that the client is not what is measured; it checks that every answer is whole."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass

HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"


@dataclass(frozen=True)
class Answer:
    """``first_s``: until the first byte of the body."""

    status: int
    body: bytes
    first_s: float
    total_s: float

    @property
    def kind(self) -> str:
        """The mode and why it was degraded, the code of an error in OpenAI's shape, or ``broken: ...``."""
        try:
            if self.body.startswith(b"data: "):
                return self._of_stream()
            told = json.loads(self.body)
            if self.status == 200:
                return _mode(told) if told["choices"][0]["message"]["content"] else "broken: empty"
            return _error(told)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            return f"broken: {type(error).__name__}"

    def _of_stream(self) -> str:
        parts = [part.removeprefix("data: ") for part in self.body.decode().split("\n\n") if part]
        if parts[-1] != "[DONE]":
            return "in stream: " + _error(json.loads(parts[-1]))
        return _mode(json.loads(parts[-2]))


def _mode(told: dict[str, object]) -> str:
    details = told.get("cowest")
    if not isinstance(details, dict):
        return "answered"
    return f"{details['mode']} ({details['degraded']})" if details["degraded"] else str(details["mode"])


def _error(told: dict[str, dict[str, object]]) -> str:
    if told["error"].keys() != {"message", "type", "param", "code"}:
        return "broken: error of another shape"
    return f"error {told['error']['code']}"


class Connection:
    """Keep-alive; opened when first used, and again after a failure."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, body: bytes) -> Answer:
        """One request. Raises OSError or EOFError where no whole answer came."""
        loop = asyncio.get_running_loop()
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
            reader, writer = self._streams
            began = loop.time()
            writer.write(HEAD.format(len(body)).encode() + body)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            status = int(head.split(b" ", 2)[1])
            first = b""
            if b"transfer-encoding: chunked" in head:
                size = int(await reader.readline(), 16)
                first = await reader.readexactly(size + 2)
                told = loop.time()
                pieces = [first[:-2]]
                while size := int(await reader.readline(), 16):
                    pieces.append((await reader.readexactly(size + 2))[:-2])
                await reader.readline()
                whole = b"".join(pieces)
            else:
                length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
                told = loop.time()
                whole = await reader.readexactly(length)
            if b"connection: close" in head:
                self.close()
            return Answer(status, whole, told - began, loop.time() - began)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Drop the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def request(text: str, stream: bool = False, model: str = "bench", **more: object) -> bytes:
    """A chat request."""
    body: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": text}], **more}
    return json.dumps(body | ({"stream": True} if stream else {})).encode()


async def ask_all(port: int, requests: int, connections: int, stream_every: int = 0) -> Counter[int]:
    """So many requests over so many connections, every ``stream_every``-th streamed; counts the statuses (0: no answer)."""
    found: Counter[int] = Counter()
    rest = iter(range(requests))

    async def work() -> None:
        connection = Connection(port)
        for number in rest:
            stream = bool(stream_every) and number % stream_every == 0
            try:
                answer = await connection.ask(request(f"Question {number}: may I?", stream))
            except (OSError, EOFError):
                found[0] += 1
                continue
            found[0 if answer.kind.startswith(("broken", "in stream")) else answer.status] += 1
        connection.close()

    await asyncio.gather(*(work() for _ in range(connections)))
    return found
