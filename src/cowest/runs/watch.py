"""A run as another process sees it: one look, and what has been said since the look before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cowest.errors import ConfigError
from cowest.run.live import LOG
from cowest.runs.found import Found, found
from cowest.types import Record

_MOST = 65_536  # bytes of new log that are shown at a look


class Look(Record):
    """How a run stands, and the lines of its log that are new; ``read`` are the bytes of it that have been seen."""

    run: Found
    new: Sequence[str] = ()
    read: int = 0

    @property
    def over(self) -> bool:
        """Whether nothing more is to be expected."""
        return self.run.state != "running"


def look(path: Path, before: Look | None = None) -> Look:
    """One look at the run in ``path``. Raises ConfigError where there is no such folder."""
    if not path.is_dir():
        raise ConfigError(f"{path}: no such run; it is there once `cowest run` has begun (--out, default runs/NAME)")
    run = found(path, size=False)
    new, read = _new_lines(path / LOG, 0 if before is None else before.read)
    return Look(run=run, new=new, read=read)


def _new_lines(log: Path, read: int) -> tuple[list[str], int]:
    if not log.is_file():
        return [], 0
    size = log.stat().st_size
    if size < read:  # it was shortened
        read = 0
    with log.open("rb") as handle:
        handle.seek(max(read, size - _MOST))
        text = handle.read()
    whole = text[: text.rfind(b"\n") + 1]
    return whole.decode("utf-8", errors="replace").splitlines(), size - (len(text) - len(whole))
