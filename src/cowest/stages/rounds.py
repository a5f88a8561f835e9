"""A round of the loop, and the policy that it drafts with: what a second round needs is here, and nowhere else.

Round 1 drafts with the SFT model, and its files lie in the run's folder; those of round n lie in ``round-n/``. Which rounds
there are, and when they end: :mod:`cowest.stages.loop`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cowest.assembly.context import Context
from cowest.recipe.stages import Turn
from cowest.types import ModelRef

OPENINGS = "openings.jsonl"


@dataclass(frozen=True, slots=True)
class Policy:
    """Which weights a stage drafts with: pi_w at some point of its training.

    ``reads`` are the files of earlier stages that its weights follow from; ``weights`` finds them once those are there.
    """

    name: str
    reads: tuple[str, ...]
    weights: Callable[[Context], ModelRef]


BASE = Policy("base", (), lambda context: context.weak.base())
"""The weak model as it is: one that is served elsewhere, or not trained."""


def in_round(name: str, number: int) -> str:
    """What a stage of this name is called in this round."""
    return name if number == 1 else f"{name} (round {number})"


@dataclass(frozen=True, slots=True)
class Round:
    """One pass of sample, feedback, pairs and align, with the policy that drafts in it.

    ``origin`` is what alignment starts from and is pulled to, where that is another one; ``pooled`` the round whose pairs are
    learnt from, too. ``turn``: what it asks the policy for (``draft.turn``).
    """

    policy: Policy
    number: int = 1
    origin: Policy | None = None
    pooled: Round | None = None
    turn: Turn = "draft"

    @property
    def start(self) -> Policy:
        """What alignment starts from: its reference."""
        return self.origin or self.policy

    @property
    def opened(self) -> tuple[str, ...]:
        """The file with what comes before that turn; none before a draft."""
        return () if self.turn == "draft" else (self.file(OPENINGS),)

    def file(self, name: str) -> str:
        """Where the round's file of this name is in the run."""
        return name if self.number == 1 else f"round-{self.number}/{name}"

    def stage(self, name: str) -> str:
        """What the round's stage of this name is called."""
        return in_round(name, self.number)

    def seed(self, *parts: str | int) -> tuple[str | int, ...]:
        """What the seeds of this round's calls follow from: another round asks anew."""
        return parts if self.number == 1 else (f"round {self.number}", *parts)
