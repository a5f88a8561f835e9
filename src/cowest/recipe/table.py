"""The recipe's section ``table``: which systems are compared, over which seeds and settings."""

from __future__ import annotations

from pydantic import Field, JsonValue

from cowest.recipe.models import Section


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
    samples: int = Field(default=5, ge=2, description="Samples of self-consistency, and drafts of best_of_k.")
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
