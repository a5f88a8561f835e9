"""What calls under way can cost: on disk before they are sent, and counted in full until they are entered.

A row of ``reservations`` is the most that one attempt can cost. ``process`` is who made it, and so what becomes of it:

    IDENTITY          an attempt under way; it gives back what it does not need. When its process dies it may have been paid
    over:IDENTITY     an attempt that is over and may have been paid; its call tries again, and gives nothing back by itself
    batch:IDENTITY    a request in a batch at the provider, which outlives its process

With a budget each attempt has a row of its own. Without one a row goes from one call to the next (:mod:`cowest.ledger.pool`): as
many are written as calls are under way at once, and hardly a call waits for the disk. A kill leaves them, and so the bill's "at
most" is never too low.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cowest.errors import BudgetExceededError
from cowest.ledger.pool import Amount, Pool, rounded
from cowest.ledger.prices import Price
from cowest.ledger.records import BatchEntry, Limits
from cowest.ledger.writer import Writer
from cowest.types import Usage

POLL_S: Final = 0.2
PATIENCE_S: Final = 900.0
"""So long may nothing of what others hold change before a waiting call gives up: a process that was stopped holds for ever."""
STALE_S: Final = 1.0
"""A pooled row that no call needed for so long is deleted."""

_INSERT: Final = "INSERT INTO reservations (run, pid, process, tokens, micro_usd, created) VALUES (?, ?, ?, ?, ?, ?)"
_UNDER_WAY: Final[ContextVar[set[int] | None]] = ContextVar("under_way", default=None)


@dataclass(frozen=True, slots=True)
class _Wait:
    """It does not fit yet: these rows may give something back."""

    live: frozenset[int]
    reached: str


_Made = list[int] | _Wait | str
"""The numbers of rows; or a sentence about the limit that is reached."""


class UnderWay:
    """What one ledger object has under way in its run. Works through the ledger's writer, whose thread calls what takes ``db``."""

    def __init__(self, path: Path, run: str, limits: Limits, writer: Writer) -> None:
        self._path, self._run, self._limits, self._writer = path, run, limits, writer
        self._pool = Pool()
        self._mine: set[int] = set()  # rows of our own, as long as they exist; those of batches are the provider's
        self._waiting: tuple[asyncio.AbstractEventLoop, asyncio.Lock, asyncio.Event] | None = None

    async def reserve(
        self, most: Sequence[Usage], price: Price | None, batch: bool = False, beside: Sequence[int] = ()
    ) -> list[int]:
        """Hold the most that these attempts can cost, all or none; see :meth:`cowest.ledger.ledger.Ledger.reserve`."""
        if self._writer.broken is not None:  # what was asked now could not be entered
            raise self._writer.broken
        amounts = [(u.input_tokens + u.output_tokens, micro(price.cost(u)) if price else None) for u in most]
        if self._limits.any or batch:
            found = await self._held(amounts, batch, beside)
        else:
            found = [await self._note(amount) for amount in amounts]
        held = _UNDER_WAY.get()
        if held is not None and not batch:
            held.update(found)
        return found

    async def _held(self, amounts: Sequence[Amount], batch: bool, beside: Sequence[int]) -> list[int]:
        def attempt(db: sqlite3.Connection) -> _Made:
            return self._try(db, amounts, batch, beside)

        found = await self._made(attempt)
        if isinstance(found, _Wait):
            found = await self._in_line(attempt)
        if not isinstance(found, list):
            raise BudgetExceededError(str(found))
        if not batch:
            self._mine.update(found)
        return found

    @contextmanager
    def call(self) -> Iterator[None]:
        """What is held by code inside and not settled when it ends, however that is, may have been paid for."""
        held: set[int] = set()
        token = _UNDER_WAY.set(held)
        try:
            yield
        finally:
            _UNDER_WAY.reset(token)
            if held:
                self._writer.post(lambda db: self._lose(db, held))
                self.settled()

    def settled(self, numbers: Iterable[int] = ()) -> None:
        """These are entered or released: those that wait look again."""
        held = _UNDER_WAY.get()
        if held is not None:
            held.difference_update(numbers)
        if self._waiting is not None and not self._waiting[0].is_closed():
            self._waiting[2].set()

    def give_back(self, db: sqlite3.Connection, numbers: Iterable[int]) -> None:
        """Free what was held. Part of the transaction that enters what it was held for."""
        gone = [number for number in set(numbers) if not self._pool.give(number)]
        _delete(db, gone)
        self._mine.difference_update(gone)

    def leave(self, db: sqlite3.Connection) -> None:
        """The ledger is closed: what no call uses is free, and what one still uses may be paid."""
        self.tidy(db)
        self._lose(db, set(self._mine))

    def tidy(self, db: sqlite3.Connection) -> None:
        """Delete the pooled rows that no call uses now: a bill would count them as under way."""
        self._tidy(db, self._pool.stale(-1.0))

    def chore(self) -> Callable[[sqlite3.Connection], None] | None:
        """For the writer, now and then: delete pooled rows that no call needs any more."""
        stale = self._pool.stale(STALE_S)
        return (lambda db: self._tidy(db, stale)) if stale else None

    def _tidy(self, db: sqlite3.Connection, numbers: Sequence[int]) -> None:
        _delete(db, numbers)
        self._mine.difference_update(numbers)

    async def _made(self, work: Callable[[sqlite3.Connection], _Made]) -> _Made:
        """Do it in the writer; rows that are made for a caller who has gone away are deleted again."""
        made = self._writer.begin(work)
        try:
            found = await asyncio.shield(made)
        except asyncio.CancelledError:
            made.add_done_callback(self._unwanted)
            raise
        return found

    def _unwanted(self, made: asyncio.Future[_Made]) -> None:
        numbers = [] if made.cancelled() or made.exception() is not None else made.result()
        if isinstance(numbers, list):
            self._writer.post(lambda db: _delete(db, numbers))

    async def _in_line(self, attempt: Callable[[sqlite3.Connection], _Made]) -> _Made:
        """Wait for others to give back. Only the first in the line asks: what it cannot have, those behind it cannot either."""
        lock, settled = self._line()
        async with lock:
            before, since = frozenset[int](), time.monotonic()
            while True:
                settled.clear()
                found = await self._made(attempt)
                if not isinstance(found, _Wait):
                    return found
                now = time.monotonic()
                if found.live != before:
                    before, since = found.live, now
                elif now - since > PATIENCE_S:
                    return found.reached
                try:
                    await asyncio.wait_for(settled.wait(), POLL_S)
                except TimeoutError:
                    await self._writer.do(forget_the_dead)

    def _line(self) -> tuple[asyncio.Lock, asyncio.Event]:
        loop = asyncio.get_running_loop()
        if self._waiting is None or self._waiting[0] is not loop:
            self._waiting = (loop, asyncio.Lock(), asyncio.Event())
        return self._waiting[1:]

    def _try(self, db: sqlite3.Connection, amounts: Sequence[Amount], batch: bool, beside: Sequence[int]) -> _Made:
        """Make the rows; or say which limit is reached, and who may still give something back."""
        db.executemany(
            "UPDATE reservations SET process = 'over:' || process WHERE id = ? AND process NOT LIKE 'over:%'",
            [(number,) for number in beside],
        )
        reached = _reached(db, self._run, self._limits, amounts, self._path)
        return _insert(db, self._run, amounts, "batch:" if batch else "") if reached is None else reached

    async def _note(self, amount: Amount) -> int:
        """A row from the pool, or a new one: then it waits for the disk."""
        size = rounded(amount)
        number = self._pool.take(size)
        if number is None:
            made = await self._made(lambda db: _insert(db, self._run, [size]))
            assert isinstance(made, list)
            number = made[0]
            self._pool.add(number, size)
            self._mine.add(number)
        return number

    def _lose(self, db: sqlite3.Connection, numbers: set[int]) -> None:
        """Their calls ended without a word of them: they may have been paid for."""
        lost = numbers & self._mine
        _book_as_maybe(db, lost)
        self._pool.drop(lost)
        self._mine -= lost


def _insert(db: sqlite3.Connection, run: str, amounts: Sequence[Amount], state: str = "") -> list[int]:
    who, now = state + (process_identity(os.getpid()) or ""), time.time()
    return [int(db.execute(_INSERT, (run, os.getpid(), who, *amount, now)).lastrowid or 0) for amount in amounts]


def _delete(db: sqlite3.Connection, numbers: Iterable[int]) -> None:
    db.executemany("DELETE FROM reservations WHERE id = ?", [(number,) for number in numbers])


def forget_the_dead(db: sqlite3.Connection) -> None:
    """What a process that died had under way may have been paid for: it stays counted, at the most that it can be."""
    rows = db.execute("SELECT id, pid, process FROM reservations").fetchall()
    open_ = [BatchEntry.model_validate_json(entry) for (entry,) in db.execute("SELECT entry FROM batches")]
    at_providers = {number for entry in open_ if entry.status in ("creating", "running") for number in entry.held}
    living = _Living()
    _book_as_maybe(db, [n for n, pid, who in rows if n not in at_providers and not living.has(pid, who)])


def process_identity(pid: int) -> str | None:
    """Tells a process from a later one with the same number; None where there is no such process."""
    if sys.platform == "win32":
        return _windows_identity(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return (
            None if stat[0] in "ZX" else stat[19]
        )  # the start time, in ticks since boot; a zombie does nothing any more
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    except (OSError, IndexError):
        pass
    try:  # no /proc: the number alone
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


if sys.platform == "win32":

    def _windows_identity(pid: int) -> str | None:
        """The same on Windows, where ``os.kill(pid, 0)`` would not ask but send a Ctrl-C."""
        import ctypes
        from ctypes import wintypes

        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.OpenProcess.restype = wintypes.HANDLE
        handle = kernel.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
        if not handle:
            return "" if ctypes.get_last_error() == 5 else None  # ERROR_ACCESS_DENIED: it is another user's
        try:
            code, times = wintypes.DWORD(), [wintypes.FILETIME() for _ in range(4)]
            held = wintypes.HANDLE(handle)
            if not kernel.GetExitCodeProcess(held, ctypes.byref(code)) or code.value != 259:  # STILL_ACTIVE
                return None
            if not kernel.GetProcessTimes(held, *(ctypes.byref(time) for time in times)):
                return ""
            return str((times[0].dwHighDateTime << 32) + times[0].dwLowDateTime)  # when it was started
        finally:
            kernel.CloseHandle(wintypes.HANDLE(handle))


class _Living:
    """Asks for each process once."""

    def __init__(self) -> None:
        self._known: dict[int, str | None] = {}

    def has(self, pid: int, process: str) -> bool:
        if pid not in self._known:
            self._known[pid] = process_identity(pid)
        return self._known[pid] == process.removeprefix("over:").removeprefix("batch:")


def micro(usd: float | None) -> int | None:
    """Money in whole millionths of a dollar, which add up exactly; rounded up, so that a budget errs on the safe side."""
    return None if usd is None else -int(-usd * 1_000_000 // 1)


def add(db: sqlite3.Connection, run: str, values: Mapping[str, int]) -> None:
    """Add to a run's totals in ``spent``."""
    db.execute("INSERT OR IGNORE INTO spent (run) VALUES (?)", (run,))
    changes = ", ".join(f"{name} = {name} + ?" for name in values)
    db.execute(f"UPDATE spent SET {changes} WHERE run = ?", (*values.values(), run))


def maybe(tokens: int, cost: int | None) -> dict[str, int]:
    """What an attempt adds that may have been paid for."""
    unpriced = int(cost is None)
    return {"maybe_calls": 1, "maybe_tokens": tokens, "maybe_micro_usd": cost or 0, "maybe_unpriced_calls": unpriced}


def _book_as_maybe(db: sqlite3.Connection, numbers: Iterable[int]) -> None:
    for number in numbers:
        row = db.execute("SELECT run, tokens, micro_usd FROM reservations WHERE id = ?", (number,)).fetchone()
        if row is not None:
            add(db, row[0], maybe(row[1], row[2]))
            db.execute("DELETE FROM reservations WHERE id = ?", (number,))


def _reached(
    db: sqlite3.Connection, run: str, limits: Limits, amounts: Sequence[Amount], path: Path
) -> _Wait | str | None:
    """Whether these amounts go over a limit, and whether others may leave room for them yet."""
    paid, perhaps = (
        db.execute(f"SELECT {columns} FROM spent WHERE run = ?", (run,)).fetchone() or (0, 0, 0)
        for columns in ("calls, tokens, micro_usd", "maybe_calls, maybe_tokens, maybe_micro_usd")
    )
    held = {"": (0, 0, 0), "over": (0, 0, 0), "batch": (0, 0, 0)}
    for state, *sums in db.execute(
        "SELECT CASE WHEN process LIKE 'over:%' THEN 'over' WHEN process LIKE 'batch:%' THEN 'batch' ELSE '' END AS state, "
        "count(*), sum(tokens), coalesce(sum(micro_usd), 0) FROM reservations WHERE run = ? GROUP BY state",
        (run,),
    ):
        held[state] = (sums[0], sums[1], sums[2])
    more = (len(amounts), sum(tokens for tokens, _ in amounts), sum(cost or 0 for _, cost in amounts))
    given = (limits.calls, limits.tokens, micro(limits.usd))
    for i, name in enumerate(("budget_calls", "budget_tokens", "budget_usd")):
        limit, gone = given[i], paid[i] + perhaps[i]
        if limit is None or gone + sum(h[i] for h in held.values()) + more[i] <= limit:
            continue
        show = (_dollars if limit >= 1_000_000 else _cents) if name == "budget_usd" else _plain
        parts = {
            "perhaps paid (sent and never answered)": perhaps[i] + held["over"][i],
            "reserved for calls under way": held[""][i],
            "reserved for batches at the provider": held["batch"][i],
        }
        counted = ", ".join([f"{show(paid[i])} paid", *(f"{show(n)} {what}" for what, n in parts.items() if n)])
        what = "the next call" if len(amounts) == 1 else f"the next {len(amounts)} calls"
        reached = (
            f"{name}: {show(limit)} is reached: {counted}, and {what} could take {show(more[i])}. What was paid for is kept in "
            f"{path}; raise {name} and run the same command to continue."
        )
        live = _may_give_back(db, run) if gone + more[i] <= limit else frozenset[int]()
        return _Wait(live, reached) if live else reached
    return None


def _may_give_back(db: sqlite3.Connection, run: str) -> frozenset[int]:
    """Rows of attempts that go on, and of batches that a living process waits for."""
    living = _Living()
    rows = db.execute("SELECT id, pid, process FROM reservations WHERE run = ? AND process NOT LIKE 'over:%'", (run,))
    return frozenset(n for n, pid, who in rows if not who.startswith("batch:") or living.has(pid, who))


def _plain(value: int) -> str:
    return f"{value:,}"


def _dollars(micro: int) -> str:
    return f"${micro / 1e6:,.4f}"


def _cents(micro: int) -> str:
    return f"${micro / 1e6:.6f}"
