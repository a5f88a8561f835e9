"""The sections of a recipe that describe a task: a lab world, your own files, a published benchmark, a plug-in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from cowest.recipe.models import Section, beside

ContextFor = Literal["both", "weak", "strong", "none"]
"""Who is shown the context of a query."""


class DocumentsConfig(Section):
    """Documents of your own: passages of them that fit the question become its context."""

    folder: Path | None = Field(
        default=None,
        description="Your .txt, .md and .jsonl files (rows with `text`, perhaps `title`), folders in it included. Relative paths "
        "start at the recipe's folder. Unset, with kind ifqa: its own published passages, of all splits together.",
    )
    retriever: Literal["bm25", "dense"] = Field(
        default="bm25", description="bm25: by words; dense: by the cosine of embeddings (the encoder below)."
    )
    passages: int = Field(default=3, ge=1, description="Passages a question, best first.")
    passage_chars: int = Field(
        default=800, ge=80, description="Longest passage: files are cut at ends of sentences. 800 are about 200 tokens."
    )
    embedder: str = Field(
        default="sentence-transformers/all-MiniLM-L6-v2",
        description="dense: any encoder on the hub or in a folder; its hidden states are mean-pooled.",
    )


class TaskSection(Section):
    """What every kind of task has."""

    context_for: ContextFor | None = Field(
        default=None,
        description="Who is shown a question's context (given, or retrieved from your documents): both models; weak: the one on "
        "your machine reads what must not be sent to the strong one's API; strong; none. Unset: both; ifqa has no context then, "
        "unless there are documents. What it protects: docs/tasks.md.",
    )
    documents: DocumentsConfig | None = Field(
        default=None, description="Look up each question's context in documents of your own."
    )

    collected: Path | None = Field(
        default=None,
        description="A file of `cowest collect`: its questions with right answers are added to training, and the preference pairs "
        "beside it (the same name, ending in .pairs.jsonl) to those of the run. Relative paths start at the recipe's folder.",
    )

    calibration: int = Field(
        default=0,
        ge=0,
        description="Training questions that are kept from all training, for `cowest guard` to learn and certify on: 450 or more. "
        "0: it has the validation questions by which no checkpoint was chosen.",
    )

    @model_validator(mode="after")
    def _documents_are_for_someone(self) -> Self:
        if self.documents is not None and self.context_for == "none":
            raise ValueError("documents are looked up for nobody: say context_for: weak, strong or both")
        return self

    @property
    def sight(self) -> ContextFor:
        """Who is shown the context, where there is one."""
        return self.context_for or "both"

    def resolved(self, folder: Path) -> Self:
        """See Section."""
        update: dict[str, object] = {}
        if self.collected is not None:
            update["collected"] = (folder / self.collected).resolve()
        if self.documents is not None and self.documents.folder is not None:
            found = {"folder": (folder / self.documents.folder).resolve()}
            update["documents"] = self.documents.model_copy(update=found)
        return self.model_copy(update=update) if update else self


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
    domain: Literal["counterfactuals", "medicine", "ethics", "lineage"]


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
    context: bool = Field(
        default=True, description="false is context_for: none, as older recipes say it: the abstract is not shown."
    )
    fold: int = Field(
        default=0, ge=0, le=9, description="Which of the ten official folds of training is for validation."
    )

    @model_validator(mode="after")
    def _one_sight(self) -> Self:
        if not self.context and self.context_for not in (None, "none"):
            raise ValueError(
                f"context: false and context_for: {self.context_for} contradict each other; leave context out"
            )
        return self


class ProsocialTaskConfig(BenchmarkTaskConfig):
    """ProsocialDialog (Kim et al. 2022): train.json, valid.json, test.json."""

    kind: Literal["prosocial"]
    hub: str | None = "allenai/prosocial-dialog"
    history: bool = Field(
        default=True, description="Show the dialogue's earlier turns beside the utterance to be judged."
    )
    split_seed: int = Field(
        default=0, ge=0, description="How labelled.jsonl, first utterances without published splits, is split."
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
