"""What a stage works with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cowest.assembly.build import model_path
from cowest.assembly.opened import OpenModels
from cowest.protocols import Frames, Reporter, Task
from cowest.recipe.config import LocalModelConfig, RunConfig
from cowest.run.store import RunDir
from cowest.run.weights import Weights, located, named
from cowest.types import ModelRef


@dataclass(frozen=True, slots=True)
class Context:
    """One task of a recipe, and all that its stages need. ``models`` are opened on first use and shared by all tasks.

    ``label`` names the task where a run has several ("medicine: "); it goes before what is reported and entered in the ledger.
    """

    label: str
    config: RunConfig
    task: Task
    frames: Frames
    run: RunDir
    reporter: Reporter
    models: OpenModels

    def path(self, name: str) -> Path:
        """A file or folder of the run."""
        return self.run.path / name

    @property
    def metric(self) -> str:
        """The metric behind scores and gains."""
        return self.config.feedback.metric or self.task.metrics[0]

    @property
    def base(self) -> ModelRef:
        """The weak model as it is before any training here, or as an endpoint knows it."""
        weak = self.config.weak
        if isinstance(weak, LocalModelConfig):
            return ModelRef(base=model_path(weak.model), adapter=weak.adapter)
        return ModelRef(base=weak.model)

    def named(self, ref: ModelRef) -> Weights:
        """How the run's files name weights."""
        return named(self.run, ref, {self.base.base: self.config.weak.model})

    def located(self, weights: Weights) -> ModelRef:
        """The weights that the run's files name. Raises DataError where they are gone, or are not those that were trained."""
        return located(self.run, weights, {self.config.weak.model: self.base.base})
