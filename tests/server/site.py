"""A served pair for a browser test: in a thread of its own, with a strong endpoint whose streams can be held."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web
from tests.server.loopback import Act, Client, Upstream, chunk, events, serving, strong

USAGE = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}


class Site:
    """A served pair in a thread of its own, and the strong endpoint behind it."""

    def __init__(self) -> None:
        self.client: Client
        self.upstream: Upstream
        self.loop: asyncio.AbstractEventLoop
        self._ready, self._stop = threading.Event(), asyncio.Event()

    async def _run(self, options: dict[str, Any]) -> None:
        self.loop = asyncio.get_running_loop()
        async with strong() as self.upstream, serving(self.upstream.url, **options) as self.client:
            self._ready.set()
            await self._stop.wait()

    @contextmanager
    def up(self, options: dict[str, Any]) -> Iterator[Site]:
        thread = threading.Thread(target=lambda: asyncio.run(self._run(options)))
        thread.start()
        try:
            assert self._ready.wait(20)
            yield self
        finally:
            self.loop.call_soon_threadsafe(self._stop.set)
            thread.join(20)

    @property
    def url(self) -> str:
        return self.client.url.removesuffix("v1")

    def let_go(self, gate: asyncio.Event) -> None:
        self.loop.call_soon_threadsafe(gate.set)


def streamed(*texts: str, gate: asyncio.Event | None = None) -> Act:
    """A stream that stops at the gate before its last text."""

    async def act(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for text in texts[:-1]:
            await response.write(events(chunk({"content": text}), done=False))
        if gate is not None:
            await gate.wait()
        last = {"id": "up", "object": "chat.completion.chunk", "choices": [], "usage": USAGE}
        await response.write(events(chunk({"content": texts[-1]}), chunk({}, "stop"), last))
        return response

    return act


LOW_CONTRAST = """
  const rgb = (c) => { const v = c.match(/[\\d.]+/g).map(Number); return v.length > 3 && v[3] === 0 ? null : v.slice(0, 3); };
  const lum = (v) => v.map((x) => { x /= 255; return x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4; })
    .reduce((s, x, i) => s + x * [.2126, .7152, .0722][i], 0);
  const back = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c) return c; } };
  const low = [];
  for (const e of document.querySelectorAll('body *')) {
    const says = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || e.matches('input, textarea, select');
    if (!says || e.getClientRects().length === 0 || e.getAttribute('aria-disabled') === 'true') continue;
    const [x, y] = [lum(rgb(getComputedStyle(e).color)), lum(back(e))].sort((p, q) => q - p);
    const ratio = (x + .05) / (y + .05);
    if (ratio < 4.5) low.push(`${e.tagName}.${e.className} ${e.textContent.slice(0, 20)} ${ratio.toFixed(2)}`);
  }
  return low;"""
"""JavaScript: the texts on the page that have less contrast than 4.5 to what is behind them."""
