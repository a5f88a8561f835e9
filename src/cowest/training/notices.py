"""What the training libraries say: their bars and hints are off, TRL's warnings are shown once each."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from typing import TextIO

import datasets
import transformers


class _Once(logging.Handler):
    """Hands each distinct warning on as one line."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell, self._told = tell, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        self.told(f"TRL warns: {record.getMessage().removeprefix('[RANK 0] ')}")  # accelerate's logger adds the rank

    def told(self, message: str) -> None:
        """Hand it on, unless it was before."""
        line = " ".join(message.split())
        if line not in self._told:
            self._told.add(line)
            self._tell(line)


@contextlib.contextmanager
def quiet(tell: Callable[[str], None] | None = None) -> Iterator[None]:
    """No bars and hints from the libraries: progress goes to the reporter. Restores what was set.

    ``tell`` gets TRL's warnings (and Python's, of whatever library), each once; without it there are none.
    """
    once = _Once(tell or (lambda _: None))
    before = transformers.logging.get_verbosity()
    bars, hub_bars = datasets.are_progress_bars_disabled(), transformers.utils.logging.is_progress_bar_enabled()
    no_tqdm = os.environ.get("TQDM_DISABLE")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"
    try:
        with _instead_of_stderr(once):
            yield
    finally:
        transformers.logging.set_verbosity(before)
        if hub_bars:
            transformers.utils.logging.enable_progress_bar()
        if not bars:
            datasets.enable_progress_bars()
        if no_tqdm is None:
            os.environ.pop("TQDM_DISABLE", None)
        else:
            os.environ["TQDM_DISABLE"] = no_tqdm


@contextlib.contextmanager
def _instead_of_stderr(once: _Once) -> Iterator[None]:
    logger = logging.getLogger("trl")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(once)
    logger.setLevel(logging.WARNING)
    logger.propagate = False

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        once.told(f"{category.__name__}: {message}")

    try:
        with warnings.catch_warnings():
            # What one library has to tell another of its future is no news to a user; what TRL tells its caller may be.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("always", category=FutureWarning, module=r"(cowest|trl)\.")
            warnings.showwarning = show
            yield
    finally:
        logger.removeHandler(once)
        logger.setLevel(level)
        logger.propagate = propagate
