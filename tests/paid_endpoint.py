"""A served pair that costs money: an endpoint on loopback that plays the weak and the strong model and counts what it answers."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web
from aiohttp.test_utils import TestServer
from pydantic import JsonValue
from tests.helpers import SIZES, WORLD

CONCURRENCY = 4
RECORDS = ("drafts", "solo", "refinements", "feedback", "pairs")


class PaidEndpoint:
    """Answers each request by a hash of its body; ``answered`` holds the body of every request that got its answer."""

    def __init__(self, delay_s: float = 0.003) -> None:
        self._delay_s = delay_s
        self.answered: list[str] = []
        self._waiting: list[tuple[int, asyncio.Event]] = []

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Serve; gives the base URL."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        async with TestServer(app, host="127.0.0.1") as server:
            yield str(server.make_url("/v1"))

    async def after(self, answers: int) -> None:
        """Return when so many requests have been answered."""
        event = asyncio.Event()
        self._waiting.append((answers, event))
        self._wake()
        await event.wait()

    def _wake(self) -> None:
        for answers, event in self._waiting:
            if len(self.answered) >= answers:
                event.set()

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        await asyncio.sleep(self._delay_s)
        self.answered.append(json.dumps(body, sort_keys=True))
        self._wake()
        n = body.get("n", 1)
        choices = [
            {"index": i, "message": {"role": "assistant", "content": reply(body, i)}, "finish_reason": "stop"}
            for i in range(n)
        ]
        usage = {"prompt_tokens": 20, "completion_tokens": 5 * n, "total_tokens": 20 + 5 * n}
        return web.json_response({"id": "x", "object": "chat.completion", "choices": choices, "usage": usage})


def reply(body: dict[str, JsonValue], index: int) -> str:
    """The same answer to the same request; drafts differ with the seed and the sample's index."""
    digest = hashlib.sha256(f"{json.dumps(body, sort_keys=True)} {index}".encode()).hexdigest()
    return f"It follows from {digest[:8]}.\nAnswer: {('yes', 'no', 'maybe')[int(digest[-2:], 16) % 3]}"


def paid_recipe(url: str, **changes: JsonValue) -> dict[str, JsonValue]:
    """A recipe in which both models are behind ``url``: nothing is trained, all is paid for."""
    model: dict[str, JsonValue] = {
        "kind": "openai",
        "base_url": url,
        "api_key_env": None,
        "concurrency": CONCURRENCY,
        "timeout_s": 20,
        "price": {"input": 1.0, "output": 4.0},
    }
    recipe: dict[str, JsonValue] = {
        "name": "paid",
        "task": WORLD | SIZES,
        "weak": model | {"model": "weak"},
        "strong": model | {"model": "strong"},
        "prompts": {"draft": "{input}", "solo": "{input}", "refine": "{input}\nDraft: {draft}"},
        "draft": {"samples": 3, "queries": 30},
    }
    return recipe | changes


def records_of(out: Path) -> dict[str, list[dict[str, JsonValue]]]:
    """A run's records without what is measured: times, and who of those that share a call paid for it."""
    found = {}
    for name in RECORDS:
        rows = [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
        found[name] = [{k: v for k, v in row.items() if k not in ("usage", "latency_s")} for row in rows]
    return found
