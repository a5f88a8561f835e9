"""A real HTTP server on loopback that follows a script, for the tests of clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.test_utils import TestServer

from cowest.types import Message

KEY = "not-a-real-key-4711"
ASK = (Message(role="system", content="Be brief."), Message(role="user", content="Grüße?"))
Step = Callable[[web.Request], Awaitable[web.StreamResponse]]


def reply(text: str | None = "fine", **more: object) -> dict[str, object]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": 11, "completion_tokens": 3}} | more


def step(
    body: object, status: int = 200, headers: dict[str, str] | None = None, kind: str = "application/json"
) -> Step:
    """Answer with a body: JSON, or text as it is."""
    text = body if isinstance(body, str) else json.dumps(body)

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=text, status=status, headers=headers, content_type=kind)

    return answer


async def cut_off(request: web.Request) -> web.StreamResponse:
    """Promise 1,000 bytes, send a few, then reset the connection."""
    response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"choices": [')
    assert request.transport is not None
    request.transport.abort()
    return response


async def too_slow(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(1.5)
    return web.json_response(reply("late"))


class Endpoint:
    """Follows its steps, one per request (the last one repeats), and keeps what it was sent."""

    def __init__(self, *steps: Step) -> None:
        self.steps = steps
        self.bodies: list[dict[str, object]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.running = self.peak = 0
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        turn = len(self.bodies)
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        self.paths.append(request.path_qs)
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            return await self.steps[min(turn, len(self.steps) - 1)](request)
        finally:
            self.running -= 1


@asynccontextmanager
async def endpoint(*steps: Step, port: int | None = None) -> AsyncIterator[Endpoint]:
    scripted = Endpoint(*steps)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", scripted.handle)
    async with TestServer(app, host="127.0.0.1", port=port) as server:
        scripted.url = str(server.make_url("/v1"))
        yield scripted
