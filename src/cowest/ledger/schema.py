"""The ledger's file: its tables, and how it is opened and recognised."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from cowest.errors import DataError

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


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open a ledger, making it where there is none. Raises DataError for a file that is no ledger of this version."""
    if read_only and not path.exists():
        raise DataError(
            f"{path}: there is no ledger; a run enters its paid calls there (a model that runs here pays nothing)"
        )
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
        raise DataError(
            f"{path}: cannot be opened as a ledger ({error}); is the file damaged, the disk full, or the folder read-only?"
        ) from None
    return connection


def _busy(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    version = _recognise(connection, path)
    connection.execute("PRAGMA journal_mode = WAL")
    # An answer that was paid for outlives a power cut, not only a kill: group commits make that affordable.
    connection.execute("PRAGMA synchronous = FULL")
    if version == SCHEMA_VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")  # one process makes the tables, another that waited finds them
    try:
        if _recognise(connection, path) == 0:
            for statement in _TABLES.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _recognise(connection: sqlite3.Connection, path: Path) -> int:
    """The file's schema version, 0 for a new file. Raises DataError for what cannot be used."""
    mine = not connection.in_transaction
    if mine:
        connection.execute("BEGIN")  # one look at the file: another process may be making the tables between two
    try:
        tables = int(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
        application = int(connection.execute("PRAGMA application_id").fetchone()[0])
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    finally:
        if mine:
            connection.execute("COMMIT")
    if tables == 0 and application == 0 and version == 0:
        return 0
    if application != APPLICATION_ID:
        raise DataError(f"{path}: a database, but no ledger of cowest; give another file")
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{path}: a ledger of version {version}, and this cowest knows version {SCHEMA_VERSION}; use the newer cowest"
        )
    return version
