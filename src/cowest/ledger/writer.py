"""One thread that writes: what has gathered while it was busy goes into one transaction (group commit)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Final, Generic, TypeVar, cast

from pydantic import ValidationError

from cowest.errors import DataError
from cowest.ledger.schema import connect, problem

E = TypeVar("E")
T = TypeVar("T")
MOST: Final = 512  # writes in one transaction, so that another process gets its turn
GATHER_S: Final = 0.005
CHORE_S: Final = 1.0
BUSY: Final = 8
"""After a transaction of so many writes, the first of the next one waits ``GATHER_S`` for others: at thousands of calls a
second each transaction's own cost, and the interpreter lock that it takes from the event loop, would be most of the work."""


class _Write(Generic[T]):
    """A piece of work, and who waits for its outcome: a task of an event loop, or a thread."""

    __slots__ = ("bulk", "loop", "waiter", "work")

    def __init__(self, work: Callable[[sqlite3.Connection], T], loop: asyncio.AbstractEventLoop | None) -> None:
        self.work, self.loop = work, loop
        self.bulk: tuple[Callable[..., None], object] | None = None
        self.waiter: asyncio.Future[T] | Future[T] = Future() if loop is None else loop.create_future()

    def tell(self, result: T | None, error: BaseException | None) -> None:
        """Hand over the outcome; a waiter that was cancelled meanwhile wants none."""
        if self.waiter.done():
            return
        if error is not None:
            self.waiter.set_exception(error)
        else:
            self.waiter.set_result(result)  # type: ignore[arg-type]


Outcome = tuple[_Write[object], object, BaseException | None]


def _tell(outcomes: list[Outcome]) -> None:
    """Hand over what one transaction brought, with one wake-up for each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
    for write, result, error in outcomes:
        if write.loop is None:
            write.tell(result, error)
        else:
            by_loop.setdefault(write.loop, []).append((write, result, error))
    for loop, told in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_tell_here, told)


def _tell_here(outcomes: list[Outcome]) -> None:
    for write, result, error in outcomes:
        write.tell(result, error)


class Writer:
    """Runs pieces of work in transactions, in order. A failed transaction fails all of its pieces; nothing is half done.

    ``chore`` is asked now and then for work that nobody waits for.
    """

    def __init__(
        self, path: Path, chore: Callable[[], Callable[[sqlite3.Connection], None] | None] | None = None
    ) -> None:
        self._path, self._chore, self._tidied = path, chore, time.monotonic()
        self._queue: queue.SimpleQueue[_Write[object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop, name="cowest-ledger", daemon=True)
        self.closed = False
        self.broken: DataError | None = None  # why the file could not be written, once
        self._thread.start()

    async def together(self, work: Callable[[sqlite3.Connection, Sequence[E]], None], item: E) -> None:
        """The same for one of many equal pieces: those that come one after the other are given to ``work`` at once."""
        write = _Write(lambda db: work(db, [item]), asyncio.get_running_loop())
        write.bulk = (work, item)
        self._put(write)
        await cast("asyncio.Future[None]", write.waiter)

    async def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Durable when it returns. Raises DataError when the file cannot be written, what ``work`` raised otherwise."""
        return await self.begin(work)  # a caller that goes away leaves the write in the queue

    def begin(self, work: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """The same, to be awaited later."""
        write = _Write(work, asyncio.get_running_loop())
        self._put(write)
        return cast("asyncio.Future[T]", write.waiter)

    def post(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """The same, and nobody waits: what comes later in the queue finds it done. Nothing is done once it is closed."""
        if not self.closed:
            self._queue.put(cast("_Write[object]", _Write(work, None)))

    def call(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The same, waiting in this thread."""
        write = _Write(work, None)
        self._put(write)
        return cast("Future[T]", write.waiter).result()

    def close(self) -> None:
        """Do what is left, then end the thread."""
        self.closed = True
        self._queue.put(None)
        self._thread.join()

    def _put(self, write: _Write[T]) -> None:
        if self.closed:
            raise DataError(f"{self._path}: the ledger is closed")
        self._queue.put(cast("_Write[object]", write))

    def _loop(self) -> None:
        try:
            db = connect(self._path)
        except Exception as error:
            self._fail_all(error)
            return
        try:
            busy = False
            while (first := self._next(db)) is not None:
                writes, ended = [first], False
                if busy and not self.closed:
                    time.sleep(GATHER_S)
                while len(writes) < MOST and not self._queue.empty():
                    more = self._queue.get()
                    if more is None:
                        ended = True
                        break
                    writes.append(more)
                self._transact(db, writes)
                busy = len(writes) >= BUSY
                if ended:
                    return
        finally:
            db.close()

    def _next(self, db: sqlite3.Connection) -> _Write[object] | None:
        """The next write. About every ``CHORE_S`` seconds there is a look whether there is a chore."""
        while True:
            if self._chore is not None and time.monotonic() - self._tidied > CHORE_S:
                self._tidied, chore = time.monotonic(), self._chore()
                if chore is not None:
                    self._transact(db, [cast("_Write[object]", _Write(chore, None))])
            try:
                return self._queue.get(timeout=None if self._chore is None else CHORE_S)
            except queue.Empty:
                continue

    def _transact(self, db: sqlite3.Connection, writes: list[_Write[object]]) -> None:
        try:
            db.execute("BEGIN IMMEDIATE")
            outcomes: list[Outcome] = []
            for bulk, group in itertools.groupby(writes, key=lambda write: write.bulk and write.bulk[0]):
                if bulk is None:
                    outcomes += [(write, write.work(db), None) for write in group]
                else:
                    some = list(group)
                    bulk(db, [write.bulk[1] for write in some if write.bulk])
                    outcomes += [(write, None, None) for write in some]
            db.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(
                sqlite3.Error
            ):  # a broken disk: what was begun is undone when the file is opened next
                if db.in_transaction:
                    db.execute("ROLLBACK")
            told: BaseException = error
            if isinstance(error, sqlite3.Error | ValidationError):
                told = self.broken = problem(self._path, error)
            outcomes = [(write, None, told) for write in writes]
        _tell(outcomes)

    def _fail_all(self, error: Exception) -> None:
        while (write := self._queue.get()) is not None:
            _tell([(write, None, error)])
