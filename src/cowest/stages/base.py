"""What a stage is, and the loop that keeps one record per call: resumable, ordered, failing early."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

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


class _Patience:
    """Stops a stage whose calls all fail, or fail all in the same way: an endpoint that is down is not asked for days."""

    def __init__(self, label: str, items: int, succeeded: bool, proven: bool = False) -> None:
        self._label, self._enough, self._proven = label, min(GIVE_UP_AFTER, items), proven
        self._any, self._row, self._kind = succeeded, 0, ""

    def see(self, error: str | None) -> None:
        """Take note of one record's error, or success. Raises StageError when it is enough."""
        if error is None:
            self._any, self._row = True, 0
            return
        kind = error.split(":")[0]
        if (self._any or self._proven) and kind in ABOUT_THE_QUERY:
            return
        self._row = self._row + 1 if kind == self._kind or not self._any else 1
        self._kind = kind
        if self._row >= self._enough:
            which = f"the last {self._row}" if self._any else f"the first {self._row}"
            raise StageError(f"{self._label}: {which} calls all failed; the last one: {error}", kind)


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
    first: Sequence[I] = (),
) -> list[R]:
    """Make one record for each item that has none yet; each is on disk before it counts. Failed ones are made again.

    Returns the records in the items' order, which is also the order of the file when all are there; ``at_once`` of them are under
    way together. ``limit`` names the setting that bounds their length, for the warning where many are cut off. ``proven``: the
    model has answered elsewhere, so that it refuses these queries where it refuses, and is not out of order. ``looking`` sees every
    record, those that were there first, and may raise; the ``first`` items are made before any other is begun. Raises StageError
    when GIVE_UP_AFTER calls in a row (or all) fail in the same way, and BudgetExceededError, which then also says how far it came.
    """
    done = {key_of_record(r): r for r in file.load() if getattr(r, "error", None) is None}
    todo = [item for item in items if key_of_item(item) not in done]
    context.reporter.start(f"{context.label}{label}", len(items), len(items) - len(todo))
    patience = _Patience(label, len(items), bool(done), proven)
    watch = CutWatch(context, label, limit, len(todo))
    if looking is not None:
        for record in done.values():
            looking.see(record)

    async def work(rest: Iterable[I]) -> None:
        for item in rest:
            record = await make(item)
            file.append(record)  # at once: what is not on disk when the process is killed is made again
            done[key_of_record(record)] = record
            context.reporter.advance()
            watch.see(record)
            if looking is not None:
                looking.see(record)
            patience.see(getattr(record, "error", None))

    ahead = {key_of_item(item) for item in first}
    parts = [[item for item in todo if (key_of_item(item) in ahead) is early] for early in (True, False)]
    workers = list[asyncio.Future[None]]()
    try:
        for part in parts:
            rest = iter(part)  # shared by all workers: each takes the next item
            workers = [asyncio.ensure_future(work(rest)) for _ in range(min(at_once, len(part)))]
            await asyncio.gather(*workers)
        if looking is not None:
            looking.look()
    except BudgetExceededError as error:
        raise BudgetExceededError(f"{context.label}{label}: {len(done)} of {len(items)} done. {error}") from None
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        file.close()
        context.reporter.finish()
    ordered = [done[key_of_item(item)] for item in items]
    file.replace(ordered)
    return ordered
