"""What a run leaves of its progress for other processes: ``run.log``, and ``live.json`` with where it is now.

Both are told beside the files that count, and never stop a run: a disk that is full ends them silently. Whether a process is at
work in a folder is told by a lock, which goes with the process, also when it is killed.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final, Literal

from pydantic import ValidationError

from cowest.errors import BudgetExceededError, CowestError
from cowest.protocols import Reporter
from cowest.types import Record

if sys.platform != "win32":
    import fcntl

LOG: Final = "run.log"
LIVE: Final = "live.json"
_LOCK: Final = ".running"
_EVERY_S: Final = 0.5  # between two writings of live.json
_LOGGED_EVERY_S: Final = 30.0  # between two lines on how far a step is
_MOST_BYTES: Final = 4_000_000  # of a log; when it is opened, the older half of a longer one goes

Ended = Literal["done", "failed", "stopped", "budget"]


class Live(Record):
    """Where a process is, or was last: ``done`` of ``total`` in the step ``label``, of which ``at_start`` were there before.

    Times are seconds since 1970. ``ended`` is None while it works, and where it was killed; :func:`working` tells which.
    """

    pid: int
    command: str
    began: float
    updated: float
    label: str = ""
    total: int | None = None
    done: int = 0
    at_start: int = 0
    step_began: float = 0.0
    ended: Ended | None = None
    error: str | None = None

    def left_s(self, now: float) -> float | None:
        """Seconds that the step will still take at the rate so far; None where that cannot be told."""
        fresh = self.done - self.at_start
        if not self.total or fresh <= 0:
            return None
        return (now - self.step_began) / fresh * (self.total - self.done)


def read_live(folder: Path) -> Live | None:
    """What ``folder`` says of its last process; None where there is nothing to be read."""
    with suppress(OSError, ValidationError):
        return Live.model_validate_json((folder / LIVE).read_bytes())
    return None


def working(folder: Path) -> bool:
    """Whether a process works in ``folder`` now."""
    if sys.platform == "win32":  # there is no such lock
        live = read_live(folder)
        return live is not None and live.ended is None and time.time() - live.updated < 120
    return any(_held(folder / name) for name in (_LOCK, ".lock"))


def _held(lock: Path) -> bool:
    try:
        with lock.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none, or it cannot be read
        return False
    return False


class LoggedReporter:
    """A reporter that also tells ``folder``; from when it is opened, so that what is refused before leaves no folder.

    ``log`` is off where the process's own output is the log already (:mod:`cowest.run.side_by_side`).
    """

    def __init__(self, inner: Reporter, folder: Path, command: str, log: bool = True) -> None:
        self._inner, self._folder, self._log = inner, folder, log
        self._live = Live(pid=os.getpid(), command=command, began=time.time(), updated=time.time())
        self._before: list[str] | None = []
        self._handle: IO[str] | None = None
        self._written = self._logged = 0.0
        self._guard = threading.Lock()  # a training tells its steps from another thread

    def start(self, label: str, total: int | None, done: int = 0) -> None:
        """Begin a step."""
        self._inner.start(label, total, done)
        now = time.time()
        self._logged = now
        step = {"label": label.strip(), "total": total, "done": done, "at_start": done, "step_began": now}
        self._note(at_once=True, **step)

    def advance(self, n: int = 1) -> None:
        """``n`` more are done."""
        self._inner.advance(n)
        self._note(done=self._live.done + n)
        if time.time() - self._logged >= _LOGGED_EVERY_S:
            self._logged = time.time()
            self._line(f"  {self._live.label}: {self._live.done}/{self._live.total or '?'}")

    def finish(self) -> None:
        """End the step."""
        self._inner.finish()
        if self._live.label:
            self._line(f"  {self._live.label}: {self._live.done} done in {time.time() - self._live.step_began:.1f} s")
        self._note(at_once=True, label="", total=None, done=0, at_start=0)

    def info(self, text: str) -> None:
        """One line of plain text."""
        self._inner.info(text)
        self._line(text)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Tell the folder what happens inside, and how it ended."""
        lock = self._open()
        self._line(f"cowest {self._live.command}: process {os.getpid()}")
        before, self._before = self._before or [], None
        for line in before:
            self._line(line)
        try:
            yield
        except BaseException as error:
            ended: Ended = "failed"
            if isinstance(error, BudgetExceededError):
                ended = "budget"
            elif not isinstance(error, Exception):  # a signal, or the cancelled task that it asked for
                ended = "stopped"
            elif not isinstance(error, CowestError):
                self._line("".join(traceback.format_exception(error)).rstrip())
            told = "" if ended == "stopped" else str(error)
            self._line(f"{ended}{told and ': '}{told}")
            self._note(at_once=True, ended=ended, error=told or None)
            raise
        else:
            self._line("done")
            self._note(at_once=True, ended="done")
        finally:
            for handle in (self._handle, lock):
                if handle is not None:
                    with suppress(OSError):
                        handle.close()
            self._handle = None

    def _open(self) -> IO[bytes] | None:
        lock: IO[bytes] | None = None
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = (self._folder / _LOCK).open("ab")
            if sys.platform != "win32":
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # another process in it is refused elsewhere
        if self._log:
            with suppress(OSError):
                _shorten(self._folder / LOG)
                self._handle = (self._folder / LOG).open("a", encoding="utf-8")
        self._note(at_once=True)
        return lock

    def _line(self, text: str) -> None:
        if self._before is not None:
            self._before.append(text)
        elif self._handle is not None:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S")
            with suppress(OSError, ValueError):
                self._handle.write("".join(f"{stamp} {line}\n" for line in text.splitlines() or [""]))
                self._handle.flush()

    def _note(self, at_once: bool = False, **changed: object) -> None:
        with self._guard:
            now = time.time()
            self._live = self._live.model_copy(update={**changed, "updated": now})
            if self._before is not None and not at_once:
                return
            if not at_once and now - self._written < _EVERY_S:
                return
            self._written = now
            with suppress(OSError):
                partial = self._folder / f"{LIVE}.part"
                if self._folder.is_dir():
                    partial.write_text(self._live.model_dump_json() + "\n", encoding="utf-8")
                    partial.replace(self._folder / LIVE)


def _shorten(log: Path) -> None:
    """Leave the newer half of a log that has grown too long."""
    if log.exists() and log.stat().st_size > _MOST_BYTES:
        kept = log.read_bytes()[-_MOST_BYTES // 2 :]
        log.write_bytes(kept[kept.find(b"\n") + 1 :])
