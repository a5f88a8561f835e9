"""Saving what can be read of a damaged ledger into a new one, row by row.

Work is done on a copy. Where the file's first page is gone (its header, the list of its tables), that of a new ledger takes its
place: all ledgers are laid out alike. A row that cannot be read, or that makes no sense, is left out and counted.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from pydantic import TypeAdapter

from cowest.errors import DataError
from cowest.ledger.exchanges import EXCHANGE_TABLES, Exchanged, Verdict
from cowest.ledger.records import BatchEntry
from cowest.ledger.reservations import add, maybe
from cowest.ledger.schema import APPLICATION_ID, SCHEMA_VERSION, columns_of, connect, tables
from cowest.types import Attempt, Record

Row = dict[str, object]
_ATTEMPTS: Final = TypeAdapter(tuple[Attempt, ...])
_BESIDE: Final = ("", "-wal", "-shm")
_HEADER: Final = slice(0, 100)


class Recovered(Record):
    """What was saved. ``lost`` counts rows of the tables that are known to be missing; more may be, at a file's end.

    ``kept`` is where the damaged file is now; ``path`` the ledger that was made.
    """

    path: str
    kept: str
    saved: dict[str, int]
    lost: dict[str, int]


def recover(path: Path, out: Path | None = None) -> Recovered:
    """Make a ledger of what can be read of ``path``; in its place, or (``out``) elsewhere.

    Raises DataError for a file that is no ledger, is of another version, or in which nothing can be read: then nothing is changed.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    if out is not None and out.exists():
        raise DataError(f"--out {out}: is there already; give a new name")
    partial = (out or path).with_name((out or path).name + ".recovering")
    _remove(partial)
    try:
        with TemporaryDirectory(prefix="cowest-recover-", dir=partial.parent) as folder:
            saved, lost = _save(_copy(path, Path(folder)), path, partial)
        kept = path if out is not None else _put_aside(path)
        _move(partial, out or path)
    finally:
        _remove(partial)
    return Recovered(path=str(out or path), kept=str(kept), saved=dict(saved), lost=dict(+lost))


def _save(copy: Path, path: Path, partial: Path) -> tuple[Counter[str], Counter[str]]:
    saved, lost = Counter[str](), Counter[str]()
    with closing(_opened(copy, path)) as old, closing(connect(partial)) as new:
        there = columns_of(old)
        new.execute("BEGIN IMMEDIATE")
        for table, columns in (tables() | _exchange_tables(new, there)).items():
            common = [column for column in columns if column in there.get(table, ())]
            for row in _rows(old, table, common, lost) if common else ():
                if _enter(new, table, row | {c: v for c, v in _MAY_LACK.items() if c in columns and c not in row}):
                    saved[table] += 1
                else:
                    lost[table] += 1
        _add_up(new)
        new.execute("COMMIT")
        new.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if not saved.total():
        raise DataError(f"{path}: nothing of a ledger can be read in it; it is left as it is")
    return saved, lost


def _copy(path: Path, folder: Path) -> Path:
    copy = folder / "damaged.sqlite"
    for end in _BESIDE[:2]:
        with suppress(FileNotFoundError):
            shutil.copyfile(path.with_name(path.name + end), copy.with_name(copy.name + end))
    return copy


def _opened(copy: Path, path: Path) -> sqlite3.Connection:
    """The copy, with its first page mended where that is needed."""
    connection = _legible(copy)
    if connection is None:
        for mend in (_HEADER, slice(0, None)):
            _mend_first_page(copy, mend)
            connection = _legible(copy)
            if connection is not None:
                break
    if connection is None:
        raise DataError(f"{path}: nothing of a ledger can be read in it; it is left as it is")
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID or version > SCHEMA_VERSION:
        connection.close()
        raise DataError(
            f"{path}: a database, but no ledger of cowest; it is left as it is"
            if application != APPLICATION_ID
            else f"{path}: a ledger of version {version}, for a newer cowest than this one; it is left as it is"
        )
    return connection


def _legible(copy: Path) -> sqlite3.Connection | None:
    """A connection, where the list of tables can be read."""
    connection = sqlite3.connect(copy, isolation_level=None)
    connection.text_factory = _text
    try:
        if columns_of(connection):
            return connection
    except sqlite3.Error:
        pass
    connection.close()
    return None


def _text(raw: bytes) -> str | bytes:
    """What is no text stays bytes, and its row then makes no sense."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _mend_first_page(copy: Path, part: slice) -> None:
    with TemporaryDirectory(dir=copy.parent) as folder:
        fresh = Path(folder) / "fresh.sqlite"
        connect(fresh).close()
        page = fresh.read_bytes()[:4096]
    content = page[part]
    with copy.open("r+b") as handle:
        handle.write(content)
    for end in _BESIDE[1:]:  # the log belongs to the old header
        copy.with_name(copy.name + end).unlink(missing_ok=True)


def _rows(db: sqlite3.Connection, table: str, columns: Sequence[str], lost: Counter[str]) -> Iterator[Row]:
    """All rows that can be read: forwards up to the damage, backwards down to it, and between them one by one."""
    chosen = ", ".join(columns)
    first, last = -(2**62), 2**62
    for order, beyond in (("ASC", ">"), ("DESC", "<")):
        found: list[Row] = []
        complete = False
        with suppress(sqlite3.Error):
            for at, *values in db.execute(
                f"SELECT rowid, {chosen} FROM {table} NOT INDEXED WHERE rowid {beyond} ? ORDER BY rowid {order}",
                (first if order == "ASC" else last,),
            ):
                if order == "DESC" and at <= first:
                    break
                found.append(dict(zip(columns, values, strict=True)))
                if order == "ASC":
                    first = at
                else:
                    last = at
            complete = True
        yield from found if order == "ASC" else reversed(found)
        if complete:
            return
    at, end, gone = max(first, 0), last if last < 2**62 else max(first, 0) + _PROBE, 0
    while (at := at + 1) < end:
        try:
            values = db.execute(f"SELECT {chosen} FROM {table} NOT INDEXED WHERE rowid = ?", (at,)).fetchone()
        except sqlite3.Error:
            gone += 1
            continue
        if values is not None:
            yield dict(zip(columns, values, strict=True))
            lost[table] += gone
            gone, end = 0, last if last < 2**62 else at + _PROBE
    lost[table] += gone if last < 2**62 else 0


_PROBE: Final = 20_000
"""So many numbers are tried after the last row that was found, where a table's end cannot be read."""
_MAY_LACK: Final[Row] = {
    "purpose": "",
    "finish_reason": "stop",
    "reasoning_tokens": 0,
    "estimated": 0,
    "latency_s": 0.0,
    "attempts": "[]",
    "created": 0.0,
}
"""What a row is worth saving without."""


def _enter(db: sqlite3.Connection, table: str, row: Row) -> bool:
    """Whether the row made sense and is in the new ledger."""
    try:
        _check(table, row)
        if table == "answers" and row["current"]:
            db.execute("UPDATE answers SET current = 0 WHERE key = ? AND current = 1", (row["key"],))
        names = ", ".join(row)
        marks = ", ".join("?" * len(row))
        db.execute(f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({marks})", tuple(row.values()))
    except (sqlite3.Error, ValueError, TypeError, KeyError):
        return False
    return True


def _check(table: str, row: Row) -> None:
    """Raise ValueError, TypeError or KeyError for a row that no ledger would have written."""
    if any(isinstance(value, bytes) for value in row.values()):
        raise ValueError(table)
    if table in ("answers", "failures"):
        _ATTEMPTS.validate_json(str(row["attempts"]))
        if len(str(row["key"])) != 32 or not str(row["run"]):
            raise ValueError(table)
    if table == "answers":
        json.loads(str(row["request"]))
        if not row["text"] or row["current"] not in (0, 1):
            raise ValueError(table)
        if row.get("logprobs") is not None:
            json.loads(str(row["logprobs"]))
    if table in _ENTRIES:
        _ENTRIES[table].model_validate_json(str(row["entry"]))
    for name in _NUMBERS & row.keys():
        value = row[name]
        if not isinstance(value, int | float) and not (value is None and name == "micro_usd"):
            raise TypeError(name)


_ENTRIES: Final[dict[str, type[Record]]] = {"batches": BatchEntry, "exchanges": Exchanged, "verdicts": Verdict}
_NUMBERS: Final = frozenset(
    {
        "input_tokens",
        "output_tokens",
        "reasoning_tokens",
        "estimated",
        "micro_usd",
        "latency_s",
        "created",
        "tokens",
        "calls",
    }
)


def _exchange_tables(new: sqlite3.Connection, there: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """What a collecting server keeps in the file, where one did."""
    if not there.keys() & {"exchanges", "verdicts"}:
        return {}
    for statement in EXCHANGE_TABLES:
        new.execute(statement)
    return {name: columns for name, columns in columns_of(new).items() if name in ("exchanges", "verdicts")}


def _add_up(db: sqlite3.Connection) -> None:
    """The totals of runs whose own could not be read, from what was saved; the bill of the others is what it was."""
    runs = db.execute("SELECT run FROM answers UNION SELECT run FROM failures EXCEPT SELECT run FROM spent").fetchall()
    for (run,) in runs:
        cost, unpriced = db.execute(
            "SELECT total(micro_usd), count(*) - count(micro_usd) FROM answers WHERE run = ?", (run,)
        ).fetchone()
        add(db, run, {"micro_usd": int(cost), "unpriced_calls": unpriced})
        told = "SELECT attempts FROM answers WHERE run = ? UNION ALL SELECT attempts FROM failures WHERE run = ?"
        for (attempts,) in db.execute(told, (run, run)).fetchall():
            for attempt in _ATTEMPTS.validate_json(attempts):
                tokens = attempt.usage.input_tokens + attempt.usage.output_tokens
                if attempt.outcome == "ok":
                    add(db, run, {"calls": 1, "tokens": tokens})
                elif attempt.maybe_paid or attempt.usage.calls:
                    add(db, run, maybe(tokens, None))  # its price went with the totals


def _put_aside(path: Path) -> Path:
    kept = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    _move(path, kept)
    return kept


def _move(path: Path, target: Path) -> None:
    for end in _BESIDE:
        with suppress(FileNotFoundError):
            path.with_name(path.name + end).rename(target.with_name(target.name + end))


def _remove(path: Path) -> None:
    for end in _BESIDE:
        path.with_name(path.name + end).unlink(missing_ok=True)
