"""What a stage is, and the loop that keeps one record per call: resumable, ordered, failing early."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from cowest.assembly.context import Context
from cowest.errors import BudgetExceededError, StageError, WiringError
from cowest.protocols import Reporter
from cowest.run.freshness import Depends, all_files, note_outputs
from cowest.run.manifest import StageEntry
from cowest.run.store import JsonlFile, RunDir
from cowest.stages.watch import Asking, CutWatch, Looking

I = TypeVar("I")  # noqa: E741 - an item of work
R = TypeVar("R", bound=BaseModel)
T = TypeVar("T")

IN_FLIGHT = 4096  # most items handed to a model at once: enough to fill any batch, and memory stays bounded
GIVE_UP_AFTER = 20  # failures in a row, all of one kind, before a stage stops
ABOUT_THE_QUERY = frozenset(
    {"bad_json", "bad_response", "content_filter", "empty", "no_choices", "refusal", "thinking_only"}
)
"""Failures that say something of the query asked and nothing of the endpoint: after a first answer they stop no stage."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a stage did: its counts for people and reports, and how many of its calls failed, which the next run asks again.

    ``warnings``: what it said of its own records while it ran, which results and report say again.
    """

    counts: Mapping[str, int]
    failed: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the pipeline: a fresh one is used again, by the rule of :mod:`cowest.run.freshness`.

    ``depends`` gives the part of the config (and of the data) that its outputs follow from, by name; beside that it depends on what
    it ``reads`` of earlier stages. ``keeps`` are the files under a written name that matter to later stages.
    """

    name: str
    version: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    depends: Callable[[Context], Depends]
    execute: Callable[[Context], Awaitable[Done]]
    keeps: Callable[[RunDir, str], Sequence[Path]] = all_files


def checked(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages, or WiringError when one would read what no earlier one writes."""
    written: dict[str, str] = {}
    for stage in stages:
        for name in stage.reads:
            if name not in written:
                raise WiringError(
                    f"stage {stage.name!r} reads {name!r}, which no earlier stage writes ({', '.join(written)})"
                )
        for name in stage.writes:
            if name in written:
                raise WiringError(f"stages {written[name]!r} and {stage.name!r} both write {name!r}")
            written[name] = stage.name
    return tuple(stages)


async def executed(context: Context, stage: Stage, entry: StageEntry) -> None:
    """Run a stage, with its state in the manifest before, after, and when it is stopped."""
    context.run.record(stage.name, entry)
    began = time.monotonic()
    try:
        done = await stage.execute(context)
    except BaseException:
        spent = entry.seconds + time.monotonic() - began
        context.run.record(stage.name, entry.model_copy(update={"seconds": spent}))
        raise
    seconds = round(entry.seconds + time.monotonic() - began, 2)
    finished = {"status": "done", "counts": dict(done.counts), "failed": done.failed, "seconds": seconds}
    finished["warnings"] = done.warnings
    outputs = note_outputs(context.run, stage)
    context.run.record(stage.name, entry.model_copy(update={**finished, "outputs": outputs}))
    told = ", ".join(f"{key.replace('_', ' ')} {n}" for key, n in sorted(done.counts.items()) if n)
    context.reporter.info(f"{context.label}{stage.name}: done in {seconds:.0f} s ({told})")
    context.tracker.log(f"{context.label}{stage.name}", {**done.counts, "seconds": seconds})


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


class Patience:
    """Stops a stage whose calls all fail, or fail all in the same way: an endpoint that is down is not asked for days."""

    def __init__(self, label: str, items: int, succeeded: bool, proven: Callable[[], bool]) -> None:
        self._label, self._enough, self._proven = label, min(GIVE_UP_AFTER, items), proven
        self.any, self._row, self._kind = succeeded, 0, ""

    def see(self, error: str | None) -> None:
        """Take note of one record's error, or success. Raises StageError when it is enough."""
        if error is None:
            self.any, self._row = True, 0
            return
        kind = error.split(":")[0]
        if kind in ABOUT_THE_QUERY and (self.any or self._proven()):
            return
        self._row = self._row + 1 if kind == self._kind or not self.any else 1
        self._kind = kind
        if self._row >= self._enough:
            which = f"the last {self._row}" if self.any else f"the first {self._row}"
            raise StageError(f"{self._label}: {which} calls all failed; the last one: {error}", kind)


class Filling(Generic[I, R]):
    """A file that gets one record for each item: those that it lacks are made by :func:`filled`, and failed ones again.

    ``limit`` names the setting that bounds the records' length, for the warning where many are cut off. ``proven``: whether the
    model has answered elsewhere, so that it refuses these queries where it refuses, and is not out of order. ``looking`` sees every
    record, those that were there first, and may raise. Where several files are filled together, items of a smaller ``rank`` come
    first, and of one rank those of the file that is named first.
    """

    def __init__(
        self,
        label: str,
        context: Asking,
        file: JsonlFile[R],
        items: Sequence[I],
        key_of_item: Callable[[I], str],
        key_of_record: Callable[[R], str],
        make: Callable[[I], Awaitable[R]],
        limit: str = "max_tokens",
        proven: Callable[[], bool] = lambda: False,
        looking: Looking | None = None,
        rank: Callable[[I], int] = lambda item: 0,
    ) -> None:
        self.label, self.items, self.rank, self._file, self._make = label, items, rank, file, make
        self._key_of_item, self._key_of_record, self._looking = key_of_item, key_of_record, looking
        self.done = {key_of_record(r): r for r in file.load() if getattr(r, "error", None) is None}
        self.todo = [item for item in items if key_of_item(item) not in self.done]
        self._patience = Patience(label, len(items), bool(self.done), proven)
        self._watch = CutWatch(context, label, limit, len(self.todo))

    @property
    def answered(self) -> bool:
        """Whether any record is there that holds no error."""
        return self._patience.any

    def begin(self) -> None:
        """Look at what is there."""
        if self._looking is not None:
            for record in self.done.values():
                self._looking.see(record)

    async def make(self, item: I, reporter: Reporter) -> None:
        """Make an item's record and put it down. Raises StageError where it is enough."""
        record = await self._make(item)
        self._file.append(record)  # at once: what is not on disk when the process is killed is made again
        self.done[self._key_of_record(record)] = record
        reporter.advance()
        self._watch.see(record)
        if self._looking is not None:
            self._looking.see(record)
        self._patience.see(getattr(record, "error", None))

    def end(self) -> None:
        """All are there: put the file into the items' order. Raises StageError where ``looking`` does."""
        if self._looking is not None:
            self._looking.look()
        self._file.replace(self.records())

    def records(self) -> list[R]:
        """The records in the items' order, when all are there."""
        return [self.done[self._key_of_item(item)] for item in self.items]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


async def filled(label: str, context: Asking, fillings: Sequence[Filling[Any, Any]], at_once: int = IN_FLIGHT) -> None:
    """Make one record for each item that has none yet, of all files together; each is on disk before it counts.

    ``at_once`` of them are under way together; ``label`` is what is done in all. Raises StageError when GIVE_UP_AFTER calls in a
    row (or all) of a file fail in the same way, and BudgetExceededError, which then also says how far each came.
    """
    total, todo = (
        sum(len(part) for part in parts) for parts in zip(*((f.items, f.todo) for f in fillings), strict=True)
    )
    context.reporter.start(f"{context.label}{label}", total, total - todo)
    rest = iter(sorted(((f, item) for f in fillings for item in f.todo), key=lambda pair: pair[0].rank(pair[1])))

    async def work() -> None:
        for filling, item in rest:  # shared by all workers: each takes the next item
            await filling.make(item, context.reporter)

    workers = list[asyncio.Future[None]]()
    try:
        for filling in fillings:
            filling.begin()
        workers = [asyncio.ensure_future(work()) for _ in range(min(at_once, todo))]
        await asyncio.gather(*workers)
    except BudgetExceededError as error:
        came = ", ".join(f"{f.label}: {len(f.done)} of {len(f.items)} done" for f in fillings)
        raise BudgetExceededError(f"{context.label}{came}. {error}") from None
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        for filling in fillings:
            filling.close()
        context.reporter.finish()
    for filling in fillings:
        filling.end()


async def fill(
    label: str,
    context: Asking,
    file: JsonlFile[R],
    items: Sequence[I],
    key_of_item: Callable[[I], str],
    key_of_record: Callable[[R], str],
    make: Callable[[I], Awaitable[R]],
    at_once: int = IN_FLIGHT,
    limit: str = "max_tokens",
    proven: bool = False,
    looking: Looking | None = None,
) -> list[R]:
    """Fill one file (:class:`Filling`, :func:`filled`). Returns the records in the items' order, which is also the file's then."""
    filling = Filling(label, context, file, items, key_of_item, key_of_record, make, limit, lambda: proven, looking)
    await filled(label, context, [filling], at_once)
    return filling.records()
