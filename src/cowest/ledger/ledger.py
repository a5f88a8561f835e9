"""The ledger: every paid call, on disk before anything uses its answer. It is the cache, the bill and the budget.

One SQLite file in WAL mode, which several processes may share. All writes go through one thread a process, which puts what has
gathered meanwhile into one transaction: an awaited write is durable when it returns, and costs a fraction of a commit.

    answers       one row an answered request: key, messages, answer, usage, latency, attempts. The cache.
    failures      one row a call without a usable answer; some of its attempts may have been paid for
    reservations  what calls under way could cost at most (:mod:`cowest.ledger.reservations`)
    spent         the running totals of each run, so that a budget is checked without adding anything up
    batches       the jobs at a provider's batch API
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from cowest.errors import ConfigError, ModelCallError
from cowest.ledger.prices import Price
from cowest.ledger.records import NO_LIMITS
from cowest.ledger.records import BatchEntry as BatchEntry
from cowest.ledger.records import Call as Call
from cowest.ledger.records import Limits as Limits
from cowest.ledger.records import call_of as call_of
from cowest.ledger.reservations import UnderWay, add, forget_the_dead, maybe, micro
from cowest.ledger.reservations import process_identity as process_identity
from cowest.ledger.schema import connect, problem
from cowest.ledger.summary import LedgerSummary as LedgerSummary
from cowest.ledger.summary import summarise
from cowest.ledger.writer import MOST, Writer
from cowest.types import Attempt, Completion, TokenLogprob, Usage

purpose: ContextVar[str] = ContextVar("purpose", default="")
"""What the calls of the running code are for, such as ``medicine: feedback``; entered with each."""

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
        self._writer = Writer(path, lambda: self._under_way.chore())
        self._under_way = UnderWay(path, run, limits, self._writer)
        self._hits = 0
        self._writer.call(forget_the_dead)

    def get(self, key: str) -> Completion | None:
        """The answer to a request that was asked before, at what it took then. Counts a hit. Raises DataError for damage."""
        try:
            return self._get(key)
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise problem(self.path, error) from None

    def _get(self, key: str) -> Completion | None:
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
        with self._settling(priced.attempts):
            await self._writer.together(self._enter_answers, (call, priced, purpose.get()))
        return priced

    async def failed(self, call: Call, kind: str, message: str, attempts: Sequence[Attempt]) -> None:
        """Enter a call without a usable answer, and what its attempts cost or may have cost. Durable when it returns."""
        with self._settling(attempts):
            await self._writer.do(self._failure(call, kind, message, attempts))

    @contextmanager
    def _settling(self, attempts: Sequence[Attempt]) -> Iterator[None]:
        """What the attempts hold is free once they are entered; so they are when only the caller has gone away."""
        try:
            yield
        except asyncio.CancelledError:
            self._settled(attempts)
            raise
        self._settled(attempts)

    def _settled(self, attempts: Sequence[Attempt]) -> None:
        self._under_way.settled(a.reservation for a in attempts if a.reservation is not None)

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
                    *(u.input_tokens, u.output_tokens, u.reasoning_tokens, u.estimated_calls, micro(u.cost_usd)),
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

    def budget(self, price: Price | None) -> RunBudget:
        """What a model with this price has to ask before each attempt: without a limit, too, so that the bill knows of it.

        Raises ConfigError for a limit in USD on a model whose price is unknown: it could not be kept.
        """
        if self.limits.usd is not None and price is None:
            raise ConfigError(
                "budget_usd: a model's price is unknown, so the budget cannot be kept; give its price: setting"
            )
        return RunBudget(self, price)

    def call(self) -> AbstractContextManager[None]:
        """Around a call: what is reserved inside and not entered when it ends, as it was cancelled, may have been paid for."""
        return self._under_way.call()

    async def reserve(
        self, most: Sequence[Usage], price: Price | None, batch: bool = False, beside: Sequence[int] = ()
    ) -> list[int]:
        """Hold the most that these attempts can cost, all or none; what is held for a ``batch`` outlives this process.

        ``beside`` is held by the same call for attempts that are over. Waits while others hold what they may not need. Raises
        BudgetExceededError when it does not fit even then.
        """
        return await self._under_way.reserve(most, price, batch, beside)

    async def release(self, held: Sequence[int]) -> None:
        """Give back what was held for attempts that were not made."""
        await self._writer.do(lambda db: self._under_way.give_back(db, held))
        self._under_way.settled(held)

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
            self._under_way.give_back(db, entry.held)
            self._save_batch(db, entry)

        await self._writer.do(enter)
        self._under_way.settled()
        return [completion for _, completion, _ in priced]

    def _save_batch(self, db: sqlite3.Connection, entry: BatchEntry) -> None:
        row = (entry.id, entry.model, self.run, entry.model_dump_json(), time.time())
        db.execute("INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?, ?)", row)

    def batches(self, model: str) -> list[BatchEntry]:
        """This run's batch jobs for a model, the oldest first."""
        try:
            rows = self._reader.execute(
                "SELECT entry FROM batches WHERE model = ? AND run = ? ORDER BY updated", (model, self.run)
            )
            return [BatchEntry.model_validate_json(entry) for (entry,) in rows]
        except (sqlite3.Error, ValueError) as error:
            raise problem(self.path, error) from None

    def summary(self, run: str | None = None) -> LedgerSummary:
        """The bill of one run, or of all that share the file."""
        self._flush_hits()
        self._writer.call(self._under_way.tidy)
        try:
            return summarise(self._reader, self.path, run)
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise problem(self.path, error) from None

    def close(self) -> None:
        """Write what is left and close the file. May be called twice."""
        if self._writer.closed:
            return
        self._flush_hits()
        self._writer.post(self._under_way.leave)
        self._writer.close()
        self._reader.close()

    def _flush_hits(self) -> None:
        hits, self._hits = self._hits, 0
        if hits:
            self._writer.call(lambda db: add(db, self.run, {"hits": hits}))

    def _settle(self, db: sqlite3.Connection, calls: Sequence[tuple[Call, Sequence[Attempt]]]) -> None:
        """Book what calls cost, or may have, and give back what was held for them. Part of their entries' transaction."""
        spent: Counter[str] = Counter()
        held: set[int] = set()
        for call, attempts in calls:
            for attempt in attempts:
                if attempt.reservation is not None:
                    held.add(attempt.reservation)
                if attempt.usage.calls:
                    cost = micro(call.price.cost(attempt.usage)) if call.price else None
                    tokens = attempt.usage.input_tokens + attempt.usage.output_tokens
                    spent.update(calls=1, tokens=tokens, micro_usd=cost or 0, unpriced_calls=int(cost is None))
                elif attempt.maybe_paid:
                    most = micro(call.price.cost(call.most)) if call.price else None
                    spent.update(maybe(call.most.input_tokens + call.most.output_tokens, most))
        if spent:
            add(db, self.run, spent)
        if held:
            self._under_way.give_back(db, held)


@dataclass(frozen=True, slots=True)
class RunBudget:
    """A :class:`cowest.protocols.Budget` at one model's price."""

    ledger: Ledger
    price: Price | None

    async def reserve(self, most: Usage, beside: Sequence[int] = ()) -> int:
        return (await self.ledger.reserve([most], self.price, beside=beside))[0]


def _priced(completion: Completion, price: Price | None) -> Completion:
    """With what it cost; a model that keeps no record of its attempts made one."""
    usage, attempts = completion.usage, completion.attempts
    if not attempts and usage.calls:
        attempts = (Attempt(at=time.time(), latency_s=completion.latency_s, outcome="ok", usage=usage),)
    priced = usage.model_copy(update={"cost_usd": price.cost(usage) if price else None})
    return completion.model_copy(update={"usage": priced, "attempts": attempts})


def _marks(n: int) -> str:
    return ", ".join(["?"] * n)
