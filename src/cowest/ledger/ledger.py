"""The ledger: every paid call, on disk before anything uses its answer. It is the cache, the bill and the budget.

One SQLite file in WAL mode, which several processes may share. All writes go through one thread a process, which puts what has
gathered meanwhile into one transaction: an awaited write is durable when it returns, and costs a fraction of a commit.

    answers       one row an answered request: key, messages, answer, usage, latency, attempts. The cache.
    failures      one row a call without a usable answer; some of its attempts may have been paid for
    reservations  what calls under way could cost at most; those of a process that died become "maybe paid"
    spent         the running totals of each run, so that a budget is checked without adding anything up
    batches       the jobs at a provider's batch API
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from cowest.errors import BudgetExceededError, ConfigError, ModelCallError
from cowest.ledger.prices import Price
from cowest.ledger.records import NO_LIMITS
from cowest.ledger.records import BatchEntry as BatchEntry
from cowest.ledger.records import Call as Call
from cowest.ledger.records import Limits as Limits
from cowest.ledger.records import call_of as call_of
from cowest.ledger.schema import connect
from cowest.ledger.summary import LedgerSummary as LedgerSummary
from cowest.ledger.summary import summarise
from cowest.ledger.writer import MOST, Writer
from cowest.types import Attempt, Completion, TokenLogprob, Usage

purpose: ContextVar[str] = ContextVar("purpose", default="")
"""What the calls of the running code are for, such as ``medicine: feedback``; entered with each."""

POLL_S: Final = 0.2
_ATTEMPTS: Final = TypeAdapter(tuple[Attempt, ...])
_LOGPROBS: Final = TypeAdapter(tuple[TokenLogprob, ...] | None)


Write = Callable[[sqlite3.Connection], None]


class Ledger:
    """A run's view of a ledger file.

    Opened in any thread, used by one event loop at a time. Raises DataError for a file that cannot be used as a ledger.
    """

    def __init__(self, path: Path, run: str, limits: Limits = NO_LIMITS) -> None:
        self.path, self.run, self.limits = path, run, limits
        self._reader = connect(path)
        self._writer = Writer(path)
        self._hits = 0
        self._settled = asyncio.Event()
        self._stuck: set[int] = set()  # held by calls that wait for more
        self._writer.call(self._forget_the_dead)

    def get(self, key: str) -> Completion | None:
        """The answer to a request that was asked before, at what it took then. Counts a hit."""
        row = self._reader.execute(
            "SELECT text, finish_reason, input_tokens, output_tokens, reasoning_tokens, estimated, micro_usd, latency_s, "
            "logprobs, attempts FROM answers WHERE key = ? AND current = 1",
            (key,),
        ).fetchone()
        if row is None:
            return None
        self._hits += 1
        text, reason, tokens_in, tokens_out, thinking, estimated, cost, latency, logprobs, attempts = row
        return Completion(
            text=text,
            finish_reason=reason,
            usage=Usage(
                calls=1,
                input_tokens=tokens_in,
                output_tokens=tokens_out,
                reasoning_tokens=thinking,
                estimated_calls=estimated,
                cost_usd=None if cost is None else cost / 1e6,
            ),
            latency_s=latency,
            logprobs=None if logprobs is None else _LOGPROBS.validate_json(logprobs),
            attempts=_ATTEMPTS.validate_json(attempts),
        )

    async def answered(self, call: Call, completion: Completion) -> Completion:
        """Enter an answer, in place of an earlier one to the same request, which stays in the bill. Durable when it returns.

        Returns the completion with what it cost.
        """
        priced = _priced(completion, call.price)
        await self._writer.together(self._enter_answers, (call, priced, purpose.get()))
        self._settled.set()
        return priced

    async def failed(self, call: Call, kind: str, message: str, attempts: Sequence[Attempt]) -> None:
        """Enter a call without a usable answer, and what its attempts cost or may have cost. Durable when it returns."""
        await self._writer.do(self._failure(call, kind, message, attempts))
        self._settled.set()

    def _enter_answers(self, db: sqlite3.Connection, entries: Sequence[tuple[Call, Completion, str]]) -> None:
        """Enter what has gathered with three statements in all.

        With each the thread gives the interpreter away and waits for it.
        """
        now = time.time()
        rows = []
        for call, completion, what_for in entries:
            u = completion.usage
            logprobs = None if completion.logprobs is None else _LOGPROBS.dump_json(completion.logprobs).decode()
            rows.append(
                (
                    *(
                        call.key,
                        self.run,
                        what_for,
                        call.model,
                        call.request,
                        completion.whole,
                        completion.finish_reason,
                    ),
                    *(u.input_tokens, u.output_tokens, u.reasoning_tokens, u.estimated_calls, _micro(u.cost_usd)),
                    *(
                        completion.latency_s,
                        logprobs,
                        _ATTEMPTS.dump_json(completion.attempts, exclude_defaults=True).decode(),
                        now,
                    ),
                )
            )
        last = {row[0]: i for i, row in enumerate(rows)}  # of two answers to one request the later one is current
        db.execute(f"UPDATE answers SET current = 0 WHERE current = 1 AND key IN ({_marks(len(last))})", list(last))
        values = [value for i, row in enumerate(rows) for value in (int(last[row[0]] == i), *row)]
        db.execute(
            "INSERT INTO answers (current, key, run, purpose, model, request, text, finish_reason, input_tokens, output_tokens, "
            "reasoning_tokens, estimated, micro_usd, latency_s, logprobs, attempts, created) VALUES "
            + ", ".join([f"({_marks(17)})"] * len(rows)),
            values,
        )
        self._settle(db, [(call, completion.attempts) for call, completion, _ in entries])

    def _failure(self, call: Call, kind: str, message: str, attempts: Sequence[Attempt]) -> Write:
        told = _ATTEMPTS.dump_json(tuple(attempts)).decode()
        row = (call.key, self.run, purpose.get(), call.model, kind, message, told, time.time())

        def enter(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO failures (key, run, purpose, model, kind, message, attempts, created) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            self._settle(db, [(call, attempts)])

        return enter

    def budget(self, price: Price | None) -> RunBudget | None:
        """What a model with this price has to ask before each attempt; None where the run has no limit.

        Raises ConfigError for a limit in USD on a model whose price is unknown: it could not be kept.
        """
        if not self.limits.any:
            return None
        if self.limits.usd is not None and price is None:
            raise ConfigError(
                "budget_usd: a model's price is unknown, so the budget cannot be kept; give its price: setting"
            )
        return RunBudget(self, price)

    async def reserve(
        self, most: Sequence[Usage], price: Price | None, batch: bool = False, beside: Sequence[int] = ()
    ) -> list[int]:
        """Hold the most that these attempts can cost, all or none; what is held for a ``batch`` outlives this process.

        Waits while others hold what they may not need. Raises BudgetExceededError when it does not fit even then.
        """
        amounts = [(u.input_tokens + u.output_tokens, _micro(price.cost(u)) if price else None) for u in most]
        self._stuck.update(beside)
        try:
            while True:
                self._settled.clear()
                found = await self._writer.do(lambda db: self._try_reserve(db, amounts, batch))
                if isinstance(found, list):
                    return found
                if isinstance(found, str):
                    raise BudgetExceededError(found)
                try:  # other calls hold what they may not need: of this process, which says so, or of another
                    await asyncio.wait_for(self._settled.wait(), POLL_S)
                except TimeoutError:
                    await self._writer.do(self._forget_the_dead)
        finally:
            self._stuck.difference_update(beside)

    async def release(self, held: Sequence[int]) -> None:
        """Give back what was held for attempts that were not made."""
        await self._writer.do(lambda db: _release(db, held))
        self._settled.set()

    async def save_batch(self, entry: BatchEntry) -> None:
        """Enter a batch job, or its new state."""
        await self._writer.do(lambda db: self._save_batch(db, entry))

    async def collected(
        self,
        entry: BatchEntry,
        answers: Sequence[tuple[Call, Completion]],
        failures: Sequence[tuple[Call, ModelCallError]],
    ) -> list[Completion]:
        """Enter all that a batch brought and its new state, together.

        Nothing of it is entered twice, also when two processes bring it. Returns the answers, priced.
        """
        priced = [(call, _priced(completion, call.price), purpose.get()) for call, completion in answers]
        told = [self._failure(call, e.kind, str(e), e.attempts) for call, e in failures]

        def enter(db: sqlite3.Connection) -> None:
            saved = db.execute(
                "SELECT entry FROM batches WHERE id = ? AND model = ?", (entry.id, entry.model)
            ).fetchone()
            if saved and BatchEntry.model_validate_json(saved[0]).status in ("collected", "lost"):
                return  # another process was faster
            for start in range(0, len(priced), MOST):
                self._enter_answers(db, priced[start : start + MOST])
            for write in told:
                write(db)
            _release(db, entry.held)
            self._save_batch(db, entry)

        await self._writer.do(enter)
        self._settled.set()
        return [completion for _, completion, _ in priced]

    def _save_batch(self, db: sqlite3.Connection, entry: BatchEntry) -> None:
        row = (entry.id, entry.model, self.run, entry.model_dump_json(), time.time())
        db.execute("INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?, ?)", row)

    def batches(self, model: str) -> list[BatchEntry]:
        """This run's batch jobs for a model, the oldest first."""
        rows = self._reader.execute(
            "SELECT entry FROM batches WHERE model = ? AND run = ? ORDER BY updated", (model, self.run)
        )
        return [BatchEntry.model_validate_json(entry) for (entry,) in rows]

    def summary(self, run: str | None = None) -> LedgerSummary:
        """The bill of one run, or of all that share the file."""
        self._flush_hits()
        return summarise(self._reader, self.path, run)

    def close(self) -> None:
        """Write what is left and close the file. May be called twice."""
        if self._writer.closed:
            return
        self._flush_hits()
        self._writer.close()
        self._reader.close()

    def _flush_hits(self) -> None:
        hits, self._hits = self._hits, 0
        if hits:
            self._writer.call(lambda db: _add(db, self.run, {"hits": hits}))

    def _settle(self, db: sqlite3.Connection, calls: Sequence[tuple[Call, Sequence[Attempt]]]) -> None:
        """Book what calls cost, or may have, and give back what was held for them. Part of their entries' transaction."""
        spent: Counter[str] = Counter()
        held: set[int] = set()
        for call, attempts in calls:
            for attempt in attempts:
                if attempt.reservation is not None:
                    held.add(attempt.reservation)
                if attempt.usage.calls:
                    cost = _micro(call.price.cost(attempt.usage)) if call.price else None
                    tokens = attempt.usage.input_tokens + attempt.usage.output_tokens
                    spent.update(calls=1, tokens=tokens, micro_usd=cost or 0, unpriced_calls=int(cost is None))
                elif attempt.maybe_paid:
                    most = _micro(call.price.cost(call.most)) if call.price else None
                    spent.update(_maybe(call.most.input_tokens + call.most.output_tokens, most))
        if spent:
            _add(db, self.run, spent)
        if held:
            _release(db, held)

    def _try_reserve(
        self, db: sqlite3.Connection, amounts: Sequence[tuple[int, int | None]], batch: bool
    ) -> list[int] | str | None:
        """The reservations' numbers; None to wait for others; or a sentence about the limit that is reached."""
        spent = db.execute(
            "SELECT calls + maybe_calls, tokens + maybe_tokens, micro_usd + maybe_micro_usd FROM spent WHERE run = ?",
            (self.run,),
        ).fetchone() or (0, 0, 0)
        held = db.execute(
            "SELECT count(*), coalesce(sum(tokens), 0), coalesce(sum(micro_usd), 0) FROM reservations WHERE run = ?",
            (self.run,),
        ).fetchone()
        more = (len(amounts), sum(tokens for tokens, _ in amounts), sum(cost or 0 for _, cost in amounts))
        limits = (self.limits.calls, self.limits.tokens, _micro(self.limits.usd))
        for i, name in enumerate(("budget_calls", "budget_tokens", "budget_usd")):
            limit = limits[i]
            if limit is not None and spent[i] + held[i] + more[i] > limit:
                rows = db.execute("SELECT id FROM reservations WHERE run = ?", (self.run,))
                if {number for (number,) in rows} - self._stuck:  # of the rest each belongs to a call that waits here
                    return None
                show = _dollars if name == "budget_usd" else _plain
                what = "the next call" if len(amounts) == 1 else f"the next {len(amounts)} calls"
                return (
                    f"{name}: {show(limit)} is reached: {show(spent[i])} spent, and {what} could take {show(more[i])}. What was "
                    f"paid for is kept in {self.path}; raise {name} and run the same command to continue."
                )
        who = ("batch:" if batch else "") + (process_identity(os.getpid()) or "")
        now, numbers = time.time(), []
        for tokens, cost in amounts:
            done = db.execute(
                "INSERT INTO reservations (run, pid, process, tokens, micro_usd, created) VALUES (?, ?, ?, ?, ?, ?)",
                (self.run, os.getpid(), who, tokens, cost, now),
            )
            numbers.append(int(done.lastrowid or 0))
        return numbers

    def _forget_the_dead(self, db: sqlite3.Connection) -> None:
        """What a process that died had under way may have been paid for: it stays counted, at the most that it can be."""
        rows = db.execute("SELECT id, run, pid, process, tokens, micro_usd FROM reservations").fetchall()
        open_ = [BatchEntry.model_validate_json(entry) for (entry,) in db.execute("SELECT entry FROM batches")]
        at_providers = {number for entry in open_ if entry.status in ("creating", "running") for number in entry.held}
        for number, run, pid, process, tokens, cost in rows:
            if process_identity(pid) != process.removeprefix("batch:") and number not in at_providers:
                _add(db, run, _maybe(tokens, cost))
                db.execute("DELETE FROM reservations WHERE id = ?", (number,))


@dataclass(frozen=True, slots=True)
class RunBudget:
    """A :class:`cowest.protocols.Budget` at one model's price."""

    ledger: Ledger
    price: Price | None

    async def reserve(self, most: Usage, beside: Sequence[int] = ()) -> int:
        return (await self.ledger.reserve([most], self.price, beside=beside))[0]


def process_identity(pid: int) -> str | None:
    """Tells a process from a later one with the same number; None where there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[19]  # the start time, in ticks since boot
    except FileNotFoundError:
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


def _priced(completion: Completion, price: Price | None) -> Completion:
    """With what it cost; a model that keeps no record of its attempts made one."""
    usage, attempts = completion.usage, completion.attempts
    if not attempts and usage.calls:
        attempts = (Attempt(at=time.time(), latency_s=completion.latency_s, outcome="ok", usage=usage),)
    priced = usage.model_copy(update={"cost_usd": price.cost(usage) if price else None})
    return completion.model_copy(update={"usage": priced, "attempts": attempts})


def _micro(usd: float | None) -> int | None:
    """Money in whole millionths of a dollar, which add up exactly; rounded up, so that a budget errs on the safe side."""
    return None if usd is None else -int(-usd * 1_000_000 // 1)


def _add(db: sqlite3.Connection, run: str, values: Mapping[str, int]) -> None:
    db.execute("INSERT OR IGNORE INTO spent (run) VALUES (?)", (run,))
    changes = ", ".join(f"{name} = {name} + ?" for name in values)
    db.execute(f"UPDATE spent SET {changes} WHERE run = ?", (*values.values(), run))


def _maybe(tokens: int, cost: int | None) -> dict[str, int]:
    """What an attempt adds that may have been paid for."""
    unpriced = int(cost is None)
    return {"maybe_calls": 1, "maybe_tokens": tokens, "maybe_micro_usd": cost or 0, "maybe_unpriced_calls": unpriced}


def _marks(n: int) -> str:
    return ", ".join(["?"] * n)


def _plain(value: int) -> str:
    return f"{value:,}"


def _dollars(micro: int) -> str:
    return f"${micro / 1e6:,.2f}" if micro >= 10_000 else f"${micro / 1e6:.6f}"


def _release(db: sqlite3.Connection, held: Iterable[int]) -> None:
    db.executemany("DELETE FROM reservations WHERE id = ?", [(number,) for number in set(held)])
