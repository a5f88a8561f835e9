"""Objectives: what alignment learns from. Packages add others (entry points ``cowest.objectives``).

An objective names the round's files that it learns from, such as ``pairs.jsonl``, or ``drafts.jsonl`` and ``feedback.jsonl``
for one that needs no pairs; the align stage is stale when one of them has changed.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def _pairs(files: Mapping[str, Path]) -> list[PreferencePair]:
    pairs = JsonlFile(files["pairs.jsonl"], PreferencePair).load()
    if not pairs:
        raise NothingToLearnError("there is no preference pair to learn from")
    return pairs


@dataclass(frozen=True, slots=True)
class Preference:
    """DPO on the pairs (paper, step 6)."""

    name: str = "preference"
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
        """See :func:`cowest.training.preference.train_preference`."""
        pairs = _pairs(files)
        from cowest.training.preference import train_preference

        return train_preference(policy, pairs, settings, out, seed, reporter, tracker)


@dataclass(frozen=True, slots=True)
class Positives:
    """SFT on the chosen drafts alone: the control that shows what the comparison with the rejected ones adds."""

    name: str = "positives"
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
        """See :func:`cowest.training.positives.train_positives`."""
        pairs = _pairs(files)
        from cowest.training.positives import train_positives

        return train_positives(policy, pairs, settings, out, seed, reporter, tracker)


OBJECTIVES: Registry[Objective] = Registry(
    "objective", "cowest.objectives", {o.name: o for o in (Preference(), Positives())}, ("name", "reads", "train")
)
