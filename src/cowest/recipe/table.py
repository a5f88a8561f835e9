"""The recipe's section ``table``: which systems are compared, over which seeds and settings."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, JsonValue, field_validator

from cowest.recipe.models import ModelConfig, Section
from cowest.types import Sampling


class GepaConfig(Section):
    """The rows whose prompt the library gepa has optimised on training queries. docs/prompt-optimisation.md."""

    calls: int | None = Field(
        default=None,
        ge=16,
        description="Calls that a row's prompt may take, answers and reflections together; unset: as many as the feedback behind "
        "the alignment took (or may take, where none is made).",
    )
    model: ModelConfig | None = Field(
        default=None, description="The model that reads mistakes and proposes another prompt; unset: the strong model."
    )
    sampling: Sampling = Field(
        default=Sampling(temperature=1.0, max_tokens=1024), description="How a proposal is sampled."
    )


class TableConfig(Section):
    """``cowest table``: one row a system; ``cowest table --list`` prints them."""

    rows: tuple[str, ...] = Field(
        default=(), description="The rows, in this order; unset: all that the recipe can have."
    )
    baseline: str | None = Field(
        default=None, description="The row that all others are compared with; unset: the last one, CoWest itself."
    )
    seeds: tuple[int, ...] = Field(
        default=(), description="The whole table once for each seed, pooled over queries; unset: the recipe's seed."
    )
    axis: str | None = Field(default=None, description="What the grid varies, as the plot's axis calls it.")
    grid: dict[str, dict[str, JsonValue]] = Field(
        default_factory=dict,
        description="The table once for each label, with these settings (by dotted key) in place of the recipe's: an ablation.",
    )
    variants: dict[str, dict[str, JsonValue]] = Field(
        default_factory=dict,
        description="Settings by name (dotted keys) for rows of their own: collab_aligned@NAME is collab_aligned with these in "
        "place of the recipe's. Unlike the points of a grid all are rows of one table, and compared query by query.",
    )
    shots: int = Field(default=4, ge=1, description="In-context examples of the few-shot rows and SuperICL.")
    samples: int = Field(
        default=5, ge=2, description="Samples of self-consistency, and drafts of best_of_k and collab_drafts."
    )
    questions: int = Field(
        default=2, ge=1, description="Most questions that the strong model puts to the weak one in collab_consult."
    )
    specialists: dict[str, ModelConfig] = Field(
        default_factory=dict,
        description="Weak models by name that draft beside the recipe's own in collab_specialists, as they are: they are not "
        "trained here. The strong model is told the names.",
    )
    gepa: GepaConfig = GepaConfig()
    temperature: float = Field(default=0.7, gt=0, description="Of self-consistency's samples.")
    passages: int = Field(default=3, ge=1, description="Passages that a retrieval row shows.")
    embedder: str = Field(
        default="sentence-transformers/all-MiniLM-L6-v2",
        description="The dense row's encoder: any model on the hub or in a folder; its hidden states are mean-pooled.",
    )
    flare_threshold: float = Field(
        default=0.4,
        gt=0,
        le=1,
        description="FLARE looks something up for a sentence with a token less likely than this.",
    )
    flare_rounds: int = Field(default=3, ge=1, description="Most look-ups of FLARE for one query.")

    @field_validator("specialists")
    @classmethod
    def _names(cls, specialists: dict[str, ModelConfig]) -> dict[str, ModelConfig]:
        for name in specialists:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,39}", name):
                raise ValueError(f"{name!r} goes into the prompt: use up to 40 letters, digits, spaces, '-' and '_'")
        return specialists

    def resolved(self, folder: Path) -> TableConfig:
        """With the paths of its models from ``folder``."""
        found = {name: model.resolved(folder) for name, model in self.specialists.items()}
        reflects = None if self.gepa.model is None else self.gepa.model.resolved(folder)
        gepa = self.gepa.model_copy(update={"model": reflects})
        return self.model_copy(update={"specialists": found, "gepa": gepa})
