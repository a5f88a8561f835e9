"""A ledger opened to be read: nothing is written, also where nothing can be, as in a folder that is read-only."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from cowest.errors import DataError
from cowest.ledger.schema import problem, recognise


class EmptyLedgerError(DataError):
    """A ledger in which nothing is entered: an empty file, or one that another process is just making."""


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """The ledger's connection. Raises DataError where there is none or an empty file, and for damage that turns up inside."""
    if not path.exists():
        raise DataError(
            f"{path}: there is no ledger; a run enters its paid calls there (a model that runs here pays nothing)"
        )
    empty = EmptyLedgerError(
        f"{path}: empty: there is no call in it; put the ledger of this run back, or delete the file"
    )
    if not path.stat().st_size:
        raise empty
    try:
        with _opened(path) as connection:
            if recognise(connection, path) == 0:
                raise empty
            yield connection
    except (sqlite3.Error, ValueError, TypeError) as error:
        raise (error if isinstance(error, DataError) else problem(path, error)) from None


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A ledger that is in use, or was killed, has its newest entries in the write-ahead log beside it."""
    connection = _shared(path)
    if connection is not None:
        with closing(connection):
            yield connection
        return
    log = path.with_name(path.name + "-wal")
    if not log.exists() or not log.stat().st_size:
        with closing(_connect(path, "immutable=1")) as connection:
            yield connection
        return
    # SQLite would have to write beside it to read the log.
    with TemporaryDirectory(prefix="cowest-ledger-") as folder:
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)
        shutil.copyfile(log, copy.with_name(log.name))
        with closing(_connect(copy, "mode=rw")) as connection:
            yield connection


def _shared(path: Path) -> sqlite3.Connection | None:
    """A connection such as runs have; None where the small files that it needs beside the ledger cannot be written."""
    if not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        return None
    connection = _connect(path, "mode=rw")
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN):
            return None
        raise
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(path: Path, how: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.resolve().as_uri()}?{how}", uri=True, timeout=60, isolation_level=None, check_same_thread=False
    )
