"""Added latency and requests/s, beside the backend itself and LiteLLM's proxy, in one interleaved run. Needs wrk."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.processes import (
    OTHER_CORE,
    SERVER_CORE,
    Running,
    backend,
    litellm,
    pin,
    scripted_server,
    started,
)

PAUSE_MS = 4
SCRIPT = Path(__file__).parent / "post.lua"


@dataclass(frozen=True)
class Measured:
    """One run of wrk against one target."""

    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    bad: int


def wrk(target: Running, connections: int, seconds: float, pause_ms: int = 0) -> Measured:
    """Load a target; each connection waits ``pause_ms`` before each request. Raises CalledProcessError where wrk fails."""
    before = target.cpu_s()
    words = [*pin(OTHER_CORE), "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "60s"]
    done = subprocess.run(
        [*words, "-s", str(SCRIPT), f"{target.url}/chat/completions"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PAUSE_MS": str(pause_ms)},
    )
    told = json.loads(done.stdout.splitlines()[-1])
    requests = max(1, told["requests"])
    cpu_us = (target.cpu_s() - before) / requests * 1e6
    bad = told["not_200"] + told["lost"]
    return Measured(told["requests"] / told["seconds"], told["p50_ms"], told["p99_ms"], cpu_us, bad)


def median(rows: list[Measured]) -> Measured:
    """Of each figure; the failures are added up."""
    m = statistics.median
    return Measured(
        m(r.per_s for r in rows), m(r.p50_ms for r in rows), m(r.p99_ms for r in rows), m(r.cpu_us for r in rows),
        sum(r.bad for r in rows),
    )  # fmt: skip


def load(connections: tuple[int, ...], rounds: int, seconds: float, peer: Path | None) -> None:
    """Measure all targets at each number of connections and print a table."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    with ExitStack() as held:
        strong = held.enter_context(started(backend(), OTHER_CORE))
        targets = {
            "backend": strong,
            "cowest": held.enter_context(started(scripted_server(strong.url), SERVER_CORE)),
        }
        if peer is not None:
            targets["litellm"] = held.enter_context(litellm(peer, strong.url))
        for target in targets.values():
            wrk(target, 8, 3)  # imports, connections, caches
        print(f"medians of {rounds} interleaved rounds of {seconds:g} s; added: less the backend's own")
        columns = ("req/s", "p50 ms", "p99 ms", "added p50", "added p99", "CPU us/req", "bad")
        print(f"{'conn':>5} {'target':<8}" + "".join(f"{column:>11}" for column in columns))
        for count, pause_ms in ((1, PAUSE_MS), *((count, 0) for count in connections)):
            found: dict[str, list[Measured]] = {name: [] for name in targets}
            for _ in range(rounds):
                for name, target in targets.items():
                    found[name].append(wrk(target, count, seconds, pause_ms))
            _table(f"{count} *" if pause_ms else str(count), {name: median(rows) for name, rows in found.items()})
        print(f"* {PAUSE_MS} ms between an answer and the next request")


def _table(count: str, rows: dict[str, Measured]) -> None:
    base = rows["backend"]
    for name, row in rows.items():
        added = ("", "") if row is base else (f"{row.p50_ms - base.p50_ms:.2f}", f"{row.p99_ms - base.p99_ms:.2f}")
        cells = (
            f"{row.per_s:.0f}",
            f"{row.p50_ms:.2f}",
            f"{row.p99_ms:.2f}",
            *added,
            f"{row.cpu_us:.0f}",
            f"{row.bad}",
        )
        print(f"{count:>5} {name:<8}" + "".join(f"{cell:>11}" for cell in cells))
    if "litellm" in rows and "*" not in count:
        print(f"{'':>5} cowest / litellm: {rows['cowest'].per_s / rows['litellm'].per_s:.1f} x", flush=True)
