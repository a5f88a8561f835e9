"""All tasks of a table as one: each row's mean over the tasks, and its difference to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from cowest.results import Comparison, MetricValue
from cowest.scoring.statistics import holm
from cowest.scoring.stratified import TaskOutcomes, compare_over_tasks, mean_over_tasks
from cowest.types import Record

OVER_ALL: Final = "over all tasks"
"""What the pooled part is called where tables have their task's name."""


class PooledRow(Record):
    """One row over all tasks, each of which weighs the same (:mod:`cowest.scoring.stratified`).

    ``against``: less the baseline, None for the baseline itself; ``p_holm`` is corrected over the rows (Holm 1979). ``at_least``:
    the one-sided 95% lower bound of that difference, a fraction: the row is not worse by more than m where it is above -m.
    ``calls_per_query``: of its answers, the mean over the tasks. ``feedback_calls``: the different strong calls of all tasks and
    seeds behind the feedback that its weak model is aligned on; None where that is not known.
    """

    mean: MetricValue
    against: Comparison | None
    p_holm: float | None
    at_least: float | None
    calls_per_query: float
    feedback_calls: int | None


class PooledTable(Record):
    """The rows that all tasks have, at one point of the grid. ``metrics``: each task's main one, which is what is averaged.

    ``missing``: rows that some task does not have, with these tasks.
    """

    label: str
    metrics: dict[str, str]
    rows: dict[str, PooledRow]
    missing: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class TaskAnswers:
    """What a task's rows came to: outcomes, calls a query and calls of feedback, by row."""

    task: str
    outcomes: Mapping[str, TaskOutcomes]
    calls: Mapping[str, float]
    feedback: Mapping[str, int | None]


def pooled_table(label: str, tasks: Sequence[TaskAnswers], baseline: str, seed: int) -> PooledTable:
    """The rows of several tasks as one table; every task has the ``baseline``. Raises what its statistics raise."""
    names = list(dict.fromkeys(name for task in tasks for name in task.outcomes))
    missing = {name: tuple(t.task for t in tasks if name not in t.outcomes) for name in names}
    shared = [name for name in names if not missing[name]]
    by_row = {name: [task.outcomes[name] for task in tasks] for name in shared}
    found = {
        name: compare_over_tasks(name, by_row[name], baseline, by_row[baseline], seed)
        for name in shared
        if name != baseline
    }
    corrected = dict(zip(found, holm([f.comparison.p for f in found.values()]), strict=True))
    return PooledTable(
        label=label,
        metrics={task.task: task.outcomes[baseline].metric for task in tasks},
        rows={
            name: PooledRow(
                mean=mean_over_tasks(by_row[name], seed),
                against=found[name].comparison if name in found else None,
                p_holm=corrected.get(name),
                at_least=found[name].at_least if name in found else None,
                calls_per_query=fmean(task.calls[name] for task in tasks),
                feedback_calls=_sum([task.feedback[name] for task in tasks]),
            )
            for name in shared
        },
        missing={name: where for name, where in missing.items() if where},
    )


def _sum(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
