"""Runs side by side, each in a process of its own with one thread: on two cores, two processes of two threads would fight.

A terminal sends Ctrl-C to all of them. They ignore it, and are told by this process: once to stop in good order, and once more
when this one is to end at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from cowest.errors import BudgetExceededError, StageError
from cowest.protocols import Reporter
from cowest.run import stopping

PATIENCE_S: Final = 90.0
"""So long a run that was told to stop may take: its models wait up to a minute for calls under way."""


@dataclass(frozen=True, slots=True)
class Job:
    """One ``cowest`` command; its stderr goes to ``log``."""

    name: str
    arguments: tuple[str, ...]
    log: Path


class _Running(NamedTuple):
    process: subprocess.Popen[bytes]
    follower: threading.Thread


def run_jobs(jobs: Sequence[Job], at_once: int, reporter: Reporter, *, echo: bool = False) -> None:
    """Run the jobs, ``at_once`` at a time, each continuing what a killed one left; ``echo`` shows their progress lines.

    Raises StageError with the log's path as soon as one fails, BudgetExceededError with its line when its budget is reached; the
    others are then stopped, and continue next time.
    """
    waiting, running = list(jobs), dict[Job, _Running]()
    if not echo:
        reporter.start("runs", len(jobs))
    try:
        with stopping.at_once(lambda: _terminate(running)):
            try:
                while waiting or running:
                    while waiting and len(running) < at_once:
                        job = waiting.pop(0)
                        running[job] = _start(job, reporter if echo else None)
                    time.sleep(0.2)
                    for job in _ended(running):
                        if not echo:
                            reporter.advance()
                        _check(job, running.pop(job).process.returncode)
            finally:
                _stop(running)
    finally:
        if not echo:
            reporter.finish()


def _ended(running: Mapping[Job, _Running]) -> list[Job]:
    done = [job for job, (process, _) in running.items() if process.poll() is not None]
    for job in done:
        running[job].follower.join(timeout=10)  # what it said last is in the log before the log is quoted
    return done


def _check(job: Job, code: int) -> None:
    if code == BudgetExceededError.exit_code:
        raise BudgetExceededError(_last_line(job.log) or f"the budget is reached; see {job.log}")
    if code:
        last = _last_line(job.log)
        raise StageError(f"the run of {job.name} failed{f' ({last})' if last else ''}; see {job.log}")


def _terminate(running: Mapping[Job, _Running]) -> None:
    for process, _ in list(running.values()):
        process.terminate()


def _stop(running: Mapping[Job, _Running]) -> None:
    """Stop what runs: it enters what it has paid for. One that does not end is killed."""
    _terminate(running)
    until = time.monotonic() + PATIENCE_S
    for process, follower in running.values():
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        follower.join(timeout=10)


@contextmanager
def _deaf_to_the_terminal() -> Iterator[None]:
    """What is started inside ignores the terminal's signals, from its first moment on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.signal(n, signal.SIG_IGN) for n in stopping.SIGNALS if n != signal.SIGTERM}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(job: Job, reporter: Reporter | None) -> _Running:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "cowest", *job.arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with _deaf_to_the_terminal():
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env
        )
    follower = threading.Thread(target=_follow, args=(job, process, reporter), daemon=True)
    follower.start()
    return _Running(process, follower)


def _follow(job: Job, process: subprocess.Popen[bytes], reporter: Reporter | None) -> None:
    """Copy a process's stderr to its log, and line by line to the reporter; how it ended, this process says itself."""
    if process.stderr is None:
        return
    with job.log.open("ab", buffering=0) as log:
        for line in process.stderr:
            log.write(line)
            if reporter is not None and not line.startswith(_ENDED):
                reporter.info(f"[{job.name}] {line.decode(errors='replace').rstrip()}")


_ENDED: Final = b"cowest: "


def _last_line(log: Path) -> str:
    """The last line of a log, without the command's name."""
    with contextlib.suppress(OSError, IndexError):
        return log.read_text(encoding="utf-8", errors="replace").splitlines()[-1].removeprefix(_ENDED.decode())
    return ""
