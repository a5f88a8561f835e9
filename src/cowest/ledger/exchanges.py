"""What `cowest serve --collect` keeps in a ledger's file: exchanges, and what their askers said of them.

Two tables of their own, made by the first server that collects: a ledger without them is as good as before, and none of the
bill's queries reads them. Writes go through the ledger's writer, so that many at once share a transaction.

    exchanges     one row an answered request, as JSON
    verdicts      one row an exchange that has feedback: the last one sent counts
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, Literal

from cowest.errors import DataError
from cowest.ledger.schema import connect, problem
from cowest.ledger.writer import Writer
from cowest.types import Message, Record

Mode = Literal["both", "strong_alone", "weak_alone"]

EXCHANGE_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS exchanges (id TEXT PRIMARY KEY, run TEXT NOT NULL, task TEXT NOT NULL, at REAL NOT NULL, "
    "entry TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS exchanges_by_run ON exchanges (run, task, at)",
    "CREATE TABLE IF NOT EXISTS verdicts (id TEXT PRIMARY KEY, at REAL NOT NULL, entry TEXT NOT NULL)",
)


class Turn(Record):
    """One message of a request, its text only; ``role`` is the client's own word."""

    role: str
    text: str


class Exchanged(Record):
    """An answered request. ``turn`` is the index of the question in ``messages``, -1 where there is none.

    ``prompt`` is what the weak model saw (empty where it was not asked), ``draft`` what it wrote and the strong model got.
    ``answers`` has the text of every choice; None for one without (a tool call). ``task`` is the recipe's domain, '' its only one.
    """

    id: str
    at: float
    task: str
    model: str
    mode: Mode
    degraded: str | None = None
    messages: tuple[Turn, ...]
    turn: int
    context: str | None = None
    choices: tuple[str, ...] = ()
    prompt: tuple[Message, ...] = ()
    draft: str | None = None
    answers: tuple[str | None, ...]


class Verdict(Record):
    """What an asker said of an exchange: whether the answer helped, the right answer, or both."""

    at: float
    helpful: bool | None = None
    answer: str | None = None


class ExchangeLog:
    """A run's exchanges in a ledger's file. Raises DataError for a file that cannot be used as a ledger."""

    def __init__(self, path: Path, run: str) -> None:
        self.path, self._run = path, run
        self._reader = connect(path)
        self._writer = Writer(path)
        self._writer.call(_make_tables)

    async def record(self, entry: Exchanged) -> None:
        """Durable when it returns. Raises DataError when the file cannot be written."""
        row = (entry.id, self._run, entry.task, entry.at, entry.model_dump_json())
        await self._writer.together(_enter, row)

    def find(self, id_: str) -> Exchanged | None:
        """The exchange with this id, of this run."""
        row = self._reader.execute("SELECT entry FROM exchanges WHERE id = ? AND run = ?", (id_, self._run)).fetchone()
        return None if row is None else Exchanged.model_validate_json(row[0])

    async def judge(self, id_: str, verdict: Verdict) -> bool | None:
        """Enter a verdict in place of an earlier one; whether there was one. Durable when it returns.

        None, and nothing is entered, where there is no such exchange of this run (any more).
        """
        row = (id_, verdict.at, verdict.model_dump_json())

        def enter(db: sqlite3.Connection) -> bool | None:
            if db.execute("SELECT 1 FROM exchanges WHERE id = ? AND run = ?", (id_, self._run)).fetchone() is None:
                return None
            before = db.execute("SELECT 1 FROM verdicts WHERE id = ?", (id_,)).fetchone()
            db.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?)", row)
            return before is not None

        return await self._writer.do(enter)

    def close(self) -> None:
        """Write what is left and close the file. May be called twice."""
        if not self._writer.closed:
            self._writer.close()
            self._reader.close()


def read_exchanges(path: Path, run: str) -> Iterator[tuple[Exchanged, Verdict | None]]:
    """A run's exchanges in the order of time, each with what was said of it. Raises DataError where nothing was collected."""
    with _opened(path) as db:
        rows = db.execute(
            "SELECT e.entry, v.entry FROM exchanges e LEFT JOIN verdicts v ON v.id = e.id WHERE e.run = ? ORDER BY e.at, e.id",
            (run,),
        )
        for entry, verdict in rows:
            yield (
                Exchanged.model_validate_json(entry),
                None if verdict is None else Verdict.model_validate_json(verdict),
            )


class Deletion(Record):
    """How many exchanges were deleted. ``complete``: no copy of them is left in the file or beside it."""

    exchanges: int
    complete: bool


def delete_exchanges(path: Path, run: str, ids: Sequence[str] | None = None, before: float | None = None) -> Deletion:
    """Delete a run's exchanges and what was said of them: those with these ids, or from before a time; else all.

    Their bytes are overwritten, also in the write-ahead log, unless another process reads the file at that moment.
    """
    where, given = "run = ?", list[str | float]([run])
    if ids is not None:
        where, given = f"{where} AND id IN ({', '.join('?' * len(ids))})", [*given, *ids]
    if before is not None:
        where, given = f"{where} AND at < ?", [*given, before]
    with _opened(path) as db:
        db.execute("PRAGMA secure_delete = ON")
        db.execute("BEGIN IMMEDIATE")
        try:
            db.execute(f"DELETE FROM verdicts WHERE id IN (SELECT id FROM exchanges WHERE {where})", given)
            gone = db.execute(f"DELETE FROM exchanges WHERE {where}", given).rowcount
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise
        busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    return Deletion(exchanges=gone, complete=not busy)


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.exists():
        raise DataError(f"{path}: nothing was collected; `cowest serve RUN --collect` enters exchanges there")
    try:
        with closing(connect(path)) as db:
            _make_tables(db)
            yield db
    except sqlite3.Error as error:
        raise problem(path, error) from None


def _make_tables(db: sqlite3.Connection) -> None:
    for statement in EXCHANGE_TABLES:
        db.execute(statement)


def _enter(db: sqlite3.Connection, rows: Sequence[tuple[str, str, str, float, str]]) -> None:
    db.executemany("INSERT OR REPLACE INTO exchanges VALUES (?, ?, ?, ?, ?)", rows)
