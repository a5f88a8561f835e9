"""A table's numbers: means with intervals, paired differences to the baseline (Holm-corrected), the best and its equals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

from cowest.assembly.context import Context
from cowest.collaboration.guard.evidence import Answered
from cowest.errors import StageError
from cowest.results import Comparison, MetricValue, Uptake
from cowest.scoring.statistics import Outcome, compare, holm, pool, summarise
from cowest.scoring.stratified import TaskOutcomes, compare_over_tasks
from cowest.scoring.uptake import Case
from cowest.stages.answers import cases_of, uptake
from cowest.stages.evaluate import not_aligned, outcomes, test_queries
from cowest.stages.guard import CALIBRATED
from cowest.stages.loop import feedback_calls
from cowest.systems.optimised import optimised_in
from cowest.systems.registry import STRONG, current_name
from cowest.systems.spec import SystemSpec
from cowest.table.claims import TableClaim, judge_claims
from cowest.table.plan import Plan
from cowest.table.pooled import OVER_ALL, PooledTable, TaskAnswers, pooled_table
from cowest.table.row_stage import row_file
from cowest.table.run import Variant, trained_for
from cowest.types import Prediction, Record, Usage

ALPHA = 0.05
RowName = Annotated[str, AfterValidator(current_name)]
"""A system's name; older results may have another one for it."""


def _renamed(comparison: Comparison) -> Comparison:
    return comparison.model_copy(update={"a": current_name(comparison.a), "b": current_name(comparison.b)})


class Difference(Record):
    """A row minus the baseline. ``p_holm`` is corrected for all rows of this table and metric (Holm 1979)."""

    comparison: Annotated[Comparison, AfterValidator(_renamed)]
    p_holm: float | None


class GridDifference(Record):
    """One row at one point of the grid minus itself at the first point, on the same queries; Holm over all of a task's."""

    task: str
    row: RowName
    label: str
    first: str
    comparison: Comparison
    p_holm: float | None


class RowResult(Record):
    """One row of one table.

    ``marks``: by metric, whether its mean is the best, or not significantly below it (paired test, Holm, alpha 0.05). ``usage``
    is what its answers took, those included that another row had paid for; per query it is divided by ``queries``.
    ``latency_s`` is the mean of a query, over those that were answered. ``truncated`` answers were cut off at max_tokens; those
    of them without an answer are ``n_cut`` of the metrics. ``uptake`` is against the row ``strong``, where the table has it.
    ``feedback_calls``: the different strong calls behind the feedback that its weak model is aligned on, those that calibrated its
    guard, and those (reflections included) that its prompt was optimised with, of all seeds; 0 for a row without, None in older
    results.
    """

    about: str
    metrics: dict[str, MetricValue]
    marks: dict[str, Literal["best", "tied", ""]]
    queries: int
    usage: Usage
    latency_s: float | None
    truncated: int
    truncated_context: int
    uptake: Uptake | None = None
    feedback_calls: int | None = None


class Table(Record):
    """The rows of one task at one point of the grid, pooled over the seeds."""

    task: str
    label: str
    metrics: tuple[str, ...]
    rows: dict[RowName, RowResult]
    differences: list[Difference]
    by_seed: dict[str, dict[RowName, float | None]] = Field(
        description="The main metric's mean of each row, by seed: how much worlds (or runs) differ."
    )


class TableResults(Record):
    """``results.json`` of a table (docs/results.md)."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: str
    baseline: RowName
    seeds: list[int]
    axis: str | None
    tables: list[Table]
    pooled: list[PooledTable] = Field(
        default_factory=list, description="Over all tasks, for each point of the grid; empty where there is one task."
    )
    claims: list[TableClaim] = Field(
        default_factory=list, description="The paper's, in each task and over all, where the table has their rows."
    )
    grid_differences: list[GridDifference] = Field(default_factory=list)
    left_out: dict[RowName, str]
    warnings: list[str] = Field(
        default_factory=list, description="What stages noticed of their own records, each once."
    )

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


@dataclass(frozen=True, slots=True)
class Pool:
    """All answers to one task's queries at one point of the grid: by row, then by seed.

    ``left_out`` are rows that it does not have, with the reason: for one of the seeds, or for all, nothing could be aligned.
    """

    task: str
    label: str
    context: Context
    answers: Mapping[str, Mapping[str, Sequence[Prediction]]]
    outcomes: Mapping[str, Mapping[str, list[Outcome]]]
    left_out: Mapping[str, str] = field(default_factory=dict)
    cases: Mapping[str, Sequence[Case]] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    feedback_calls: Mapping[str, int] = field(default_factory=dict)

    @property
    def pooled(self) -> dict[str, list[Outcome]]:
        """The outcomes of each row over the seeds."""
        return {row: pool(by_seed) for row, by_seed in self.outcomes.items()}


def pools(plan: Plan, opened: Sequence[Sequence[Variant]]) -> list[Pool]:
    """A finished plan's answers, task by task. Raises StageError where a row's predictions are not there."""
    by_task: dict[str, list[tuple[str, Sequence[Variant]]]] = {}
    for unit, variants in zip(plan.units, opened, strict=True):
        by_task.setdefault(unit.task, []).append((str(unit.seed), variants))
    return [_pool(plan, task, label, units) for task, units in by_task.items() for label in plan.labels]


def _pool(plan: Plan, task: str, label: str, units: Sequence[tuple[str, Sequence[Variant]]]) -> Pool:
    there = {seed: [v for v in variants if v.label == label] for seed, variants in units}
    contexts = {seed: variants[0].context for seed, variants in there.items()}
    left_out = {row.name: why for row in plan.rows if (why := _left_out(row, there))}
    rows = [row for row in plan.rows if row.name not in left_out]
    answers = {row.name: {seed: _predictions(row, variants) for seed, variants in there.items()} for row in rows}
    found = {
        row: {seed: outcomes(contexts[seed], test_queries(contexts[seed]), made) for seed, made in by_seed.items()}
        for row, by_seed in answers.items()
    }
    context = next(iter(contexts.values()))
    cases = {row: _cases(contexts, made, found[row], found.get(STRONG.name, {})) for row, made in answers.items()}
    warnings = [text for variants in there.values() for variant in variants for text in _warnings(variant)]
    asked = {row.name: sum(_feedback_calls(row, variants) for variants in there.values()) for row in rows}
    return Pool(task or context.task.name, label, context, answers, found, left_out, cases, warnings, asked)


def _feedback_calls(row: SystemSpec, variants: Sequence[Variant]) -> int:
    """The calls before a row's first answer: see :class:`RowResult`."""
    context = _variant(row, variants).context
    calibrated = optimised_in(context.run.path, row.name).calls if row.optimises else 0
    if row.needs == "guard":
        rows = context.run.file(CALIBRATED, Answered).load()
        calibrated = sum(arm != "weak" for answered in rows for arm in answered.scores)
    return calibrated + (feedback_calls(context) if trained_for(row, context) == "align" else 0)


def _warnings(variant: Variant) -> list[str]:
    """What the stages of a variant have said of their own records."""
    context = variant.context
    stages = context.run.manifest().stages
    return [f"{context.label}{stage}: {text}" for stage, entry in stages.items() for text in entry.warnings]


def _cases(
    contexts: Mapping[str, Context],
    answers: Mapping[str, Sequence[Prediction]],
    found: Mapping[str, list[Outcome]],
    alone: Mapping[str, list[Outcome]],
) -> list[Case]:
    """A row's queries with drafts, pooled over the seeds."""
    made = []
    for seed, context in contexts.items():
        cases = cases_of(context.task, test_queries(context), answers[seed], found[seed], alone.get(seed))
        for case in cases:
            (final,) = pool({seed: [case.final]})
            made.append(replace(case, final=final))
    return made


def _left_out(row: SystemSpec, there: Mapping[str, Sequence[Variant]]) -> str | None:
    """Why a row has no answers with some of the seeds."""
    for seed, variants in there.items():
        why = not_aligned(_variant(row, variants).context, row)
        if why is not None:
            return f"with seed {seed} {why}" if len(there) > 1 else why
    return None


def results_of(plan: Plan, found: Sequence[Pool]) -> TableResults:
    """All tables of a plan, from the answers that :func:`pools` has read."""
    by_task, by_label = dict[str, dict[str, Pool]](), dict[str, list[Pool]]()
    for one in found:
        by_label.setdefault(one.label, []).append(one)
        by_task.setdefault(one.task, {})[one.label] = one
    baseline = _baseline(plan, found)
    return TableResults(
        name=plan.config.name,
        baseline=baseline,
        seeds=list(plan.config.comparison.seeds or (plan.config.seed,)),
        axis=plan.config.comparison.axis,
        tables=[_table(plan, one, baseline) for one in found],
        pooled=[_over_tasks(points, baseline, plan.config.seed) for points in by_label.values() if len(points) > 1],
        claims=[c for points in by_label.values() for c in _claims(points, baseline, plan.config.seed)],
        grid_differences=[d for points in by_task.values() for d in _along_the_grid(points, plan.config.seed)],
        left_out={**plan.left_out, **_all_left_out(found)},
        warnings=list(dict.fromkeys(text for one in found for text in one.warnings)),
    )


def _baseline(plan: Plan, found: Sequence[Pool]) -> str:
    """The plan's, or where a table does not have it the last row that all have. Raises StageError where no row is left."""
    everywhere = [row.name for row in plan.rows if all(row.name in one.outcomes for one in found)]
    if not everywhere:
        told = "; ".join(f"{name}: {why}" for name, why in _all_left_out(found).items())
        raise StageError(f"no row is left for the table: {told}")
    return plan.baseline if plan.baseline in everywhere else everywhere[-1]


def _all_left_out(found: Sequence[Pool]) -> dict[str, str]:
    """The rows that some table does not have, with where and why."""
    said: dict[str, list[str]] = {}
    for one in found:
        where = f"in {one.task}{f', {one.label}' if one.label else ''} " if len(found) > 1 else ""
        for name, why in one.left_out.items():
            said.setdefault(name, []).append(where + why)
    return {name: "; ".join(reasons) for name, reasons in said.items()}


def by_seed(one: Pool) -> dict[str, TaskOutcomes]:
    """The rows of a task as they are pooled over tasks: by its main metric."""
    task = one.context.task
    return {row: TaskOutcomes(task.metrics[0], task.labels, outcomes) for row, outcomes in one.outcomes.items()}


def _over_tasks(points: Sequence[Pool], baseline: str, seed: int) -> PooledTable:
    """The tasks of one point of the grid."""
    tasks = []
    for one in points:
        answers = {row: [p for made in seeds.values() for p in made] for row, seeds in one.answers.items()}
        calls = {row: sum(p.usage.calls for p in made) / max(1, len(made)) for row, made in answers.items()}
        feedback = {row: one.feedback_calls.get(row) for row in answers}
        tasks.append(TaskAnswers(one.task, by_seed(one), calls, feedback))
    return pooled_table(points[0].label, tasks, baseline, seed)


def _claims(points: Sequence[Pool], baseline: str, seed: int) -> Iterator[TableClaim]:
    """The paper's claims in the tasks of one point of the grid, and over all of them."""
    tasks = [by_seed(one) for one in points]

    def over_all(a: str, b: str) -> Comparison:
        mine, theirs = ([task[row] for task in tasks] for row in (a, b))
        return compare_over_tasks(a, mine, b, theirs, seed).comparison

    for one in points:
        task, found = one.context.task, one.pooled
        paired = partial(_paired, task.metrics[0], task.labels, found=found, seed=seed)
        yield from judge_claims(one.task, one.label, found, baseline, paired)
    if len(points) > 1:
        everywhere = [row for row in tasks[0] if all(row in task for task in tasks)]
        yield from judge_claims(OVER_ALL, points[0].label, everywhere, baseline, over_all)


def _along_the_grid(points: Mapping[str, Pool], seed: int) -> list[GridDifference]:
    first, *others = points
    start = points[first]
    metric, labels, found = start.context.task.metrics[0], start.context.task.labels, start.pooled
    there = {label: points[label].pooled for label in others}
    made = [
        (row, label, _paired(metric, labels, label, first, {label: there[label][row], first: found[row]}, seed))
        for row in found
        for label in others
        if row in there[label]
    ]
    corrected = holm([c.p for _, _, c in made])
    return [
        GridDifference(task=start.task, row=row, label=label, first=first, comparison=c, p_holm=p)
        for (row, label, c), p in zip(made, corrected, strict=True)
    ]


def _table(plan: Plan, one: Pool, baseline: str) -> Table:
    task, seed, found = one.context.task, plan.config.seed, one.pooled
    metrics, labels, about = task.metrics, task.labels, {row.name: row.about for row in plan.rows}
    values = {name: summarise(metrics, labels, rows, seed) for name, rows in found.items()}
    marks = {metric: _marks(metric, labels, values, found, seed) for metric in metrics}
    means: dict[str, dict[str, float | None]] = {}
    for name, groups in one.outcomes.items():
        for key, rows in groups.items():
            means.setdefault(key, {})[name] = summarise(metrics[:1], labels, rows, seed)[metrics[0]].mean
    return Table(
        task=one.task,
        label=one.label,
        metrics=metrics,
        rows={
            name: _row(
                about[name],
                values[name],
                {m: marks[m][name] for m in metrics},
                [p for made in one.answers[name].values() for p in made],
                uptake(task, one.cases.get(name, ()), seed, name),
                one.feedback_calls.get(name),
            )
            for name in found
        },
        differences=[d for metric in metrics for d in _differences(metric, labels, baseline, found, seed)],
        by_seed=means,
    )


def _variant(row: SystemSpec, variants: Sequence[Variant]) -> Variant:
    return next(v for v in variants if row in v.rows)


def _predictions(row: SystemSpec, variants: Sequence[Variant]) -> list[Prediction]:
    variant = _variant(row, variants)
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
    drafts: Uptake | None,
    feedback_calls: int | None,
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
        uptake=drafts,
        feedback_calls=feedback_calls,
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
