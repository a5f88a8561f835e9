"""The servers of a run: which of them are up, what they serve, and what happens when one dies.

A server is started by the first request for it. Only those that are needed are up: before one is started, those end that nobody has
asked since the stage (or the row of a table) began; before a training, all of them. They are started again by the next request.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import aiohttp

from cowest.engines.child import Child, free_port
from cowest.engines.program import Program, Wanted, free_gib
from cowest.errors import StageError
from cowest.protocols import Reporter

T = TypeVar("T")

MOST_DEATHS: Final = 3
"""So often a server may die within WITHIN_S seconds; then whoever asks it stops."""
WITHIN_S: Final = 1800.0
MOST_PORTS: Final = 3
AGAIN_S: Final = 60.0
"""So long a process that lasts (``cowest serve``) leaves a server alone that it could not have."""
TELL_S: Final = 10.0
"""Seconds between two lines of progress."""
SERVED: Final = "base"
_PORT_TAKEN: Final = re.compile(r"address already in use|couldn't bind|errno 98|errno 48", re.IGNORECASE)
_MEMORY: Final = re.compile(
    r"out of memory|cannot allocate memory|MemoryError|less than (requested|desired)|available KV cache memory|No available memory",
    re.IGNORECASE,
)
_MODULE: Final = re.compile(r"No module named '?([\w.]+)'?")
_ERROR: Final = re.compile(r"\w*(Error|Exception)\b|error:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a model is asked: the server's ``base_url`` and key, the model's name there, and which start of the server it is."""

    url: str
    key: str
    model: str
    start: int


class Server:
    """One server, up or not; ``label`` is what the user knows it by, such as ``weak``."""

    def __init__(self, program: Program, wanted: Wanted, label: str, log: Path, pool: Servers) -> None:
        self.program, self.wanted, self.label, self.log = program, wanted, label, log
        self.users, self.asked = 0, False
        self._pool = pool
        self._child: Child | None = None
        self._url, self._key, self._start = "", "", 0
        self._starting: asyncio.Task[None] | None = None
        self._loading: dict[tuple[str, int], asyncio.Task[str]] = {}
        self._deaths: list[float] = []
        self._failed: tuple[str, float] | None = None

    @property
    def up(self) -> bool:
        """Whether it runs, or is being started."""
        return self._child is not None

    @property
    def pid(self) -> int | None:
        """Its process group, while it is up."""
        return None if self._child is None else self._child.pid

    async def address(self, adapter: str | None) -> Address:
        """Where these weights are asked; the server is started, and the adapter loaded, where that is needed.

        Raises StageError, with the log's last lines, where it cannot be had.
        """
        self.asked = True
        while True:
            await self._ready()
            start, model = self._start, SERVED
            try:
                if adapter is not None and self.program.hot:
                    model = await self._loaded(adapter)
            except StageError:
                if await self.gone(start):
                    continue  # it died meanwhile, so that the adapter says nothing
                raise
            return Address(self._url, self._key, model, start)

    async def gone(self, start: int) -> bool:
        """Whether this start of the server is over, or ends within moments: a broken connection is the first sign."""
        child = self._child
        return child is None or start != self._start or await child.ended_within(3.0)

    async def end(self) -> None:
        """End it; the next request starts it again."""
        starting, self._starting = self._starting, None
        if starting is not None and not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        child, self._child = self._child, None
        self._loading.clear()
        if child is not None:
            await child.end()

    def new_step(self) -> None:
        """A stage begins: what happened in the last one is not held against the server."""
        self.asked, self._failed = False, None
        self._deaths.clear()

    async def _ready(self) -> None:
        if self._failed is not None and not (self._pool.lasting and time.monotonic() - self._failed[1] > AGAIN_S):
            raise StageError(self._failed[0], "engine")
        if self._starting is not None and not self._starting.done():
            await asyncio.shield(self._starting)
            return
        if self._child is not None and self._child.code is None:
            return
        self._starting = _watched(self._begin())  # whoever waits for it may go away: others wait, too
        await asyncio.shield(self._starting)

    async def _begin(self) -> None:
        try:
            if self._child is not None:
                self._bury(self._child)
            await self._pool.make_room(self)
            self._look_at_memory()
            for _ in range(MOST_PORTS):
                if await self._started():
                    return
            raise StageError(
                f"{self.label}: {self.program.name} found no free port in {MOST_PORTS} attempts; see {self.log}",
                "engine",
            )
        except StageError as error:
            self._failed = str(error), time.monotonic()
            raise

    def _bury(self, dead: Child) -> None:
        """Take note of a death. Raises StageError where it was one too many."""
        self._child = None
        self._loading.clear()
        dead.kill()  # what it has left
        now = time.monotonic()
        self._deaths = [at for at in self._deaths if now - at < WITHIN_S] + [now]
        if len(self._deaths) > MOST_DEATHS:
            raise StageError(self._why(dead, f"died {len(self._deaths)} times"), "engine")
        self._pool.reporter.info(self._why(dead, f"died and is started again ({len(self._deaths)} of {MOST_DEATHS})"))

    async def _started(self) -> bool:
        """Start it and wait until it answers; False where somebody else took its port."""
        self._start += 1  # at once: whose connection broke must not take the next server for the one that died
        port, self._key = free_port(), secrets.token_hex(16)
        self._url, began = f"http://127.0.0.1:{port}/v1", time.monotonic()
        command = self.program.command(self.wanted, port, self._key, SERVED)
        try:
            child = Child(command.arguments, command.environment, self.log)
        except OSError as error:
            raise StageError(f"{self.label}: {self.program.name} cannot be started: {error}", "engine") from None
        self._child, told = child, 0.0
        try:
            while not await self._answers():
                spent = time.monotonic() - began
                if child.code is not None:
                    if any(_PORT_TAKEN.search(line) for line in child.lines(40)):
                        self._child = None
                        child.kill()
                        return False
                    raise StageError(self._why(child, "did not start"), "engine")
                if spent > self.wanted.options.start_timeout_s:
                    raise StageError(
                        self._why(child, f"did not answer within {spent:.0f} s (engine_options.start_timeout_s)"),
                        "engine",
                    )
                if spent - told >= TELL_S:
                    told = spent
                    self._say(f"is starting, {spent:.0f} s: {' '.join(child.lines(1))[:100]}")
                await asyncio.sleep(0.1)
        except BaseException:
            self._child = None
            child.kill()
            raise
        self._say(f"is ready after {time.monotonic() - began:.0f} s")
        return True

    async def _answers(self) -> bool:
        """Whether our server answers: it, and nobody else, knows the key and the model's name."""
        headers, patience = {"Authorization": f"Bearer {self._key}"}, aiohttp.ClientTimeout(total=5)
        try:
            async with (
                aiohttp.ClientSession(timeout=patience, headers=headers) as session,
                session.get(f"{self._url}/models", allow_redirects=False) as response,
            ):
                told = await response.json(content_type=None)
        except (aiohttp.ClientError, OSError, ValueError, TimeoutError):
            return False
        models = told.get("data") if isinstance(told, dict) else None
        return isinstance(models, list) and any(isinstance(m, dict) and m.get("id") == SERVED for m in models)

    async def _loaded(self, adapter: str) -> str:
        """The adapter's name there. One that was trained anew at the same place is another."""
        file = Path(adapter) / "adapter_model.safetensors"
        key = (adapter, file.stat().st_mtime_ns if file.exists() else 0)
        if key not in self._loading:
            self._loading[key] = _watched(self._load(adapter, f"adapter-{len(self._loading) + 1}"))
        return await asyncio.shield(self._loading[key])

    async def _load(self, adapter: str, name: str) -> str:
        headers, patience = {"Authorization": f"Bearer {self._key}"}, aiohttp.ClientTimeout(total=300)
        body = {"lora_name": name, "lora_path": str(Path(adapter).resolve())}
        problem = ""
        try:
            async with (
                aiohttp.ClientSession(timeout=patience, headers=headers) as session,
                session.post(f"{self._url}/load_lora_adapter", json=body, allow_redirects=False) as response,
            ):
                if response.status != 200:
                    problem = f"HTTP {response.status}: {(await response.text())[:300]}"
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            raise StageError(
                f"{self.label}: {self.program.name} did not load the adapter {adapter}: {problem}", "engine"
            )
        return name

    def _look_at_memory(self) -> None:
        """Raise StageError where this machine's memory cannot hold it."""
        parts, free = self.program.memory(self.wanted), free_gib()
        needed = sum(parts.values())
        if free is None or needed <= free:
            return
        told = ", ".join(f"{name} {gib:.1f}" for name, gib in parts.items())
        raise StageError(
            f"{self.label}: {self.program.name} needs about {needed:.1f} GiB of memory ({told}) and {free:.1f} GiB are free; end "
            "what else runs, set engine_options.kv_cache_gib lower, or take a smaller model",
            "engine",
        )

    def _why(self, child: Child, what: str) -> str:
        """What happened to it, what to do, and what its log says, in one line."""
        lines, code = child.lines(200), child.code
        hint = ""
        if code == 137 or any(_MEMORY.search(line) for line in lines[-60:]):
            hint = "; too little memory: set engine_options.kv_cache_gib or max_model_len lower, or end what else runs"
        elif module := next((m[1] for line in lines[-30:] if (m := _MODULE.search(line))), None):
            hint = f"; {self.wanted.python} lacks {module}: {self.wanted.python} -m pip install {module}"
        status = "" if code is None else f" (status {code})"
        return f"{self.label}: {self.program.name} {what}{status}{hint}. Its log, {self.log}, ends: {' | '.join(telling(lines))}"

    def _say(self, what: str) -> None:
        self._pool.reporter.info(f"  {self.label}: {self.program.name} {what}")


class Servers:
    """All servers of a run; their logs are in ``folder``.

    ``lasting``: of a process that goes on without them, as ``cowest serve`` does; what cannot be had is tried again later.
    """

    def __init__(self, folder: Path, reporter: Reporter, lasting: bool = False) -> None:
        self.folder, self.reporter, self.lasting = folder, reporter, lasting
        self._servers: list[Server] = []

    def __iter__(self) -> Iterator[Server]:
        return iter(self._servers)

    def taken(self, program: Program, wanted: Wanted, label: str) -> Server:
        """The server for these weights, one that is up where it can serve them; the caller lets it go with :meth:`left`."""
        found = [s for s in self._servers if s.program is program and program.can_also(s.wanted, wanted)]
        found.sort(key=lambda s: not s.up)
        if found:
            server = found[0]
        else:
            server = Server(program, wanted, label, self.folder / f"{label}.log", self)
            self._servers.append(server)
        server.users += 1
        return server

    def left(self, server: Server) -> None:
        """One user less. It stays up: the next checkpoint may be asked in a moment."""
        server.users -= 1

    async def make_room(self, starting: Server) -> None:
        """End the servers that are up and not needed now."""
        idle = [s for s in self._servers if s is not starting and s.up and not (s.users and s.asked)]
        await asyncio.gather(*(server.end() for server in idle))
        self._servers = [s for s in self._servers if s is starting or s.up or s.users]

    def new_step(self) -> None:
        """A stage, or a row of a table, begins."""
        for server in self._servers:
            server.new_step()

    async def end_all(self) -> None:
        """End all of them: before a training, which needs their memory, and at the end."""
        await asyncio.gather(*(server.end() for server in self._servers))


def telling(lines: Sequence[str], most: int = 3) -> list[str]:
    """The lines of a log that tell most: where an error is spoken of, the first of them; and the last."""
    if not lines:
        return ["(nothing)"]
    spoken = list(dict.fromkeys(line for line in lines[:-1] if _ERROR.search(line)))
    return [*spoken[: most - 1], lines[-1]] if spoken else list(lines[-most:])


def _watched(work: Coroutine[object, object, T]) -> asyncio.Task[T]:
    """A task whose failure is for those who wait for it, and no warning where nobody does any more."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task
