"""Progress on stderr: a bar with a time estimate in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


class QuietReporter:
    """Reports nothing."""

    def start(self, label: str, total: int | None, done: int = 0) -> None: ...

    def advance(self, n: int = 1) -> None: ...

    def finish(self) -> None: ...

    def info(self, text: str) -> None: ...


class NoTracker:
    """Keeps nothing."""

    def log(self, stage: str, values: Mapping[str, float], step: int | None = None) -> None: ...


NOWHERE = NoTracker()


class RichReporter:
    """A live bar with the remaining time for the current stage."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._bar: TaskID | None = None

    def start(self, label: str, total: int | None, done: int = 0) -> None:
        """Begin a bar; ``done`` of ``total`` were there before."""
        self.finish()
        self._progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=12),  # the whole line fits into 80 columns
            MofNCompleteColumn(),
            TextColumn("time left (taken)"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console,
        )
        self._progress.start()
        self._bar = self._progress.add_task(label, total=total, completed=done)

    def advance(self, n: int = 1) -> None:
        """``n`` more are done."""
        if self._progress is not None and self._bar is not None:
            self._progress.advance(self._bar, n)

    def finish(self) -> None:
        """End the current bar, if there is one."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._bar = None

    def info(self, text: str) -> None:
        """One line of plain text."""
        self._console.print(text, markup=False)


class LineReporter:
    """For logs: a line when a stage starts and ends, and one with an estimate every ``every_s`` seconds."""

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self._label, self._total, self._done, self._at_start = "", 0, 0, 0
        self._began = self._told = 0.0

    def start(self, label: str, total: int | None, done: int = 0) -> None:
        """Begin a stage."""
        self._label, self._total, self._done, self._at_start = label, total or 0, done, done
        self._began = self._told = time.monotonic()

    def advance(self, n: int = 1) -> None:
        """``n`` more are done."""
        self._done += n
        now = time.monotonic()
        if now - self._told >= self._every_s and self._total:
            self._told = now
            fresh = self._done - self._at_start
            left = (now - self._began) / fresh * (self._total - self._done) if fresh else 0
            self.info(f"  {self._label}: {self._done}/{self._total}, about {left:.0f} s left")

    def finish(self) -> None:
        """End the stage."""
        if self._label:
            self.info(
                f"  {self._label}: {self._done}/{self._total or self._done} in {time.monotonic() - self._began:.1f} s"
            )
        self._label = ""

    def info(self, text: str) -> None:
        """One line of plain text."""
        print(text, file=sys.stderr, flush=True)


def default_reporter() -> RichReporter | LineReporter:
    """A live bar where stderr is a terminal, lines otherwise."""
    return RichReporter() if sys.stderr.isatty() else LineReporter()


@contextmanager
def no_hub_bars() -> Iterator[None]:
    """Progress goes to the reporter: transformers' own bars are off meanwhile."""
    from transformers.utils import logging  # heavy, and only who loads a model comes here

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
