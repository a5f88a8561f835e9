"""Every error that cowest raises on purpose. ``exit_code`` is what the command line returns for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cowest.types import Attempt


class CowestError(Exception):
    """Base of all; the message says what is wrong, where, and how to mend it."""

    exit_code = 1


class ConfigError(CowestError, ValueError):
    """The recipe is wrong: an unknown key, a bad value, a missing variable."""

    exit_code = 2


class DataError(CowestError, ValueError):
    """A data file is wrong; the message names file, line and field."""

    exit_code = 2


class DiskError(DataError):
    """A file cannot be written: a full or broken disk. The message names it; the same command continues."""

    exit_code = 1


class WiringError(CowestError, ValueError):
    """A stage would read what none writes."""

    exit_code = 2


class ModelNotFoundError(CowestError, FileNotFoundError):
    """A model path or name does not lead to a model."""

    exit_code = 2

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class MissingExtraError(CowestError, ImportError):
    """An optional dependency is needed and not installed."""

    exit_code = 2


class ModelCallError(CowestError, RuntimeError):
    """A model gave no usable answer. ``kind`` is a short stable reason, such as ``timeout`` or ``http_500``.

    ``attempts`` tells of every request that was sent, and what it cost.
    """

    def __init__(self, kind: str, message: str, attempts: Sequence[Attempt] = ()) -> None:
        super().__init__(message)
        self.kind = kind
        self.attempts = tuple(attempts)

    def __reduce__(self) -> tuple[type[ModelCallError], tuple[str, str, tuple[Attempt, ...]]]:
        return type(self), (self.kind, str(self), self.attempts)  # pickled with all that it was made of


class BudgetExceededError(CowestError, RuntimeError):
    """The next call could cost more than the budget leaves. What was paid for is kept; a higher budget continues.

    ``attempts`` are those that its call had made before.
    """

    exit_code = 3

    def __init__(self, message: str, attempts: Sequence[Attempt] = ()) -> None:
        super().__init__(message)
        self.attempts = tuple(attempts)


class StageError(CowestError, RuntimeError):
    """A stage could not do its work, for instance because the endpoint is down.

    ``kind``: that of the calls that failed, where that is why.
    """

    def __init__(self, message: str, kind: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind


class NothingToLearnError(StageError):
    """There is nothing to align on; a run goes on without alignment, and says why."""
