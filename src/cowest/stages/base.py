"""What a stage is, and the loop that keeps one record per call: resumable, ordered, failing early."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, JsonValue

from cowest.config import RunConfig
from cowest.errors import StageError
from cowest.protocols import ChatModel, Frames, Reporter, Task
from cowest.store import JsonlFile, RunDir
from cowest.types import ModelRef

I = TypeVar("I")  # noqa: E741 - an item of work
R = TypeVar("R", bound=BaseModel)
T = TypeVar("T")

IN_FLIGHT = 4096  # most items handed to a model at once: enough to fill any batch, and memory stays bounded
GIVE_UP_AFTER = 20  # failures without a single success before a stage stops


@dataclass(frozen=True, slots=True)
class Context:
    """What a stage works with: one task of a recipe. Models are opened on first use and shared."""

    label: str
    config: RunConfig
    task: Task
    frames: Frames
    run: RunDir
    reporter: Reporter
    open_weak: Callable[[ModelRef], ChatModel]
    open_strong: Callable[[], ChatModel]
    close_strong: Callable[[], Awaitable[None]]

    def path(self, name: str) -> Path:
        """A file or folder of the run."""
        return self.run.path / name


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the pipeline.

    ``depends`` gives the part of the config (and of the data) that its outputs are a function of; together with ``version``
    and the fingerprints of the stages that wrote what it ``reads``, that decides whether its outputs are still fresh.
    """

    name: str
    version: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    depends: Callable[[Context], JsonValue]
    execute: Callable[[Context], Awaitable[Mapping[str, int]]]


def failures(records: Sequence[BaseModel]) -> int:
    """How many records hold an error instead of a text."""
    return sum(getattr(r, "error", None) is not None for r in records)


class _Stoppable:
    """A reporter through which a thread, which cannot be cancelled, hears at its next step that the run was stopped."""

    def __init__(self, inner: Reporter) -> None:
        self._inner, self.stopped = inner, False
        self.start, self.finish, self.info = inner.start, inner.finish, inner.info

    def advance(self, n: int = 1) -> None:
        if self.stopped:
            raise KeyboardInterrupt
        self._inner.advance(n)


async def in_thread(work: Callable[[Reporter], T], reporter: Reporter) -> T:
    """Train in a thread; when the run is stopped, the thread ends with its next optimizer step."""
    stoppable = _Stoppable(reporter)
    try:
        return await asyncio.to_thread(work, stoppable)
    finally:
        stoppable.stopped = True


async def fill(
    label: str,
    context: Context,
    file: JsonlFile[R],
    items: Sequence[I],
    key_of_item: Callable[[I], str],
    key_of_record: Callable[[R], str],
    make: Callable[[I], Awaitable[R]],
) -> list[R]:
    """Make one record for each item that has none yet; each is on disk before it counts. Failed ones are made again.

    Returns the records in the items' order, which is also the order of the file when all are there. Raises StageError when the
    first GIVE_UP_AFTER (or all) fail: an endpoint that is down would otherwise be asked thousands of times.
    """
    done = {key_of_record(r): r for r in file.load() if getattr(r, "error", None) is None}
    todo = [item for item in items if key_of_item(item) not in done]
    context.reporter.start(f"{context.label}{label}", len(items), len(items) - len(todo))
    limit, failed, succeeded = asyncio.Semaphore(IN_FLIGHT), 0, 0

    async def one(item: I) -> R:
        async with limit:
            record = await make(item)
            file.append(record)  # at once: what is not on disk when the process is killed is asked, and paid, again
            return record

    running = [asyncio.ensure_future(one(item)) for item in todo]
    try:
        for finished in asyncio.as_completed(running):
            record = await finished
            done[key_of_record(record)] = record
            context.reporter.advance()
            error = getattr(record, "error", None)
            failed, succeeded = failed + (error is not None), succeeded + (error is None)
            if failed >= min(GIVE_UP_AFTER, len(items)) and not succeeded:
                raise StageError(f"{label}: the first {failed} calls all failed; the last one: {error}")
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        file.close()
        context.reporter.finish()
    ordered = [done[key_of_item(item)] for item in items]
    file.replace(ordered)
    return ordered
