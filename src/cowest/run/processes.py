"""Runs side by side, each in a process of its own with one thread: on two cores, two processes of two threads would fight."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cowest.errors import StageError
from cowest.protocols import Reporter


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

    Raises StageError with the log's path as soon as one fails; the others are then ended, and continue next time.
    """
    waiting, running = list(jobs), dict[Job, _Running]()
    if not echo:
        reporter.start("runs", len(jobs))
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                running[job] = _start(job, reporter if echo else None)
            time.sleep(0.2)
            for job, (process, follower) in list(running.items()):
                if process.poll() is None:
                    continue
                follower.join(timeout=10)  # what it said last is in the log before the log is quoted
                del running[job]
                if not echo:
                    reporter.advance()
                if process.returncode:
                    raise StageError(f"the run of {job.name} failed{_last_line(job.log)}; see {job.log}")
    finally:
        for process, _ in running.values():
            process.terminate()
            process.wait()
        if not echo:
            reporter.finish()


def _start(job: Job, reporter: Reporter | None) -> _Running:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "cowest", *job.arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env
    )
    follower = threading.Thread(target=_follow, args=(job, process, reporter), daemon=True)
    follower.start()
    return _Running(process, follower)


def _follow(job: Job, process: subprocess.Popen[bytes], reporter: Reporter | None) -> None:
    """Copy a process's stderr to its log, and line by line to the reporter."""
    if process.stderr is None:
        return
    with job.log.open("ab", buffering=0) as log:
        for line in process.stderr:
            log.write(line)
            if reporter is not None:
                reporter.info(f"[{job.name}] {line.decode(errors='replace').rstrip()}")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return f" ({lines[-1]})" if lines else ""
