"""A prompt that was optimised on training queries: what a run keeps of it, and the frames that it makes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from cowest.errors import ConfigError, DataError
from cowest.protocols import Frames
from cowest.types import Example, Message, Record, Usage


class Tried(Record):
    """An instruction that answered all choosing queries: its mean score on them, in [0, 1], and the calls made until then."""

    instruction: str
    score: float
    calls: int


class Optimised(Record):
    """``gepa/SYSTEM.json``: the instruction that was found for a system, and how.

    ``own`` is the task's own, which is also ``tried[0]``; ``instruction`` the one that has the best ``score`` on the ``choosing``
    queries, of equals the earliest. ``calls`` are answers and ``reflections`` together; ``usage`` is what they took, drafts
    included. ``refused``: proposals that were empty or too long. ``ended``: no call was left for the next step; all choosing
    queries are right; no further step made a call; or there is no aligned model to optimise for.
    """

    system: str
    asks: Literal["solo", "refine"]
    own: str
    instruction: str
    score: float | None
    own_score: float | None
    choosing: int
    learning: int
    calls: int
    reflections: int
    refused: int
    usage: Usage
    tried: tuple[Tried, ...]
    ended: Literal["calls", "all right", "nothing new", "not aligned"]
    gepa: str


def optimised_file(system: str) -> str:
    """Where a run keeps the prompt of a system."""
    return f"gepa/{system}.json"


def optimised_in(run: Path, system: str) -> Optimised:
    """A system's prompt in a run. Raises ConfigError where there is none yet, DataError where it cannot be read."""
    path = run / optimised_file(system)
    if not path.is_file():
        raise ConfigError(
            f"{run} has no prompt of {system}: name it in evaluate.systems or table.rows, and run the recipe"
        )
    try:
        return Optimised.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{path}: damaged, or of another version of cowest ({error.error_count()} problems); the same command makes it again"
        ) from None


@dataclass(frozen=True, slots=True)
class OtherWords:
    """The frames of a task with another instruction to the strong model; the weak model is asked as before."""

    weak: Frames
    strong: Frames

    def draft(self, example: Example) -> tuple[Message, ...]:
        """What the weak model is asked."""
        return self.weak.draft(example)

    def solo(self, example: Example) -> tuple[Message, ...]:
        """What the strong model is asked without a draft."""
        return self.strong.solo(example)

    def refine(self, example: Example, draft: str) -> tuple[Message, ...]:
        """What the strong model is asked with a draft."""
        return self.strong.refine(example, draft)
