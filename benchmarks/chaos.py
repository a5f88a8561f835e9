"""Chaos, seeded and bounded: real runs against an endpoint that fails, with budgets, kills and stops; what must hold is counted.

    python -m benchmarks.chaos --seeds 5 --concurrency 16,64            a table, and a line with what did not hold
    python -m benchmarks.chaos --only kills --seeds 20 --json           one kind, as JSON

budget   one run, `--jobs 2`, or two runs on one ledger, with a budget below what they need: nobody stands still, the endpoint
         has answered no more than the budget allows, and every process that was stopped by it ends with exit code 3
kills    the same without a budget, killed (SIGKILL) a few times: what the endpoint answered is at most what the bill says
stops    stopped by SIGTERM or SIGINT: the same, and every answer that came is entered

The exit code is 1 where something did not hold. The endpoint is on loopback; ``--limit-s`` bounds each run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import yaml
from aiohttp import web
from pydantic import JsonValue

KINDS: Final = ("budget", "kills", "stops")
SHAPES: Final = ("one", "jobs", "two")
"""One process; `--jobs 2` (a parent and two children); two runs that share ledger and name, and so the budget."""

TOKENS_IN, TOKENS_OUT = 20, 5
PRICE: Final[dict[str, JsonValue]] = {"input": 1.0, "output": 4.0}
COST_USD: Final = (TOKENS_IN * 1.0 + TOKENS_OUT * 4.0) / 1e6
NEVER_PAID: Final = (("500", 0.06), ("503", 0.02), ("429", 0.04), ("reset", 0.04))
PAID_ALL_THE_SAME: Final = (("empty", 0.02), ("lost", 0.04), ("stall", 0.02))
TIMEOUT_S = 2.0


class FaultyEndpoint:
    """Plays both models. ``paid`` counts what it generated, also where the answer was lost on the way; ``sent`` what arrived."""

    def __init__(self, seed: int) -> None:
        self._chance, self.paid, self.sent = random.Random(seed), 0, 0

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Serve; gives the base URL."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        await asyncio.sleep(self._chance.uniform(0.002, 0.03))
        happens = self._draw()
        if happens == "reset":
            return _reset(request)
        if happens in ("429", "500", "503"):
            headers = {"Retry-After": "0.1"} if happens == "429" else {}
            return web.json_response({"error": {"message": "chaos"}}, status=int(happens), headers=headers)
        self.paid += 1
        if happens == "lost":
            return _reset(request)
        if happens == "stall":
            await asyncio.sleep(1.5 * TIMEOUT_S)
            return _reset(request)
        response = web.json_response(_reply(body, "" if happens == "empty" else None))
        with contextlib.suppress(ConnectionError):  # a client that was killed
            await response.prepare(request)
            await response.write_eof()
            self.sent += 1
        return response

    def _draw(self) -> str:
        at = self._chance.random()
        for name, share in (*NEVER_PAID, *PAID_ALL_THE_SAME):
            at -= share
            if at < 0:
                return name
        return "ok"


def _reset(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


def _reply(body: dict[str, JsonValue], text: str | None) -> dict[str, JsonValue]:
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    said = f"By {digest[:8]}.\nAnswer: {('yes', 'no', 'maybe')[int(digest[-2:], 16) % 3]}" if text is None else text
    return {
        "id": digest[:8],
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": TOKENS_IN,
            "completion_tokens": TOKENS_OUT,
            "total_tokens": TOKENS_IN + TOKENS_OUT,
        },
    }


@dataclass(frozen=True)
class Scenario:
    """One play of chaos; everything that is left to chance comes of its seed."""

    kind: str
    shape: str
    concurrency: int
    seed: int
    times: int = 3
    """Kills, or stops."""


@dataclass
class Outcome:
    """What came of it. ``broken``: what should have held and did not, in words."""

    kind: str
    shape: str
    concurrency: int
    seed: int
    times: int
    seconds: float = 0.0
    exits: list[int] = field(default_factory=list)
    paid: int = 0
    sent: int = 0
    entered: int = 0
    at_most: int = 0
    budget: str = ""
    broken: list[str] = field(default_factory=list)


def _recipe(url: str, scenario: Scenario, ledger: Path, limits: dict[str, JsonValue]) -> dict[str, JsonValue]:
    model: dict[str, JsonValue] = {
        "kind": "openai",
        "base_url": url,
        "api_key_env": None,
        "concurrency": scenario.concurrency,
        "timeout_s": TIMEOUT_S,
        "max_attempts": 4,
        "price": PRICE,
    }
    world: dict[str, JsonValue] = {"kind": "lab", "domain": "medicine", "entities": 12, "seed": 5}
    sizes: dict[str, JsonValue] = {"train": 40, "validation": 8, "test": 12}
    short: dict[str, JsonValue] = {"max_tokens": 20}
    return {
        "name": "chaos",
        "seed": scenario.seed,
        "tasks": {"left": world | sizes, "right": world | sizes | {"seed": 6}},
        "weak": model | {"model": "weak"},
        "strong": model | {"model": "strong"},
        "prompts": {"draft": "{input}", "solo": "{input}", "refine": "{input}\nDraft: {draft}"},
        "draft": {"samples": 3, "queries": 30, "sampling": short | {"temperature": 1.0}},
        "feedback": {"sampling": short},
        "evaluate": {"answer": short, "draft": short},
        "ledger": str(ledger),
        **limits,
    }


def _budget(chance: random.Random) -> dict[str, JsonValue]:
    """Below what the run needs (some 450 calls), by one of the three limits."""
    calls = chance.randrange(60, 220)
    return chance.choice(
        [
            {"budget_calls": calls},
            {"budget_tokens": calls * 2 * (TOKENS_IN + TOKENS_OUT)},
            {"budget_usd": round(calls * 2 * COST_USD, 6)},
        ]
    )


class Play:
    """One scenario in a folder of its own."""

    def __init__(self, scenario: Scenario, folder: Path, limit_s: float) -> None:
        self._scenario, self._folder, self._limit_s = scenario, folder, limit_s
        self._chance = random.Random(f"{scenario}")
        self._ledger = folder / "ledger.sqlite"
        self._found = Outcome(**asdict(scenario))
        self._endpoint = FaultyEndpoint(scenario.seed)

    async def run(self) -> Outcome:
        """Play it."""
        began = time.monotonic()
        limits = _budget(self._chance) if self._scenario.kind == "budget" else {}
        self._found.budget = " ".join(f"{k.removeprefix('budget_')} {v}" for k, v in limits.items())
        async with self._endpoint.serve() as url:
            recipe = self._folder / "recipe.yaml"
            recipe.write_text(yaml.safe_dump(_recipe(url, self._scenario, self._ledger, limits)), encoding="utf-8")
            if self._scenario.kind == "budget":
                await self._spend(recipe)
            else:
                await self._disturb(recipe)
        self._found.seconds = round(time.monotonic() - began, 1)
        await self._check(limits)
        return self._found

    async def _spend(self, recipe: Path) -> None:
        for process in await self._start(recipe):
            said = await self._ended(process)
            if process.returncode != 3:
                self._broken(f"exit code {process.returncode}, not 3: {said[-300:]!r}")
            told = [line for line in said.splitlines() if line.startswith("cowest: ")]
            if len(told) != 1 or "budget_" not in told[0] or "Traceback" in said:
                self._broken(f"not one line: {said[-600:]!r}")

    async def _disturb(self, recipe: Path) -> None:
        """Kill or stop the run, each time after a number of further answers."""
        for _ in range(self._scenario.times):
            processes = await self._start(recipe)
            wanted = self._endpoint.paid + self._chance.randrange(20, 90)
            until = time.monotonic() + self._limit_s
            while self._endpoint.paid < wanted and time.monotonic() < until:
                if all(process.returncode is not None for process in processes):
                    break
                await asyncio.sleep(0.002)
            stop = self._chance.choice((signal.SIGTERM, signal.SIGINT))
            for process in processes:
                if process.returncode is None:
                    if self._scenario.kind == "kills":
                        os.killpg(process.pid, signal.SIGKILL)
                    else:
                        process.send_signal(stop)
            for process in processes:
                said = await self._ended(process)
                if self._scenario.kind == "stops" and process.returncode not in (0, 128 + stop):
                    self._broken(f"exit code {process.returncode} after signal {stop}: {said[-600:]!r}")
                if self._scenario.kind == "stops" and ("Traceback" in said or "Warning" in said):
                    self._broken(f"after signal {stop}: {said[-600:]!r}")

    async def _start(self, recipe: Path) -> list[asyncio.subprocess.Process]:
        shape, command = self._scenario.shape, [sys.executable, "-m", "cowest", "run", str(recipe)]
        lines = [[*command, "--out", str(self._folder / "a")]]
        if shape == "jobs":
            lines[0] += ["--jobs", "2"]
        elif shape == "two":
            lines.append([*command, "--out", str(self._folder / "b"), "--set", f"seed={self._scenario.seed + 1000}"])
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        return [
            await asyncio.create_subprocess_exec(
                *line,
                env=env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
            for line in lines
        ]

    async def _ended(self, process: asyncio.subprocess.Process) -> str:
        """What it said on stderr. One that stands still is killed, with its children, and noted."""
        reading = asyncio.ensure_future(process.communicate())
        try:
            said = (await asyncio.wait_for(asyncio.shield(reading), self._limit_s))[1]
        except TimeoutError:
            self._broken(f"stood still for {self._limit_s:g} s")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            said = (await reading)[1]
        self._found.exits.append(process.returncode or 0)
        return said.decode(errors="replace")

    async def _check(self, limits: dict[str, JsonValue]) -> None:
        """Compare the endpoint's count with the bill's."""
        from cowest.ledger.summary import summarise_ledger

        found, kind = self._found, self._scenario.kind
        bill = summarise_ledger(self._ledger)
        found.paid, found.sent, found.entered = self._endpoint.paid, self._endpoint.sent, bill.paid_calls
        found.at_most = bill.paid_calls + bill.maybe_paid + bill.under_way
        if found.paid > found.at_most:
            self._broken(f"{found.paid} answered, and the bill says at most {found.at_most}")
        if kind == "stops" and found.entered < found.sent:
            self._broken(f"{found.sent - found.entered} answers that came were not entered")
        spent: dict[str, float] = {
            "budget_calls": found.paid,
            "budget_tokens": found.paid * (TOKENS_IN + TOKENS_OUT),
            "budget_usd": found.paid * COST_USD,
        }
        for name, limit in limits.items():
            if spent[name] > float(str(limit)) + 1e-9:
                self._broken(f"{name}: {spent[name]:g} of {limit}")

    def _broken(self, what: str) -> None:
        self._found.broken.append(what)


async def play(scenario: Scenario, limit_s: float = 90.0) -> Outcome:
    """Play one scenario; nothing of it is left behind."""
    with TemporaryDirectory(prefix="cowest-chaos-", ignore_cleanup_errors=True) as folder:
        return await Play(scenario, Path(folder), limit_s).run()


def scenarios(kinds: Sequence[str], shapes: Sequence[str], concurrency: Sequence[int], seeds: range) -> list[Scenario]:
    """Every combination."""
    return [Scenario(*each) for each in product(kinds, shapes, concurrency, seeds)]


def _print(outcomes: Sequence[Outcome]) -> None:
    groups: dict[tuple[str, str, int], list[Outcome]] = {}
    for found in outcomes:
        groups.setdefault((found.kind, found.shape, found.concurrency), []).append(found)
    print(
        f"{'kind':<8}{'shape':<7}{'at once':>8}{'runs':>6}{'held':>6}{'answered':>10}{'entered':>9}{'at most':>9}{'slowest s':>11}"
    )
    for (kind, shape, concurrency), group in groups.items():
        held = sum(not found.broken for found in group)
        counts = [sum(getattr(found, name) for found in group) for name in ("paid", "entered", "at_most")]
        numbers = f"{counts[0]:>10}{counts[1]:>9}{counts[2]:>9}{max(found.seconds for found in group):>11.1f}"
        print(f"{kind:<8}{shape:<7}{concurrency:>8}{len(group):>6}{held:>6}{numbers}")
    for found in outcomes:
        for what in found.broken:
            print(f"NOT HELD {found.kind} {found.shape} {found.concurrency} seed {found.seed}: {what}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--concurrency", default="16,64")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds, comma-separated")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--limit-s", type=float, default=90.0, help="a process that takes longer stands still")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    at_once = [int(n) for n in given.concurrency.split(",")]
    outcomes = []
    for scenario in scenarios(given.only.split(","), given.shapes.split(","), at_once, seeds):
        outcomes.append(asyncio.run(play(scenario, given.limit_s)))
        told = "held" if not outcomes[-1].broken else "; ".join(outcomes[-1].broken)
        print(f"{scenario}: {outcomes[-1].seconds} s, {told[:200]}", file=sys.stderr, flush=True)
    if given.json:
        print(json.dumps([asdict(found) for found in outcomes], indent=2))
    else:
        _print(outcomes)
    sys.exit(any(found.broken for found in outcomes))


if __name__ == "__main__":
    main()
