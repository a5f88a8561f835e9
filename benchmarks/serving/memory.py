"""Many requests through one server, plain and streamed: its memory on the way."""

from __future__ import annotations

import asyncio
import time

from benchmarks.serving.client import ask_all
from benchmarks.serving.processes import OTHER_CORE, SERVER_CORE, backend, scripted_server, started

CONNECTIONS = 64
MARKS = 10
MOST_GROWTH_MIB = 8.0
"""From the first tenth, when caches and pools are filled, to the end."""


def memory(requests: int) -> int:
    """Print the resident memory after each tenth; 1 where it grew, or a request failed."""
    with (
        started(backend(), OTHER_CORE) as strong,
        started(scripted_server(strong.url), SERVER_CORE) as server,
    ):
        print(f"rss_mib_after_0 {server.rss_mib():.1f}", flush=True)
        sizes, failed, began = [], 0, time.perf_counter()
        for mark in range(1, MARKS + 1):
            done = asyncio.run(ask_all(server.port, requests // MARKS, CONNECTIONS, stream_every=10))
            failed += sum(count for status, count in done.items() if status != 200)
            sizes.append(server.rss_mib())
            print(f"rss_mib_after_{mark * requests // MARKS} {sizes[-1]:.1f}", flush=True)
        print(f"requests_per_s {requests / (time.perf_counter() - began):.0f}")
        print(f"failed {failed}\ngrowth_mib {sizes[-1] - sizes[0]:.1f}")
        return int(failed > 0 or sizes[-1] - sizes[0] > MOST_GROWTH_MIB)
