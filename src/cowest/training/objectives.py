"""Objectives: what alignment learns from. Packages add others (entry points ``cowest.objectives``).

An objective names the round's files that it learns from, such as ``pairs.jsonl``, or ``drafts.jsonl`` and ``feedback.jsonl``
for one that needs no pairs; the align stage is stale when one of them has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cowest.errors import NothingToLearnError
from cowest.protocols import Reporter, Tracker
from cowest.recipe.config import AlignConfig
from cowest.recipe.registry import Registry
from cowest.run.store import JsonlFile
from cowest.types import Alignment, ModelRef, PreferencePair


class Objective(Protocol):
    """A way to tune the weak model further."""

    @property
    def name(self) -> str:
        """How a recipe calls it (``align.objective``)."""
        ...

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of the round's files that it learns from."""
        ...

    def train(
        self,
        policy: ModelRef,
        files: Mapping[str, Path],
        settings: AlignConfig,
        out: Path,
        seed: int,
        reporter: Reporter,
        tracker: Tracker,
    ) -> Alignment:
        """Tune ``policy`` into checkpoints below ``out``, resuming what was begun there; blocking, run in a thread.

        Raises NothingToLearnError where the files hold nothing to learn from (the run then goes on without alignment), StageError.
        """
        ...


Trainer = Callable[[ModelRef, Sequence[PreferencePair], AlignConfig, Path, int, Reporter, Tracker], Alignment]


@dataclass(frozen=True, slots=True)
class OnPairs:
    """An objective that learns from ``pairs.jsonl``; ``trainer`` imports what trains, which is heavy, when it is wanted."""

    name: str
    trainer: Callable[[], Trainer]
    reads: tuple[str, ...] = ("pairs.jsonl",)

    def train(
        self,
        policy: ModelRef,
        files: Mapping[str, Path],
        settings: AlignConfig,
        out: Path,
        seed: int,
        reporter: Reporter,
        tracker: Tracker,
    ) -> Alignment:
        """See Objective."""
        pairs = JsonlFile(files["pairs.jsonl"], PreferencePair).load()
        if not pairs:
            raise NothingToLearnError("there is no preference pair to learn from")
        return self.trainer()(policy, pairs, settings, out, seed, reporter, tracker)


def _preference() -> Trainer:
    from cowest.training.preference import train_preference

    return train_preference


def _positives() -> Trainer:
    from cowest.training.positives import train_positives

    return train_positives


PREFERENCE = OnPairs("preference", _preference)
"""DPO on the pairs (paper, step 6)."""
POSITIVES = OnPairs("positives", _positives)
"""SFT on the chosen drafts alone: the control that shows what the comparison with the rejected ones adds."""
OBJECTIVES: Registry[Objective] = Registry(
    "objective", "cowest.objectives", {o.name: o for o in (PREFERENCE, POSITIVES)}, ("name", "reads", "train")
)
