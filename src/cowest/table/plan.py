"""Which tables a recipe asks for: rows, units (a task with a seed), points of the grid; checked before anything is paid."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from cowest.assembly.objects import NOTHING, Objects
from cowest.errors import ConfigError
from cowest.recipe.config import RunConfig, with_settings
from cowest.recipe.problems import did_you_mean
from cowest.systems.registry import TABLE, VARIANTS, current_name, find_systems, possible
from cowest.systems.spec import SystemSpec


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
    """What ``cowest table`` does. ``left_out`` are rows that this recipe cannot have, with the reason.

    ``objects`` are what a script has handed over; its systems are among the rows.
    """

    config: RunConfig
    rows: tuple[SystemSpec, ...]
    units: tuple[Unit, ...]
    left_out: Mapping[str, str]
    objects: Objects = NOTHING

    @property
    def baseline(self) -> str:
        """The row that all others are compared with."""
        return current_name(self.config.comparison.baseline or self.rows[-1].name)

    @property
    def labels(self) -> Sequence[str]:
        """The points of the grid; one without a label where there is none."""
        return tuple(self.config.comparison.grid) or ("",)


def make_plan(config: RunConfig, objects: Objects = NOTHING) -> Plan:
    """Raises ConfigError for an unknown row, a baseline that is no row, a bad label, or a setting that does not exist."""
    table = config.comparison
    for name, settings in table.variants.items():
        if name in VARIANTS:
            raise ConfigError(f"table.variants.{name}: there is a variant of this name; call yours otherwise")
        _changed(config, "table.variants", name, settings)
    rows, left_out = possible(config, find_systems(table.rows, "table.rows", table.variants) or TABLE)
    if table.rows and left_out:
        name, why = next(iter(left_out.items()))
        raise ConfigError(f"table.rows: {name} is not possible here: {why}")
    rows = (*rows, *objects.systems)
    names = [row.name for row in rows]
    baseline = table.baseline or names[-1]
    if current_name(baseline) not in names:
        hint = did_you_mean(baseline, names) or f"there are: {', '.join(names)}"
        raise ConfigError(f"table.baseline: {baseline!r} is not among the rows; {hint}")
    if len(set(table.seeds)) < len(table.seeds):
        raise ConfigError("table.seeds: a seed is named twice")
    points = {label: _point(config, label, settings) for label, settings in (table.grid or {"": {}}).items()}
    units = []
    for task in config.by_task():
        for seed in table.seeds or (config.seed,):
            seeded = {label: point.by_task()[task].model_copy(update={"seed": seed}) for label, point in points.items()}
            units.append(Unit(task, seed, seeded))
    return Plan(config, rows, tuple(units), left_out, objects)


def _point(config: RunConfig, label: str, settings: Mapping[str, JsonValue]) -> RunConfig:
    return _changed(config, "table.grid", label, settings)


def _changed(config: RunConfig, where: str, label: str, settings: Mapping[str, JsonValue]) -> RunConfig:
    if label and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._ +-]*", label):
        raise ConfigError(f"{where}: the label {label!r} becomes a folder: use letters, digits, spaces and ._+-")
    for key in settings:
        if key.split(".")[0] in ("table", "name", "seed", "ledger", "task", "tasks") and not _keeps_the_questions(key):
            raise ConfigError(f"{where}.{label}: {key} cannot vary within a table; make a table of its own")
    try:
        return with_settings(config, settings)
    except ConfigError as error:
        raise ConfigError(f"{where}.{label}: {error}") from None


def _keeps_the_questions(key: str) -> bool:
    """Settings of a task that leave its questions and answers as they are, so that points of a grid can be compared."""
    parts = key.split(".")
    return parts[1 if parts[0] == "task" else 2 :][:1] in (["context_for"], ["documents"]) and parts[0] in (
        "task",
        "tasks",
    )


def table_folder(config: RunConfig) -> Path:
    """Where a recipe's table goes by default."""
    return Path("runs") / config.name
