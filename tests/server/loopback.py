"""A served collaboration on loopback: a scripted strong endpoint over real HTTP, and any weak ChatModel."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from cowest.collaboration.prompts import DefaultFrames
from cowest.collaboration.routes import BOTH
from cowest.models.scripted import ScriptedChatModel
from cowest.models.secrets import Secrets
from cowest.protocols import ChatModel, Frames, Route
from cowest.recipe.config import OpenAIModelConfig
from cowest.server.app import Server
from cowest.server.auth import Keys
from cowest.server.breaker import Breaker
from cowest.server.chat_backend import ChatBackend
from cowest.server.collector import open_collector
from cowest.server.drafter import Drafter
from cowest.server.gateway import Served
from cowest.server.metrics import Metrics
from cowest.server.redaction import Hook, Redactor, checked
from cowest.server.runner import listening
from cowest.server.settings import Settings
from cowest.server.upstream import Backend, HttpBackend
from cowest.types import Completion, Message, Sampling

FRAMES = DefaultFrames("Answer the question.")
DRAFT = "Velmo is safe up to 62 mg. Answer: no"
DEFAULTS = Settings()
SECRET = "sk-upstream-secret"
Json = dict[str, Any]
Act = Callable[[web.Request], Coroutine[Any, Any, web.StreamResponse]]


def reply(text: str = "No, it is not.", **more: object) -> Json:
    """What the strong endpoint answers with."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "upstream-1",
        "object": "chat.completion",
        "created": 1,
        "model": "big-2026-01-01",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107, "prompt_tokens_details": {"x": 1}},
    } | more


def chunk(delta: Json, finish: str | None = None, **more: object) -> Json:
    """One chunk of the strong endpoint's stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "up", "object": "chat.completion.chunk", "created": 1, "model": "big", "choices": [choice]} | more


def events(*chunks: Json, done: bool = True) -> bytes:
    """Server-sent events."""
    end = b"data: [DONE]\n\n" if done else b""
    return b"".join(b"data: " + json.dumps(c).encode() + b"\n\n" for c in chunks) + end


@dataclass
class Upstream:
    """The scripted strong endpoint. Each request takes the next of ``plan``; after it every request gets ``reply()``."""

    plan: list[Act | int | Json] = field(default_factory=list)
    bodies: list[Json] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        turn = self.plan.pop(0) if self.plan else reply()
        try:
            if isinstance(turn, int):
                return web.json_response({"error": {"message": f"no {SECRET}", "type": "t", "code": None}}, status=turn)
            return web.json_response(turn) if isinstance(turn, dict) else await turn(request)
        except asyncio.CancelledError:
            self.left.set()
            raise


async def hang(request: web.Request) -> web.StreamResponse:
    """Never answer."""
    await asyncio.Event().wait()
    raise AssertionError


@asynccontextmanager
async def strong() -> AsyncIterator[Upstream]:
    upstream = Upstream()
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/chat/completions", upstream.answer)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    upstream.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield upstream
    finally:
        await runner.cleanup()


class Held:
    """A weak model that waits until it is let go; knows whether it was cancelled."""

    name = "held"

    def __init__(self) -> None:
        self.let_go, self.asked, self.cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        self.asked.set()
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return Completion(text=DRAFT)

    async def aclose(self) -> None: ...


@dataclass
class Client:
    """Talks to the server under test."""

    session: aiohttp.ClientSession
    url: str
    server: Server

    async def ask(self, text: str = "May I?", *, headers: dict[str, str] | None = None, **fields: Any) -> Reply:
        """POST a chat completion; ``fields`` are more of its body, or replace what is there."""
        body = {"model": "pair", "messages": [{"role": "user", "content": text}]} | fields
        return await self.post(json.dumps(body).encode(), headers)

    async def post(self, raw: bytes, headers: dict[str, str] | None = None) -> Reply:
        sent = {"Content-Type": "application/json"} | (headers or {})
        async with self.session.post(f"{self.url}/chat/completions", data=raw, headers=sent) as got:
            return Reply(got.status, got.headers.copy(), await got.read())

    async def judge(self, body: Json | bytes, headers: dict[str, str] | None = None) -> Reply:
        """POST feedback."""
        sent = {"Content-Type": "application/json"} | (headers or {})
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(f"{self.url}/feedback", data=raw, headers=sent) as got:
            return Reply(got.status, got.headers.copy(), await got.read())

    async def get(self, path: str, headers: dict[str, str] | None = None) -> Reply:
        async with self.session.get(self.url.removesuffix("/v1") + path, headers=headers) as got:
            return Reply(got.status, got.headers.copy(), await got.read())

    async def metric(self, line: str) -> float:
        """The value of one line of /metrics."""
        text = (await self.get("/metrics")).raw.decode()
        found = [row for row in text.splitlines() if row.startswith(line + " ")]
        return float(found[0].split()[-1]) if found else 0.0


@dataclass
class Reply:
    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def json(self) -> Json:
        found: Json = json.loads(self.raw)
        return found

    @property
    def text(self) -> str:
        """The answer's text."""
        found: str = self.json["choices"][0]["message"]["content"]
        return found

    @property
    def chunks(self) -> list[Json]:
        """The chunks of a stream that ended as it should."""
        parts = [part.removeprefix("data: ") for part in self.raw.decode().split("\n\n") if part]
        assert parts.pop() == "[DONE]"
        return [json.loads(part) for part in parts]


@asynccontextmanager
async def serving(
    url: str,
    weak: ChatModel | None = None,
    settings: Settings = DEFAULTS,
    *,
    keys: Keys | None = None,
    frames: Frames = FRAMES,
    clock: Callable[[], float] | None = None,
    ledger: Path | None = None,
    hook: Hook | None = None,
    hook_patience_s: float = 60.0,
    route: Route = BOTH,
    big: Backend | None = None,
    **config: Any,
) -> AsyncIterator[Client]:
    """``pair``, ``pair.weak`` and ``pair.strong`` on loopback; ``config`` are fields of the strong model's section.

    ``ledger`` is the file to collect in; ``hook`` redacts; ``route`` decides who answers under ``pair``; ``big`` is another
    strong model than the one at ``url``.
    """
    weak = weak or ScriptedChatModel([], default=DRAFT)
    fields = {"kind": "openai", "model": "big", "base_url": url, "max_attempts": 3} | config
    timed: dict[str, Callable[[], float]] = {"clock": clock} if clock else {}
    s = settings
    breakers = {side: Breaker(side, s.breaker_failures, s.breaker_cooldown_s, **timed) for side in ("weak", "strong")}
    answer, draft, metrics = Sampling(max_tokens=512), Sampling(max_tokens=64), Metrics()
    big = big or HttpBackend(
        OpenAIModelConfig.model_validate(fields),
        Secrets(SECRET),
        answer,
        breakers["strong"],
        backoff_s=0.01,
        attempted=metrics.attempted,
    )
    drafter = Drafter(
        weak, draft, breakers["weak"], deadline_s=settings.draft_deadline_s, max_chars=settings.max_draft_chars
    )
    alone = ChatBackend(weak, draft, breakers["weak"])
    served = {
        "pair": Served(
            "pair",
            frames,
            big,
            drafter=drafter,
            weak_id="pair.weak",
            strong_id="pair.strong",
            weak=alone,
            route=route,
        ),
        "pair.weak": Served("pair.weak", frames, alone, "weak_alone"),
        "pair.strong": Served("pair.strong", frames, big),
    }
    redactor = None if hook is None else Redactor(checked(hook), hook_patience_s)
    with open_collector(ledger or Path(), "pair", metrics, redactor, ledger is not None) as collector:
        server = Server(served, settings, keys or Keys(), breakers, metrics, redactor=redactor, collector=collector)
        async with listening(server, "127.0.0.1", 0) as base, aiohttp.ClientSession() as session:
            try:
                yield Client(session, base, server)
            finally:
                await big.aclose()
