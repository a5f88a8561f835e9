"""Objectives: what alignment learns from. Packages add others (entry points ``cowest.objectives``).

An objective names the round's files that it learns from, such as ``pairs.jsonl``, or ``drafts.jsonl`` and ``feedback.jsonl``
for one that needs no pairs; the align stage is stale when one of them has changed. An *online* one (:class:`OnlineObjective`)
learns from no file: it draws drafts while it trains, and is told what each is worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, Literal, Protocol, TypeVar, cast

from cowest.errors import NothingToLearnError
from cowest.protocols import Reporter, Tracker
from cowest.recipe.config import AlignConfig
from cowest.recipe.registry import Registry
from cowest.run.store import JsonlFile
from cowest.types import Alignment, Completion, LabelledDraft, Message, ModelRef, PreferencePair, Record, Sampling


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


class Reward(Protocol):
    """What drafts are worth: one value for each, in their order; None where it cannot be told, which is no 0."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[Completion], example_ids: Sequence[str]
    ) -> list[float | None]:
        """Blocking; called from the thread that trains. ``prompts`` are texts as the model was asked.

        Raises what ends the training: BudgetExceededError, StageError.
        """
        ...


class Query(Record):
    """What a draft is asked for with."""

    example_id: str
    prompt: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Practice:
    """What an online objective trains on: queries, how a draft of one is drawn, and what it is worth."""

    queries: Sequence[Query]
    sampling: Sampling
    reward: Reward


class OnlineObjective(Protocol):
    """A way to tune the weak model on drafts that are drawn, and rewarded, while it trains."""

    online: Literal[True]

    @property
    def name(self) -> str:
        """How a recipe calls it (``align.objective``)."""
        ...

    @property
    def reads(self) -> tuple[str, ...]:
        """None of the round's files."""
        ...

    def train(
        self,
        policy: ModelRef,
        practice: Practice,
        settings: AlignConfig,
        out: Path,
        seed: int,
        reporter: Reporter,
        tracker: Tracker,
    ) -> Alignment:
        """As :meth:`Objective.train`, which it draws from again when it is resumed: equal drafts, so that none is paid for twice.

        Raises NothingToLearnError where no draft was worth more or less than another, and what the reward raises.
        """
        ...


def drafts_drawn(settings: AlignConfig, queries: int) -> int:
    """How many drafts an online training of so many queries draws in all."""
    return online_steps(settings, queries) * settings.batch_size * settings.gradient_accumulation * settings.group


def online_steps(settings: AlignConfig, queries: int) -> int:
    """Its optimizer steps: every one full."""
    rows = settings.batch_size * settings.gradient_accumulation
    return settings.max_steps or max(1, math.ceil(queries * settings.epochs / rows))


def as_online(objective: Objective | OnlineObjective | None) -> OnlineObjective | None:
    """The objective, where it learns from rewards and not from files."""
    return cast(OnlineObjective, objective) if getattr(objective, "online", False) else None


R = TypeVar("R", bound=Record)
Trainer = Callable[[ModelRef, Sequence[R], AlignConfig, Path, int, Reporter, Tracker], Alignment]
PAIRS: Final = "pairs.jsonl"
LABELS: Final = "labels.jsonl"
"""Drafts by themselves, each with a label: written by the stage ``pairs`` where the objective reads it."""


@dataclass(frozen=True, slots=True)
class OnRecords(Generic[R]):
    """An objective that learns from the records of one file; ``trainer`` imports what trains, which is heavy, when it is wanted."""

    name: str
    file: str
    record: type[R]
    missing: str
    trainer: Callable[[], Trainer[R]]

    @property
    def reads(self) -> tuple[str, ...]:
        """See Objective."""
        return (self.file,)

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
        records = JsonlFile(files[self.file], self.record).load()
        if not records:
            raise NothingToLearnError(self.missing)
        return self.trainer()(policy, records, settings, out, seed, reporter, tracker)


class Grpo:
    """GRPO on the score of the collaboration, or on another signal (``training/grpo.py``)."""

    name = "grpo"
    online: Literal[True] = True
    reads: tuple[str, ...] = ()

    def train(
        self,
        policy: ModelRef,
        practice: Practice,
        settings: AlignConfig,
        out: Path,
        seed: int,
        reporter: Reporter,
        tracker: Tracker,
    ) -> Alignment:
        """See OnlineObjective."""
        from cowest.training.grpo import train_grpo

        return train_grpo(policy, practice, settings, out, seed, reporter, tracker)


def _preference() -> Trainer[PreferencePair]:
    from cowest.training.preference import train_preference

    return train_preference


def _positives() -> Trainer[PreferencePair]:
    from cowest.training.positives import train_positives

    return train_positives


def _kto() -> Trainer[LabelledDraft]:
    from cowest.training.kto import train_kto

    return train_kto


def _rejection() -> Trainer[LabelledDraft]:
    from cowest.training.positives import train_rejection

    return train_rejection


_NO_PAIR, _NO_LABEL = "there is no preference pair to learn from", "no draft is worth more or less than its baseline"
PREFERENCE = OnRecords("preference", PAIRS, PreferencePair, _NO_PAIR, _preference)
"""DPO on the pairs (paper, step 6)."""
POSITIVES = OnRecords("positives", PAIRS, PreferencePair, _NO_PAIR, _positives)
"""SFT on the chosen drafts alone: the control that shows what the comparison with the rejected ones adds."""
KTO = OnRecords("kto", LABELS, LabelledDraft, _NO_LABEL, _kto)
"""Single drafts with their worth; no pair is needed."""
REJECTION = OnRecords("rejection", LABELS, LabelledDraft, _NO_LABEL, _rejection)
"""SFT on the best draft of each query."""
GRPO = Grpo()
"""Drafts that are drawn while it trains, each with what the strong model makes of it."""
OBJECTIVES: Registry[Objective | OnlineObjective] = Registry(
    "objective",
    "cowest.objectives",
    {o.name: o for o in (PREFERENCE, POSITIVES, KTO, REJECTION, GRPO)},
    ("name", "reads", "train"),
)
