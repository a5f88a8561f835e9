"""A lab world as a task: its domain, its questions, its answer format."""

from __future__ import annotations

from cowest.errors import ConfigError
from cowest.lab import lineage
from cowest.lab.domains import WORLD_DOMAINS
from cowest.lab.worlds import make_world
from cowest.recipe.config import LabTaskConfig
from cowest.tasks.base import CLASS_METRICS, OPEN_METRICS, SimpleTask, class_instruction, open_instruction


def lab_task(config: LabTaskConfig, seed: int) -> SimpleTask:
    """The task of a world; ``seed`` is used where the config sets none. Raises ConfigError for an impossible world."""
    settings = config if config.seed is not None else config.model_copy(update={"seed": seed})
    chained = config.domain == lineage.NAME
    try:
        splits = lineage.lineage_splits(settings) if chained else make_world(config.domain, settings).splits
    except ValueError as error:
        raise ConfigError(f"task {config.domain}: {error}") from None
    labels = () if chained else WORLD_DOMAINS[config.domain].labels
    return SimpleTask(
        name=config.domain,
        metrics=CLASS_METRICS if labels else OPEN_METRICS,
        labels=labels,
        instruction=class_instruction(labels) if labels else open_instruction(),
        splits=splits,
    )
