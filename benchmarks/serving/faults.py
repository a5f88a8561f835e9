"""Each model is killed (SIGKILL) and started again while requests keep coming, plain and streamed, to ``cowest serve``.

Every request must end in an answer or an error in OpenAI's shape, and all must be well again at the end.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.serving.client import Connection, request
from benchmarks.serving.processes import OTHER_CORE, ROOT, SERVER_CORE, Running, backend, pin, python, started

CLIENTS, DELAY_MS = 32, 20.0
PLAN = (
    (3.0, "all well", None, None),
    (4.0, "weak killed", "weak", False),
    (8.0, "weak again", "weak", True),
    (4.0, "strong killed", "strong", False),
    (8.0, "strong again", "strong", True),
    (3.0, "both killed", "both", False),
    (10.0, "both again", "both", True),
)
"""Seconds, the phase's name, and what happens at its beginning: a model goes (False) or comes (True)."""


@dataclass
class Model:
    """An endpoint on a fixed port, that can be killed and started again."""

    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = [*pin(OTHER_CORE), *backend(DELAY_MS, self.port)]
        self.process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass
class Seen:
    """What became of the requests, by the phase in which they were sent."""

    phase: str = ""
    running: bool = True
    sent: int = 0
    ended: int = 0
    slowest_s: float = 0.0
    kinds: dict[str, Counter[str]] = field(default_factory=dict)

    def note(self, phase: str, kind: str, seconds: float) -> None:
        self.ended += 1
        self.slowest_s = max(self.slowest_s, seconds)
        self.kinds.setdefault(phase, Counter())[kind] += 1


async def _client(number: int, port: int, seen: Seen) -> None:
    connection, count = Connection(port), 0
    while seen.running:
        count += 1
        stream = (number + count) % 2 == 0
        body = request(f"{number}.{count}: may I?", stream, "faults", cowest={"details": True})
        phase, began = seen.phase, time.monotonic()
        seen.sent += 1
        try:
            kind = (await connection.ask(body)).kind
        except (OSError, EOFError) as error:
            kind = f"LOST {type(error).__name__}"
        seen.note(phase, kind, time.monotonic() - began)
        await asyncio.sleep(0.01)
    connection.close()


async def _drive(port: int, models: dict[str, Model], seen: Seen) -> None:
    seen.phase = PLAN[0][1]
    clients = [asyncio.create_task(_client(i, port, seen)) for i in range(CLIENTS)]
    for seconds, phase, which, comes in PLAN:
        for name, model in models.items():
            if which in (name, "both"):
                model.start() if comes else model.kill()
        seen.phase = phase
        await asyncio.sleep(seconds)
    seen.running = False
    await asyncio.wait_for(asyncio.gather(*clients), 60)


@contextmanager
def served(folder: Path, models: dict[str, Model], policy: str) -> Iterator[Running]:
    """``cowest serve`` of a recipe with both models behind endpoints."""
    paths = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    for split, path in paths.items():
        Path(path).write_text(json.dumps({"input": f"May I {split}?", "answer": "no"}) + "\n")
    recipe = {
        "name": "faults",
        "task": {"kind": "jsonl", **paths},
        "weak": _endpoint(models["weak"].port) | {"max_attempts": 1},
        "strong": _endpoint(models["strong"].port) | {"max_attempts": 3},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    words = python("cowest", "serve", str(folder / "recipe.yaml"), "--port", "0", "--strong-down", policy)
    with started([*words, "--deadline-s", "10"], SERVER_CORE, folder / f"{policy}.log") as running:
        yield running


def _endpoint(port: int) -> dict[str, object]:
    return {"kind": "openai", "model": "m", "base_url": f"http://127.0.0.1:{port}/v1", "api_key_env": None}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def faults() -> int:
    """Run the plan with each policy; 1 where a request was lost or something stayed broken."""
    bad = 0
    for policy in ("weak", "error"):
        with ExitStack() as held:
            folder = Path(held.enter_context(TemporaryDirectory()))
            models = {name: Model(free_port()) for name in ("weak", "strong")}
            for model in models.values():
                model.start()
                held.callback(model.kill)
            server = held.enter_context(served(folder, models, policy))
            seen = Seen()
            asyncio.run(_drive(server.port, models, seen))
            bad += _report(policy, seen, (folder / f"{policy}.log").read_text())
    return int(bad > 0)


def _report(policy: str, seen: Seen, log: str) -> int:
    print(f"--strong-down {policy}: {seen.sent} requests of {CLIENTS} clients, slowest {seen.slowest_s:.2f} s")
    for phase, kinds in seen.kinds.items():
        print(f"  {phase:<14}" + ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()))
    every = sum(seen.kinds.values(), Counter[str]())
    lost = seen.sent - seen.ended + sum(n for kind, n in every.items() if kind.startswith(("LOST", "broken")))
    ours = log.count("the server failed")
    print(f"  lost or of another shape: {lost}; failures of the server itself: {ours}", flush=True)
    return lost + ours


if __name__ == "__main__":
    sys.exit(faults())
