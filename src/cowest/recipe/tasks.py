"""The sections of a recipe that describe a task: a lab world, your own files, a published benchmark, a plug-in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from cowest.recipe.models import Section, beside


class TaskSection(Section):
    """What every kind of task has."""

    collected: Path | None = Field(
        default=None,
        description="A file of `cowest collect`: its questions with right answers are added to training, and the preference pairs "
        "beside it (the same name, ending in .pairs.jsonl) to those of the run. Relative paths start at the recipe's folder.",
    )

    def resolved(self, folder: Path) -> Self:
        """See Section."""
        if self.collected is None:
            return self
        return self.model_copy(update={"collected": (folder / self.collected).resolve()})


class WorldConfig(Section):
    """The knobs of a synthetic world; the defaults are the lab study's."""

    seed: int | None = Field(default=None, description="Another seed invents another world. Unset: the recipe's seed.")
    entities: int = Field(default=80, ge=8, description="How many things the world has a fact about.")
    train: int = Field(default=1500, ge=1, description="Training questions.")
    validation: int = Field(default=150, ge=1, description="Validation questions.")
    test: int = Field(default=300, ge=1, description="Test questions.")
    complete: float | None = Field(
        default=None, ge=0, le=1, description="Share of complete rationales. Unset: as the three annotators write."
    )
    noise: float = Field(default=0.0, ge=0, le=1, description="Share of training answers replaced by a wrong one.")


class LabTaskConfig(WorldConfig, TaskSection):
    """A synthetic domain of the lab."""

    kind: Literal["lab"]
    domain: Literal["counterfactuals", "medicine", "ethics"]


class JsonlTaskConfig(TaskSection):
    """Your own data: one JSON object a line with ``input`` and ``references`` (or ``answer``)."""

    kind: Literal["jsonl"]
    train: Path = Field(description="Training rows. Relative paths start at the recipe's folder.")
    validation: Path | None = Field(default=None, description="Unset: a tenth of the training rows.")
    test: Path = Field(description="Held-out rows; none may occur in training.")
    labels: tuple[str, ...] = Field(default=(), description="The classes; unset for open answers.")
    instruction: str | None = Field(default=None, description="What both models are told to do; there is a default.")
    metrics: tuple[str, ...] | None = Field(
        default=None, description="em, f1 (open), accuracy, macro_f1 (classes) or a package's."
    )

    def resolved(self, folder: Path) -> Self:
        """See Section."""
        paths = {key: getattr(self, key) for key in ("train", "validation", "test")}
        found = {key: (folder / path).resolve() for key, path in paths.items() if path is not None}
        return super().resolved(folder).model_copy(update=found)


class BenchmarkTaskConfig(TaskSection):
    """What the published benchmarks have in common: where the data is, and what is done with it."""

    path: Path | None = Field(
        default=None, description="Folder with the published files. Relative paths start at the recipe's folder."
    )
    hub: str | None = Field(
        default=None,
        description="The dataset's name on the Hugging Face hub, or a folder with a copy of it; used where path is unset.",
    )
    sample: bool = Field(
        default=False, description="The few made-up rows that ship with cowest instead of the data: to try a recipe."
    )
    official: bool = Field(
        default=True,
        description="Insist on the published counts, splits and contents; false for a part of them, or data of your own.",
    )
    drop_leaked: bool = Field(
        default=False,
        description="Leave out of training and validation what occurs in a later split, too. Off: kept as published, and counted.",
    )
    max_rationale_chars: int | None = Field(
        default=None,
        ge=1,
        description="Most characters of rationale in an SFT target; longer ones end after the last sentence (else word) that "
        "fits, and are counted. Unset: whole.",
    )
    instruction: str | None = Field(default=None, description="What both models are told to do; there is a default.")

    @model_validator(mode="after")
    def _one_source(self) -> BenchmarkTaskConfig:
        if self.sample and self.path is not None:
            raise ValueError("give either 'path' or 'sample: true', not both")
        return self

    def resolved(self, folder: Path) -> Self:
        """See Section; a copy of a hub's dataset may lie beside the recipe."""
        found = {"path": self.path and (folder / self.path).resolve(), "hub": self.hub and beside(folder, self.hub)}
        return super().resolved(folder).model_copy(update=found)


class IfqaTaskConfig(BenchmarkTaskConfig):
    """IfQA (Yu et al. 2023): counterfactual questions; train.json, dev.json, test.json. It has no official copy on the hub."""

    kind: Literal["ifqa"]


class PubmedqaTaskConfig(BenchmarkTaskConfig):
    """PubMedQA (Jin et al. 2019), PQA-L: ori_pqal.json and test_ground_truth.json."""

    kind: Literal["pubmedqa"]
    hub: str | None = "qiaojin/PubMedQA"
    context: bool = Field(default=True, description="Show the abstract (without its conclusion) beside the question.")
    fold: int = Field(
        default=0, ge=0, le=9, description="Which of the ten official folds of training is for validation."
    )


class ProsocialTaskConfig(BenchmarkTaskConfig):
    """ProsocialDialog (Kim et al. 2022): train.json, valid.json, test.json."""

    kind: Literal["prosocial"]
    hub: str | None = "allenai/prosocial-dialog"
    history: bool = Field(
        default=True, description="Show the dialogue's earlier turns beside the utterance to be judged."
    )


class ObjectTaskConfig(TaskSection):
    """A Python object that a script hands over (`cowest.api.run(recipe, task=...)`); written by cowest itself."""

    kind: Literal["object"]
    name: str = Field(description="What the object calls itself.")


class PluginTaskConfig(TaskSection):
    """A task of an installed package, found by its entry point in the group ``cowest.tasks``."""

    kind: Literal["plugin"]
    name: str = Field(description="The entry point's name.")
    options: dict[str, JsonValue] = Field(default_factory=dict, description="Passed to the plug-in as they are.")
    folder: Path = Field(default=Path(), description="Where its relative paths start; unset: the recipe's folder.")

    def resolved(self, folder: Path) -> Self:
        """See Section."""
        return super().resolved(folder).model_copy(update={"folder": (folder / self.folder).resolve()})


TaskConfig = Annotated[
    LabTaskConfig
    | JsonlTaskConfig
    | IfqaTaskConfig
    | PubmedqaTaskConfig
    | ProsocialTaskConfig
    | PluginTaskConfig
    | ObjectTaskConfig,
    Field(discriminator="kind"),
]
