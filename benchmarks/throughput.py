"""Calling an endpoint: wall time and CPU of our client, with and without the ledger, beside a bare one and others.

    python -m benchmarks.throughput                  4,000 calls, 256 at once, 50 ms each, median of 3 interleaved runs
    python -m benchmarks.throughput --memory         100,000 calls through the ledger: the process's memory on the way
    python -m benchmarks.throughput --peers FOLDER   also the openai SDK and distilabel, installed into FOLDER/.venv

Each client runs in a process of its own against a server in another. The ideal is calls x delay / concurrency.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

CALLS, CONCURRENCY, DELAY_MS = 4000, 256, 50.0
PROMPT = "May a patient with Kasti take 45 mg of Velmo? " * 10
HERE = Path(__file__).parent


def _prompt(number: int) -> str:
    return f"{number}: {PROMPT}"


async def _in_parallel(ask: Callable[[int], Awaitable[object]], calls: int, concurrency: int) -> None:
    rest = iter(range(calls))

    async def work() -> None:
        for number in rest:
            await ask(number)

    await asyncio.gather(*(work() for _ in range(concurrency)))


async def bare_asyncio(url: str, calls: int, concurrency: int) -> None:
    """Sockets, and json: what the machine allows a client to reach that checks nothing."""
    port = int(url.split(":")[2].split("/")[0])
    rest = iter(range(calls))

    async def work() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in rest:
            messages = [{"role": "user", "content": _prompt(number)}]
            body = json.dumps({"model": "m", "messages": messages, "temperature": 0.0, "max_tokens": 256}).encode()
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            writer.write(head % len(body) + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            assert json.loads(await reader.readexactly(length))["choices"][0]["message"]["content"]
        writer.close()

    await asyncio.gather(*(work() for _ in range(concurrency)))


async def bare_aiohttp(url: str, calls: int, concurrency: int) -> None:
    """The HTTP library that ours is built on, and nothing else."""
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(number: int) -> None:
            messages = [{"role": "user", "content": _prompt(number)}]
            body = {"model": "m", "messages": messages, "temperature": 0.0, "max_tokens": 256}
            async with session.post(f"{url}/chat/completions", json=body) as response:
                assert (await response.json())["choices"][0]["message"]["content"]

        await _in_parallel(ask, calls, concurrency)


async def _ours(url: str, calls: int, concurrency: int, ledger_file: Path | None, watch: bool = False) -> None:
    from cowest.assembly.opened import most_at_risk
    from cowest.cli.main import relax_gc
    from cowest.ledger.ledger import Ledger
    from cowest.ledger.prices import Price
    from cowest.models.ledgered import LedgeredChatModel
    from cowest.models.openai import OpenAIChatModel
    from cowest.protocols import ChatModel
    from cowest.stages.base import IN_FLIGHT
    from cowest.types import Message, Sampling

    relax_gc()  # as the command does
    model: ChatModel = OpenAIChatModel(base_url=url, model="m", api_key="k", concurrency=concurrency)
    ledger = Ledger(ledger_file, "benchmark") if ledger_file else None
    if ledger is not None:
        model = LedgeredChatModel(model, ledger, model="m", price=Price(1.0, 4.0), at_risk=most_at_risk(concurrency))
    sampling = Sampling(max_tokens=256)
    marks = {max(1, calls * part // 10) - 1 for part in range(1, 11)} if watch else set()

    async def ask(number: int) -> None:
        assert (await model.generate([Message(role="user", content=_prompt(number))], sampling)).text
        if number in marks:
            print(f"rss_mib_after_{number + 1}_calls {_rss_mib():.1f}", file=sys.stderr, flush=True)

    # As a stage of the pipeline does: many callers, of whom the limiter lets ``concurrency`` through.
    await _in_parallel(ask, calls, min(calls, IN_FLIGHT))
    await model.aclose()
    if ledger is not None:
        ledger.close()


async def cowest(url: str, calls: int, concurrency: int) -> None:
    """Our client: limiter, retries, checks."""
    await _ours(url, calls, concurrency, None)


async def cowest_ledger(url: str, calls: int, concurrency: int) -> None:
    """The same with every answer on disk before it is used."""
    with TemporaryDirectory() as folder:
        await _ours(url, calls, concurrency, Path(folder) / "ledger.sqlite")


async def openai_sdk(url: str, calls: int, concurrency: int) -> None:
    """The official SDK. It keeps 100 connections alive by default, and with 256 calls at once stood still here: it may keep all."""
    import httpx2  # type: ignore[import-not-found,unused-ignore]
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    client = AsyncOpenAI(base_url=url, api_key="k", http_client=DefaultAsyncHttpxClient(limits=limits))

    async def ask(number: int) -> None:
        done = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": _prompt(number)}], temperature=0.0, max_tokens=256
        )
        assert done.choices[0].message.content

    await _in_parallel(ask, calls, concurrency)


async def distilabel(url: str, calls: int, concurrency: int) -> None:
    """Distilabel's model class. It uses the SDK with its default connections, and stands still above some 200 calls at once: 64."""
    from distilabel.models import OpenAILLM  # type: ignore[import-not-found,unused-ignore]

    llm = OpenAILLM(model="m", base_url=url, api_key="k", generation_kwargs={"max_new_tokens": 256, "temperature": 0.0})
    llm.load()

    async def ask(number: int) -> None:
        messages = [{"role": "user", "content": _prompt(number)}]
        done = await llm.agenerate(input=messages, max_new_tokens=256, temperature=0.0)
        assert done["generations"][0]

    await _in_parallel(ask, calls, min(concurrency, 64))


OURS = {f.__name__: f for f in (bare_asyncio, bare_aiohttp, cowest, cowest_ledger)}
PEERS = {f.__name__: f for f in (openai_sdk, distilabel)}


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _client(name: str, url: str, calls: int, concurrency: int) -> None:
    """Run one client here and print what it took, its start not counted."""
    run = (OURS | PEERS)[name]

    async def measured() -> dict[str, float]:
        await run(url, 2 * 16, 16)  # imports and first connections
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        await run(url, calls, concurrency)
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        return {"wall": wall, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}

    print(json.dumps(asyncio.run(measured())))


@contextmanager
def served(delay_ms: float) -> Iterator[str]:
    """The endpoint, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.slow_endpoint", "--delay-ms", str(delay_ms)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def _install_peers(folder: Path) -> Path:
    """An environment with the peers, made on first use; returns its Python."""
    python = folder / ".venv" / "bin" / "python"
    if not python.exists():
        venv.create(folder / ".venv", with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "openai", "distilabel[openai]", "requests"], check=True)
    return python


def compare(calls: int, concurrency: int, runs: int, peers: Path | None) -> None:
    """Measure every client, interleaved, and print a table."""
    pythons = dict.fromkeys(OURS, Path(sys.executable))
    if peers is not None:
        pythons |= dict.fromkeys(PEERS, _install_peers(peers))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
    with served(DELAY_MS) as url:
        for _ in range(runs):
            for name, python in pythons.items():
                command = [str(python), "-m", "benchmarks.throughput", "--client", name, "--url", url]
                command += ["--calls", str(calls), "--concurrency", str(concurrency)]
                try:
                    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent, timeout=120)
                except subprocess.TimeoutExpired:
                    print(f"{name}: not done in two minutes", file=sys.stderr)
                    continue
                if done.returncode == 0:
                    found[name].append(json.loads(done.stdout.splitlines()[-1]))
    ideal = calls * DELAY_MS / 1000 / concurrency
    print(
        f"{calls} calls, {concurrency} at once, {DELAY_MS:g} ms each: ideal {ideal:.2f} s; medians of {runs} interleaved runs"
    )
    print(f"{'client':<16}{'wall s':>8}{'/ ideal':>9}{'/ bare':>8}{'CPU ms/call':>13}")
    bare = statistics.median(r["wall"] for r in found["bare_asyncio"])
    for name, rows in found.items():
        if not rows:
            print(f"{name:<16} failed, or is not installed")
            continue
        wall, cpu = (statistics.median(r[key] for r in rows) for key in ("wall", "cpu"))
        print(f"{name:<16}{wall:>8.2f}{wall / ideal:>9.2f}{wall / bare:>8.2f}{1000 * cpu / calls:>13.3f}")
    ours, entered = (statistics.median(r["wall"] for r in found[name]) for name in ("cowest", "cowest_ledger"))
    print(f"the ledger adds {100 * (entered / ours - 1):.1f}%")


def memory(calls: int, concurrency: int) -> None:
    """Many calls to an endpoint without delay, through the ledger, and the process's memory on the way."""
    with served(0.0) as url, TemporaryDirectory() as folder:
        file = Path(folder) / "ledger.sqlite"
        began = time.perf_counter()
        asyncio.run(_ours(url, calls, concurrency, file, watch=True))
        print(f"calls_per_s {calls / (time.perf_counter() - began):.0f}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int)
    parser.add_argument("--concurrency", type=int, default=CONCURRENCY)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peers", type=Path, help="a folder for an environment with the openai SDK and distilabel")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.client:
        _client(given.client, given.url, given.calls, given.concurrency)
    elif given.memory:
        memory(given.calls or 100_000, given.concurrency)
    else:
        compare(given.calls or CALLS, given.concurrency, given.runs, given.peers)


if __name__ == "__main__":
    main()
