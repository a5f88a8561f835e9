"""The early warning: answers that are cut off at max_tokens are noticed at the first of them, while there is still money."""

from __future__ import annotations

from functools import cached_property
from typing import Final, Protocol

from pydantic import BaseModel

from cowest.errors import DataError
from cowest.protocols import Reporter, Task
from cowest.types import Draft, Example, Prediction, Refinement

FIRST: Final = 20
"""Records that are awaited before the share of those cut off is looked at (all, where there are fewer)."""
SMALL_SHARE: Final = 0.05
"""Up to this share nothing is said before the results."""


class Asking(Protocol):
    """What is known where queries are asked: a run's context, or less."""

    @property
    def label(self) -> str: ...

    @property
    def task(self) -> Task: ...

    @property
    def reporter(self) -> Reporter: ...


class Looking(Protocol):
    """Looks at a stage's records while they are made (:mod:`cowest.stages.draft_watch`)."""

    def see(self, record: BaseModel) -> None:
        """Take note of a record. May raise StageError, which stops the stage with what it has."""
        ...

    def look(self) -> None:
        """All records are there. May raise StageError."""
        ...


class CutWatch:
    """Counts the texts of a stage that were cut off before an answer, and says so once when they are more than a small share.

    ``limit`` names the setting that is to be raised.
    """

    def __init__(self, context: Asking, label: str, limit: str, items: int) -> None:
        self._context, self._label, self._limit = context, label, limit
        self._first, self._seen, self._cut, self._told = min(FIRST, items), 0, 0, False

    def see(self, record: BaseModel) -> None:
        """Take note of a record; of another kind than drafts and answers it is not looked at."""
        if self._told or not isinstance(record, Draft | Refinement | Prediction):
            return
        self._seen += 1
        self._cut += record.truncated and not self._answered(record)
        if self._seen >= self._first and self._cut > SMALL_SHARE * self._seen:
            self._told = True
            self._context.reporter.info(
                f"{self._context.label}{self._label}: warning: {self._cut} of the first {self._seen} were cut off before an "
                f"answer, and will be left out; raise {self._limit}. Ctrl-C stops here, and what was paid for is kept"
            )

    def _answered(self, record: Draft | Refinement | Prediction) -> bool:
        example = self._examples.get(record.example_id)
        if record.text is None or example is None:
            return False
        return self._context.task.extract(record.text, example) is not None

    @cached_property
    def _examples(self) -> dict[str, Example]:
        """Needed only once something was cut off."""
        found: dict[str, Example] = {}
        for split in ("train", "validation", "test"):
            try:
                found |= {example.id: example for example in self._context.task.examples(split)}
            except DataError:  # not every task has every split
                continue
        return found
