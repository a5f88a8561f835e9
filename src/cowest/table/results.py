"""A table's numbers: means with intervals, paired differences to the baseline (Holm-corrected), the best and its equals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal

from pydantic import ConfigDict, Field

from cowest.assembly.rows import Row
from cowest.errors import StageError
from cowest.scoring.statistics import Outcome, compare, holm, pool, summarise
from cowest.stages.evaluate import outcomes, test_queries
from cowest.table.plan import Plan
from cowest.table.row_stage import row_file
from cowest.table.run import Variant
from cowest.types import Comparison, MetricValue, Prediction, Record, Usage

ALPHA = 0.05


class Difference(Record):
    """A row minus the baseline. ``p_holm`` is corrected for all rows of this table and metric (Holm 1979)."""

    comparison: Comparison
    p_holm: float | None


class GridDifference(Record):
    """One row at one point of the grid minus itself at the first point, on the same queries; Holm over all of a task's."""

    task: str
    row: str
    label: str
    first: str
    comparison: Comparison
    p_holm: float | None


class RowResult(Record):
    """One row of one table.

    ``marks``: by metric, whether its mean is the best, or not significantly below it (paired test, Holm, alpha 0.05). ``usage``
    is what its answers took, those included that another row had paid for; per query it is divided by ``queries``.
    ``latency_s`` is the mean of a query, over those that were answered.
    """

    about: str
    metrics: dict[str, MetricValue]
    marks: dict[str, Literal["best", "tied", ""]]
    queries: int
    usage: Usage
    latency_s: float | None
    truncated: int
    truncated_context: int


class Table(Record):
    """The rows of one task at one point of the grid, pooled over the seeds."""

    task: str
    label: str
    metrics: tuple[str, ...]
    rows: dict[str, RowResult]
    differences: list[Difference]
    by_seed: dict[str, dict[str, float | None]] = Field(
        description="The main metric's mean of each row, by seed: how much worlds (or runs) differ."
    )


class TableResults(Record):
    """``results.json`` of a table (docs/results.md)."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: str
    baseline: str
    seeds: list[int]
    axis: str | None
    tables: list[Table]
    grid_differences: list[GridDifference] = Field(default_factory=list)
    left_out: dict[str, str]

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


def table_results(plan: Plan, opened: Sequence[Sequence[Variant]]) -> TableResults:
    """All tables of a finished plan. Raises StageError where a row's predictions are not there."""
    tables, along = list[Table](), list[GridDifference]()
    by_task: dict[str, list[tuple[int, Sequence[Variant]]]] = {}
    for unit, variants in zip(plan.units, opened, strict=True):
        by_task.setdefault(unit.task, []).append((unit.seed, variants))
    for task, units in by_task.items():
        found: dict[str, dict[str, list[Outcome]]] = {}
        for label in plan.labels:
            there = [(s, [v for v in vs if v.label == label]) for s, vs in units]
            table, found[label] = _table(plan, task, label, there)
            tables.append(table)
        context = units[0][1][0].context
        along += _along_the_grid(context.task.metrics[0], context.task.labels, tables[-1].task, found, plan.config.seed)
    return TableResults(
        name=plan.config.name,
        baseline=plan.baseline,
        seeds=list(plan.config.comparison.seeds or (plan.config.seed,)),
        axis=plan.config.comparison.axis,
        tables=tables,
        grid_differences=along,
        left_out=dict(plan.left_out),
    )


def _along_the_grid(
    metric: str, labels: Sequence[str], task: str, found: Mapping[str, Mapping[str, Sequence[Outcome]]], seed: int
) -> list[GridDifference]:
    first, *others = found
    made = [
        (row, label, _paired(metric, labels, label, first, {label: found[label][row], first: found[first][row]}, seed))
        for row in found[first]
        for label in others
    ]
    corrected = holm([c.p for _, _, c in made])
    return [
        GridDifference(task=task, row=row, label=label, first=first, comparison=c, p_holm=p)
        for (row, label, c), p in zip(made, corrected, strict=True)
    ]


def _table(
    plan: Plan, task: str, label: str, units: Sequence[tuple[int, Sequence[Variant]]]
) -> tuple[Table, dict[str, list[Outcome]]]:
    context = units[0][1][0].context
    metrics, labels, seed = context.task.metrics, context.task.labels, plan.config.seed
    found: dict[str, list[Outcome]] = {}
    answers: dict[str, list[Prediction]] = {}
    seeds: dict[str, dict[str, float | None]] = {}
    for row in plan.rows:
        by_seed = {str(s): _predictions(row, variants) for s, variants in units}
        answers[row.name] = [p for rows in by_seed.values() for p in rows]
        groups = {
            str(s): outcomes(vs[0].context, test_queries(vs[0].context), by_seed[str(s)]) for s, vs in units
        }  # fmt: skip
        found[row.name] = pool(groups)
        for key, rows in groups.items():
            seeds.setdefault(key, {})[row.name] = summarise(metrics[:1], labels, rows, seed)[metrics[0]].mean
    values = {name: summarise(metrics, labels, rows, seed) for name, rows in found.items()}
    marks = {metric: _marks(metric, labels, values, found, seed) for metric in metrics}
    about = {row.name: row.about for row in plan.rows}
    made = Table(
        task=task or context.task.name,
        label=label,
        metrics=metrics,
        rows={
            name: _row(about[name], values[name], {m: marks[m][name] for m in metrics}, answers[name]) for name in found
        },
        differences=[d for metric in metrics for d in _differences(metric, labels, plan.baseline, found, seed)],
        by_seed=seeds,
    )
    return made, found


def _predictions(row: Row, variants: Sequence[Variant]) -> list[Prediction]:
    variant = next(v for v in variants if row in v.rows)
    found = variant.context.run.file(row_file(row), Prediction).load()
    order = {e.id: i for i, e in enumerate(test_queries(variant.context))}
    if {p.example_id for p in found} != set(order):
        raise StageError(
            f"{variant.context.path(row_file(row))}: {len(found)} of {len(order)} answers are there; `cowest table` makes the rest"
        )
    return sorted(found, key=lambda p: order[p.example_id])


def _row(
    about: str,
    metrics: dict[str, MetricValue],
    marks: dict[str, Literal["best", "tied", ""]],
    answers: Sequence[Prediction],
) -> RowResult:
    answered = [p.latency_s for p in answers if p.error is None]
    return RowResult(
        about=about,
        metrics=metrics,
        marks=marks,
        queries=len(answers),
        usage=sum((p.usage for p in answers), Usage()),
        latency_s=fmean(answered) if answered else None,
        truncated=sum(p.truncated for p in answers),
        truncated_context=sum(p.truncated_context for p in answers),
    )


def _paired(
    metric: str, labels: Sequence[str], a: str, b: str, found: Mapping[str, Sequence[Outcome]], seed: int
) -> Comparison:
    """The exact test where there is one (right or wrong), else the paired bootstrap."""
    tests = compare(metric, labels, a, found[a], b, found[b], seed)
    return next((c for c in tests if c.test == "mcnemar_exact"), tests[0])


def _differences(
    metric: str, labels: Sequence[str], baseline: str, found: Mapping[str, Sequence[Outcome]], seed: int
) -> list[Difference]:
    made = [_paired(metric, labels, name, baseline, found, seed) for name in found if name != baseline]
    corrected = holm([c.p for c in made])
    return [Difference(comparison=c, p_holm=p) for c, p in zip(made, corrected, strict=True)]


def _marks(
    metric: str,
    labels: Sequence[str],
    values: Mapping[str, Mapping[str, MetricValue]],
    found: Mapping[str, Sequence[Outcome]],
    seed: int,
) -> dict[str, Literal["best", "tied", ""]]:
    means = {name: v[metric].mean for name, v in values.items()}
    known = {name: mean for name, mean in means.items() if mean is not None}
    marks: dict[str, Literal["best", "tied", ""]] = dict.fromkeys(means, "")
    if not known:
        return marks
    best = max(known, key=lambda name: known[name])
    marks[best] = "best"
    others = [name for name in known if name != best]
    made = [_paired(metric, labels, best, name, found, seed) for name in others]
    for name, p in zip(others, holm([c.p for c in made]), strict=True):
        if p is None or p >= ALPHA:
            marks[name] = "tied"
    return marks


def read_table(out: Path) -> TableResults:
    """``results.json`` of a table. Raises StageError where it is not there."""
    file = out / "results.json"
    if not file.exists():
        raise StageError(f"{file}: not there yet; `cowest table` writes it when all rows are done")
    return TableResults.model_validate_json(file.read_bytes())
