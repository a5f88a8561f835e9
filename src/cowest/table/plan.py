"""Which tables a recipe asks for: rows, units (a task with a seed), points of the grid; checked before anything is paid."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pydantic import JsonValue

from cowest.assembly.rows import RETRIEVING, Row, find_rows
from cowest.errors import ConfigError, MissingExtraError
from cowest.protocols import Task
from cowest.recipe.config import LocalModelConfig, RunConfig, with_settings
from cowest.recipe.problems import did_you_mean


@dataclass(frozen=True, slots=True)
class Unit:
    """One task with one seed: what is trained and asked once for all of its rows. ``points`` are the grid's recipes by label."""

    task: str
    seed: int
    points: Mapping[str, RunConfig]

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.task}-{self.seed}" if self.task else f"seed-{self.seed}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What ``cowest table`` does. ``left_out`` are rows that this recipe cannot have, with the reason."""

    config: RunConfig
    rows: tuple[Row, ...]
    units: tuple[Unit, ...]
    left_out: Mapping[str, str]

    @property
    def baseline(self) -> str:
        """The row that all others are compared with."""
        return self.config.comparison.baseline or self.rows[-1].name

    @property
    def labels(self) -> Sequence[str]:
        """The points of the grid; one without a label where there is none."""
        return tuple(self.config.comparison.grid) or ("",)


def make_plan(config: RunConfig) -> Plan:
    """Raises ConfigError for an unknown row, a baseline that is no row, a bad label, or a setting that does not exist."""
    table = config.comparison
    rows, left_out = _possible(config, find_rows(table.rows), asked=bool(table.rows))
    names = [row.name for row in rows]
    baseline = table.baseline or names[-1]
    if baseline not in names:
        hint = did_you_mean(baseline, names) or f"there are: {', '.join(names)}"
        raise ConfigError(f"table.baseline: {baseline!r} is not among the rows; {hint}")
    if len(set(table.seeds)) < len(table.seeds):
        raise ConfigError("table.seeds: a seed is named twice")
    if RETRIEVING & set(names) and find_spec("bm25s") is None:
        raise MissingExtraError(
            "the retrieval rows need bm25s: pip install 'cowest[retrieval]', or leave them out of table.rows"
        )
    points = {label: _point(config, label, settings) for label, settings in (table.grid or {"": {}}).items()}
    units = []
    for task in config.by_task():
        for seed in table.seeds or (config.seed,):
            seeded = {label: point.by_task()[task].model_copy(update={"seed": seed}) for label, point in points.items()}
            units.append(Unit(task, seed, seeded))
    return Plan(config, rows, tuple(units), left_out)


def _point(config: RunConfig, label: str, settings: Mapping[str, JsonValue]) -> RunConfig:
    if label and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._ +-]*", label):
        raise ConfigError(f"table.grid: the label {label!r} becomes a folder: use letters, digits, spaces and ._+-")
    for key in settings:
        if key.split(".")[0] in ("table", "name", "seed", "ledger", "task", "tasks"):
            raise ConfigError(f"table.grid.{label}: {key} cannot vary within a table; make a table of its own")
    try:
        return with_settings(config, settings)
    except ConfigError as error:
        raise ConfigError(f"table.grid.{label}: {error}") from None


def _possible(config: RunConfig, rows: Sequence[Row], asked: bool) -> tuple[tuple[Row, ...], dict[str, str]]:
    """The rows without those that the recipe cannot have. Raises ConfigError where the recipe itself names such a one."""
    kept, left_out = list[Row](), dict[str, str]()
    for row in rows:
        if row.needs == "align" and not isinstance(config.weak, LocalModelConfig):
            left_out[row.name] = "it trains the weak model, which is served elsewhere (weak.kind: openai)"
        else:
            kept.append(row)
    if asked and left_out:
        name, why = next(iter(left_out.items()))
        raise ConfigError(f"table.rows: {name} is not possible here: {why}")
    return tuple(kept), left_out


def check_data(row: Row, task: Task) -> None:
    """Raise ConfigError where a row needs what the training data does not have."""
    if row.variant == "knowledge" and not any(e.rationale for e in task.examples("train")):
        raise ConfigError(
            f"table.rows: {row.name} drafts knowledge, and no training row of {task.name} has a rationale to learn it from; "
            "leave the row out"
        )


def table_folder(config: RunConfig) -> Path:
    """Where a recipe's table goes by default."""
    return Path("runs") / config.name
