"""What a stage works with."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from cowest.assembly.build import build_frames
from cowest.assembly.objects import NOTHING, Objects
from cowest.assembly.opened import OpenModels
from cowest.assembly.sources import Source
from cowest.collaboration.formats import FORMATS
from cowest.collaboration.sight import BlindScorer, hidden, sees
from cowest.collaboration.signals import SIGNALS
from cowest.errors import ModelNotFoundError
from cowest.protocols import DraftFormat, Frames, Reporter, Scorer, Signal, Task, Tracker
from cowest.recipe.config import RunConfig
from cowest.recipe.tasks import ContextFor
from cowest.run.progress import NOWHERE
from cowest.run.store import RunDir
from cowest.run.weights import Weights, located, named
from cowest.scoring.judge import JudgeScorer
from cowest.scoring.scorer import SCORERS, MetricScorer
from cowest.training.objectives import OBJECTIVES, Objective, OnlineObjective
from cowest.types import Example, ModelRef


@dataclass(frozen=True, slots=True)
class Context:
    """One task of a recipe, and all that its stages need. ``models`` are opened on first use and shared by all tasks.

    ``name`` is the task's, where a run has several; '' else.
    """

    name: str
    config: RunConfig
    task: Task
    frames: Frames
    run: RunDir
    reporter: Reporter
    models: OpenModels
    objects: Objects = NOTHING
    tracker: Tracker = NOWHERE
    has_turn: Collection[str] | None = None
    """In a context whose frames ask for the weak model's turn (``draft.turn``): the queries that come to it. None: all."""

    @property
    def label(self) -> str:
        """What goes before all that is reported of this task."""
        return f"{self.name}: " if self.name else ""

    def purpose(self, stage: str) -> str:
        """How the ledger enters what the calls of a stage were for."""
        return f"{self.label}{stage}"

    def path(self, name: str) -> Path:
        """A file or folder of the run."""
        return self.run.path / name

    @property
    def weak(self) -> Source:
        """The weak model, as it is known before it is opened."""
        return self.models.sources.weak

    @property
    def strong(self) -> Source:
        """The strong model, likewise."""
        return self.models.sources.strong

    @property
    def metric(self) -> str:
        """The metric behind scores and gains."""
        return self.config.feedback.metric or self.task.metrics[0]

    @property
    def format(self) -> DraftFormat:
        """What the weak model writes."""
        return self.objects.format or FORMATS.find(self.config.draft.format, "draft.format")

    @property
    def ways(self) -> tuple[tuple[DraftFormat, Frames], ...]:
        """Each format of drafts with the frames that ask for it: draft k of a query is written in the k-th, round robin."""
        names = self.config.draft.formats
        found = [FORMATS.find(name, "draft.formats") for name in names]
        return tuple((f, build_frames(self.config, self.task, f)) for f in found) or ((self.format, self.frames),)

    @property
    def signal(self) -> Signal:
        """What a draft is worth."""
        return self.objects.signal or SIGNALS.find(self.config.pairs.signal, "pairs.signal")

    @property
    def objective(self) -> Objective | OnlineObjective | None:
        """What alignment learns from; None where it is off."""
        name = self.config.align.objective
        return None if name == "off" else OBJECTIVES.find(name, "align.objective")

    def metric_scorer(self) -> Scorer:
        """The scorer by the task's metric, or the one that was named or handed over: no judge, so that it costs nothing."""
        if self.objects.scorer is not None:
            return self.objects.scorer
        named = self.config.feedback.scorer
        return MetricScorer(self.task, self.metric) if named is None else SCORERS.find(named, "feedback.scorer")

    @property
    def sight(self) -> ContextFor:
        """Who is shown the context of a question."""
        return "both" if self.config.task is None else self.config.task.sight

    def for_strong(self, example: Example) -> Example:
        """The question as the strong model, or a judge, may see it."""
        return example if sees("strong", self.sight) else hidden(example)

    def scorer(self) -> Scorer:
        """The evaluator E behind the gains: a judge where the recipe names one, which sees what the strong model sees."""
        if self.config.feedback.judge is None:
            return self.metric_scorer()
        judge = JudgeScorer(self.models.judge(), extract=self.task.extract)
        return judge if sees("strong", self.sight) else BlindScorer(judge)

    def judged(self, examples: Sequence[Example]) -> bool:
        """Whether answers to these questions are compared by judges: it says so in the recipe, and not all have a reference."""
        return bool(self.config.feedback.compare) and not all(e.references for e in examples)

    def named(self, ref: ModelRef) -> Weights:
        """How the run's files name weights."""
        return named(self.run, ref, {self.weak.base().base: self.config.weak.model})

    def located(self, weights: Weights) -> ModelRef:
        """The weights that the run's files name. Raises DataError where they are gone, or are not those that were trained."""
        try:
            base = self.weak.base().base
        except ModelNotFoundError:  # weights that were trained as a whole do not need it
            return located(self.run, weights)
        return located(self.run, weights, {self.config.weak.model: base, base: base})
