"""The ledger's file: its tables, and how it is opened and recognised."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Final

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from cowest.errors import DataError, DiskError

SCHEMA_VERSION: Final = 1
APPLICATION_ID: Final = 0x636F7765  # "cowe"

_SHORT: Final = wait_random(0.002, 0.02)  # seconds between two tries to open

_TABLES: Final = """
CREATE TABLE answers (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, current INTEGER NOT NULL, run TEXT NOT NULL, purpose TEXT NOT NULL,
    model TEXT NOT NULL, request TEXT NOT NULL, text TEXT NOT NULL, finish_reason TEXT NOT NULL,
    input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL, reasoning_tokens INTEGER NOT NULL,
    estimated INTEGER NOT NULL, micro_usd INTEGER, latency_s REAL NOT NULL, logprobs TEXT, attempts TEXT NOT NULL,
    created REAL NOT NULL);
CREATE UNIQUE INDEX answers_by_key ON answers (key) WHERE current = 1;
CREATE TABLE failures (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, run TEXT NOT NULL, purpose TEXT NOT NULL, model TEXT NOT NULL,
    kind TEXT NOT NULL, message TEXT NOT NULL, attempts TEXT NOT NULL, created REAL NOT NULL);
CREATE TABLE reservations (
    id INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, pid INTEGER NOT NULL, process TEXT NOT NULL,
    tokens INTEGER NOT NULL, micro_usd INTEGER, created REAL NOT NULL);
CREATE TABLE spent (
    run TEXT PRIMARY KEY, calls INTEGER NOT NULL DEFAULT 0, tokens INTEGER NOT NULL DEFAULT 0,
    micro_usd INTEGER NOT NULL DEFAULT 0, unpriced_calls INTEGER NOT NULL DEFAULT 0,
    maybe_calls INTEGER NOT NULL DEFAULT 0, maybe_tokens INTEGER NOT NULL DEFAULT 0,
    maybe_micro_usd INTEGER NOT NULL DEFAULT 0, maybe_unpriced_calls INTEGER NOT NULL DEFAULT 0,
    hits INTEGER NOT NULL DEFAULT 0);
CREATE TABLE batches (
    id TEXT NOT NULL, model TEXT NOT NULL, run TEXT NOT NULL, entry TEXT NOT NULL, updated REAL NOT NULL,
    PRIMARY KEY (id, model));
"""


def connect(path: Path) -> sqlite3.Connection:
    """Open a ledger to write, making it where there is none. Raises DataError for a file that is no ledger of this version."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # isolation_level None: transactions begin where the code says so.
        connection = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        try:
            # SQLite's own patience does not cover the change to WAL while another process opens the file, too.
            for attempt in Retrying(
                retry=retry_if_exception(_busy), stop=stop_after_delay(60), wait=_SHORT, reraise=True
            ):
                with attempt:
                    _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise problem(path, error) from None
    return connection


def problem(path: Path, error: Exception) -> DataError:
    """What an error of SQLite, or a row that makes no sense, means for the user, and what to do."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return DiskError(
            f"{path}: cannot be written ({error}): is the disk full? Free some space and run the same command: it continues, and "
            "what was entered is kept"
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return DataError(f"{path}: cannot be opened as a ledger ({error}): is it a folder, or its folder read-only?")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return DataError(f"{path}: another process keeps it ({error}); end that one, then run the same command")
    return damaged(path, str(error) if isinstance(error, sqlite3.Error) else "a row makes no sense")


def damaged(path: Path, what: str) -> DataError:
    """The error for a file that is damaged inside."""
    return DataError(
        f"{path}: damaged, or no ledger ({what}); `cowest ledger recover {path}` saves what can be read, and keeps the file"
    )


@cache
def tables() -> dict[str, tuple[str, ...]]:
    """The tables of a ledger with their columns."""
    with closing(sqlite3.connect(":memory:")) as empty:
        empty.executescript(_TABLES)
        return columns_of(empty)


def columns_of(connection: sqlite3.Connection) -> dict[str, tuple[str, ...]]:
    """The tables that a database has, with their columns."""
    found: dict[str, tuple[str, ...]] = {}
    for table, column in connection.execute(
        "SELECT m.name, p.name FROM sqlite_master m JOIN pragma_table_info(m.name) p WHERE m.type = 'table'"
    ):
        found[table] = (*found.get(table, ()), column)
    return found


def _busy(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    version = recognise(connection, path)
    connection.execute("PRAGMA journal_mode = WAL")
    # An answer that was paid for outlives a power cut, not only a kill: group commits make that affordable.
    connection.execute("PRAGMA synchronous = FULL")
    if version == SCHEMA_VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")  # one process makes the tables, another that waited finds them
    try:
        if recognise(connection, path) == 0:
            for statement in _TABLES.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def recognise(connection: sqlite3.Connection, path: Path) -> int:
    """The file's schema version, 0 for a new file. Raises DataError for what cannot be used."""
    mine = not connection.in_transaction
    if mine:
        connection.execute("BEGIN")  # one look at the file: another process may be making the tables between two
    try:
        there = columns_of(connection)
        application = int(connection.execute("PRAGMA application_id").fetchone()[0])
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    finally:
        if mine:
            connection.execute("COMMIT")
    if not there and application == 0 and version == 0:
        return 0
    if application != APPLICATION_ID:
        raise DataError(f"{path}: a database, but no ledger of cowest; give another file")
    if version > SCHEMA_VERSION:
        raise DataError(
            f"{path}: a ledger of version {version}, and this cowest knows version {SCHEMA_VERSION}; use the newer cowest"
        )
    for table, columns in tables().items():
        missing = [f"{table}.{c}" for c in columns if c not in there[table]] if table in there else [f"table {table}"]
        if missing:
            raise damaged(path, f"{missing[0]} is missing")
    return version
