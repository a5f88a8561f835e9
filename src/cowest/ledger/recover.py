"""Saving what can be read of a damaged ledger into a new one, row by row.

Work is done on a copy. Where the file's first page is gone (its header, the list of its tables), that of a new ledger takes its
place: all ledgers are laid out alike. A table that cannot be read from its beginning to its end is read page by page. A row that
cannot be read, or that makes no sense, is left out and counted.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Final

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
_CHANGES: Final = 24
_VALID_FOR: Final = 92
"""Where the header has its number of changes, and that for which its number of pages holds."""


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
    return Recovered(path=str(out or path), kept=str(kept), saved=dict(saved), lost=dict(lost))


def _save(copy: Path, path: Path, partial: Path) -> tuple[Counter[str], Counter[str]]:
    saved, lost = Counter[str](), Counter[str]()
    with closing(_opened(copy, path)) as old:
        there = columns_of(old)
        roots = dict(old.execute("SELECT name, rootpage FROM sqlite_master WHERE type = 'table'"))
    with closing(connect(partial)) as new:
        new.execute("BEGIN IMMEDIATE")
        for table, columns in (tables() | _exchange_tables(new, there)).items():
            common = [column for column in columns if column in there.get(table, ())]
            seen: set[int] = set()
            for number, row in _rows(copy, table, common, roots[table]) if common else ():
                missing = {c: v for c, v in _MAY_LACK.items() if c in columns and c not in row}
                if number not in seen and _enter(new, table, row | missing):
                    seen.add(number)
            saved[table] = len(seen)
            if table in ("answers", "failures"):  # of which no row is ever deleted
                lost[table] = max(seen, default=0) - len(seen)
        _add_up(new)
        new.execute("COMMIT")
        new.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if not saved.total():
        raise DataError(f"{path}: nothing of a ledger can be read in it; it is left as it is")
    return +saved, +lost


def _copy(path: Path, folder: Path) -> Path:
    copy = folder / "damaged.sqlite"
    for end in _BESIDE[:2]:
        with suppress(FileNotFoundError):
            shutil.copyfile(path.with_name(path.name + end), copy.with_name(copy.name + end))
    return copy


def _opened(copy: Path, path: Path) -> sqlite3.Connection:
    """The copy, with its first page mended where that is needed, and the log's entries in it."""
    for mend in (slice(0, 0), _HEADER, slice(0, PAGE)):
        _mend_first_page(copy, mend)
        connection = _connect(copy)
        try:
            with suppress(sqlite3.Error):
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            if not columns_of(connection):
                raise DataError(f"{path}: nothing of a ledger can be read in it; it is left as it is")
            _check_kind(connection, path)
            return connection
        except sqlite3.Error:
            connection.close()
        except DataError:
            connection.close()
            raise
    raise DataError(f"{path}: nothing of a ledger can be read in it; it is left as it is")


def _check_kind(connection: sqlite3.Connection, path: Path) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION_ID:
        raise DataError(f"{path}: a database, but no ledger of cowest; it is left as it is")
    if version > SCHEMA_VERSION:
        raise DataError(f"{path}: a ledger of version {version}, for a newer cowest than this one; it is left as it is")


def _connect(copy: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(copy, isolation_level=None)
    connection.text_factory = _text
    return connection


def _text(raw: bytes) -> str | bytes:
    """What is no text stays bytes, and its row then makes no sense."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _mend_first_page(copy: Path, part: slice) -> None:
    """Take this part of the page from a new ledger. The number of pages is then that of the file, whatever its header says."""
    with TemporaryDirectory(dir=copy.parent) as folder:
        fresh = Path(folder) / "fresh.sqlite"
        connect(fresh).close()
        content = fresh.read_bytes()[:PAGE][part]
    with copy.open("r+b") as handle:
        handle.write(content)
        if content:  # the log belongs to the old header
            copy.with_name(copy.name + "-wal").unlink(missing_ok=True)
        if not copy.with_name(copy.name + "-wal").exists():
            handle.seek(_CHANGES)
            changes = handle.read(4)
            handle.seek(_VALID_FOR)
            handle.write(bytes(255 - byte for byte in changes))


def _rows(copy: Path, table: str, columns: Sequence[str], root: int) -> Iterator[tuple[int, Row]]:
    """All rows that can be read, with their numbers: from the table's root, else from each page that may hold some of them.

    A page with rows is a table's root as well as any: put in the place of the root, it is read by SQLite itself.
    """
    if (yield from _read(copy, table, columns)):
        return
    with copy.open("r+b") as handle:
        before = _page(handle, root)
        for number in range(2, copy.stat().st_size // PAGE + 1):
            page = before if number == root else _page(handle, number)
            if page[:1] == _LEAF:
                _put_page(handle, root, page)
                yield from _read(copy, table, columns)
        _put_page(handle, root, before)


def _read(copy: Path, table: str, columns: Sequence[str]) -> Generator[tuple[int, Row], None, bool]:
    """Rows as far as they can be read; returns whether that was to the end."""
    with closing(_connect(copy)) as db, suppress(sqlite3.Error):
        for number, *values in db.execute(
            f"SELECT rowid, {', '.join(columns)} FROM {table} NOT INDEXED ORDER BY rowid"
        ):
            yield number, dict(zip(columns, values, strict=True))
        return True
    return False


def _page(handle: IO[bytes], number: int) -> bytes:
    handle.seek((number - 1) * PAGE)
    return handle.read(PAGE)


def _put_page(handle: IO[bytes], number: int, page: bytes) -> None:
    handle.seek((number - 1) * PAGE)
    handle.write(page)
    handle.flush()


PAGE: Final = 4096  # SQLite's default, with which every ledger is made
_LEAF: Final = b"\x0d"
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
