"""A served pair that costs money: an endpoint on loopback that plays the weak and the strong model and counts what it answers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from pydantic import JsonValue
from tests.helpers import SIZES, WORLD

CONCURRENCY = 4
RECORDS = ("drafts", "solo", "refinements", "feedback", "pairs")


class PaidEndpoint:
    """Answers each request by a hash of its body; ``answered`` holds the body of every request that got its answer.

    ``logprobs``: it gives log-probabilities where they are asked for, by the same hash. ``replies`` says what it answers, by
    the body and the sample's index, in place of the hash.
    """

    def __init__(
        self,
        delay_s: float = 0.003,
        logprobs: bool = False,
        replies: Callable[[dict[str, JsonValue], int], str] | None = None,
    ) -> None:
        self._delay_s, self.logprobs, self._replies = delay_s, logprobs, replies or reply
        self.answered: list[str] = []
        self._waiting: list[tuple[int, asyncio.Event]] = []

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Serve; gives the base URL."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        self.routes(app)
        async with TestServer(app, host="127.0.0.1") as server:
            yield str(server.make_url("/v1"))

    def routes(self, app: web.Application) -> None:
        """What else it answers: a subclass's."""

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
        choices: list[dict[str, Any]] = [
            {"index": i, "message": {"role": "assistant", "content": self._replies(body, i)}, "finish_reason": "stop"}
            for i in range(n)
        ]
        if self.logprobs and body.get("logprobs"):
            for choice in choices:
                choice["logprobs"] = {"content": token_logprobs(choice["message"]["content"])}
        usage = {"prompt_tokens": 20, "completion_tokens": 5 * n, "total_tokens": 20 + 5 * n}
        return web.json_response({"id": "x", "object": "chat.completion", "choices": choices, "usage": usage})


@contextmanager
def answering(endpoint: PaidEndpoint) -> Iterator[str]:
    """The endpoint in a thread of its own, for a command in this process; gives the base URL."""
    ready, loop, found = threading.Event(), asyncio.new_event_loop(), list[str]()

    async def until(stop: asyncio.Event) -> None:
        async with endpoint.serve() as url:
            found.append(url)
            ready.set()
            await stop.wait()

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(until(stop)))
    thread.start()
    try:
        assert ready.wait(30)
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()


def token_logprobs(text: str) -> list[dict[str, JsonValue]]:
    """A text's words as tokens, the surer the higher the hash."""
    sure = 0.3 + 0.69 * hashlib.sha256(text.encode()).digest()[1] / 255
    words = re.findall(r"\s*\S+", text)
    return [{"token": word, "logprob": math.log(sure), "top_logprobs": []} for word in words]


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
