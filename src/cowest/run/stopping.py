"""Stopping in good order: the first SIGINT, SIGTERM or SIGHUP lets what is paid for come in, the second ends the process at once.

A signal that the process was started to ignore (``nohup``, a job of :mod:`cowest.run.processes`) stays ignored.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn, TypeVar

T = TypeVar("T")

SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP
STOPPED: Final = "cowest: stopped; the same command continues where it was"
_AT_ONCE: Final = "cowest: ended at once; the same command continues, and calls under way count as perhaps paid"
_SHOW_CURSOR: Final = "\x1b[?25h"


class _Stop:
    """What has been asked of this process, and whom to tell."""

    def __init__(self) -> None:
        self.by: int | None = None
        self.task: tuple[asyncio.AbstractEventLoop, asyncio.Task[object]] | None = None
        self.last: list[Callable[[], None]] = []

    def hear(self, number: int, _: FrameType | None) -> None:
        """The handler; Python calls it in the main thread."""
        if self.by is not None:
            self._end_at_once(number)
        self.by = number
        if self.task is None:
            raise SystemExit(128 + number)
        loop, task = self.task
        with contextlib.suppress(RuntimeError):  # the loop is closed: it is done
            loop.call_soon_threadsafe(task.cancel)

    def _end_at_once(self, number: int) -> NoReturn:
        """No clean-up: what libraries say of work that is broken off helps nobody. The ledger is whole at any moment."""
        for callback in self.last:
            with contextlib.suppress(Exception):
                callback()
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
            print((_SHOW_CURSOR if sys.stderr.isatty() else "") + _AT_ONCE, file=sys.stderr, flush=True)
        os._exit(128 + number)


_stop = _Stop()


@contextmanager
def handled() -> Iterator[None]:
    """Handle the signals inside; outside the main thread, where Python allows no handlers, nothing changes."""
    global _stop
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _stop, before = _Stop(), {}
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, _stop.hear)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(main: Coroutine[object, object, T]) -> T:
    """``asyncio.run``, whose task is cancelled by the first signal. Raises SystemExit (128 + signal) when that ended it."""
    stop = _stop

    async def go() -> T:
        task = asyncio.current_task()
        assert task is not None
        stop.task = asyncio.get_running_loop(), task
        return await main

    try:
        return asyncio.run(go())
    except asyncio.CancelledError:
        if stop.by is None:
            raise
        raise SystemExit(128 + stop.by) from None
    finally:
        stop.task = None


@contextmanager
def at_once(callback: Callable[[], None]) -> Iterator[None]:
    """What a second signal has to do before it ends the process: quickly, and without waiting."""
    stop = _stop
    stop.last.append(callback)
    try:
        yield
    finally:
        stop.last.remove(callback)
