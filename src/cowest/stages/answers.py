"""Systems answer queries, and what that comes to: shared by the stage ``evaluate``, tables and scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

from cowest.errors import DataError
from cowest.protocols import Reporter, System, Task
from cowest.results import Comparison, Results, StageResult, SystemResult, Uptake
from cowest.run.store import JsonlFile
from cowest.scoring.metrics import get_metric
from cowest.scoring.statistics import Outcome, compare, summarise
from cowest.scoring.uptake import Case, right_by, uptake_of
from cowest.stages.base import fill
from cowest.systems.registry import STRONG
from cowest.types import Example, Prediction, Usage


def outcomes_of(task: Task, queries: Sequence[Example], predictions: Sequence[Prediction]) -> list[Outcome]:
    """A system's extracted answers. A failed call is ``failed``, one without an answer that was cut off ``cut``.

    A whole text without an answer is merely wrong.
    """
    found = []
    for e, p in zip(queries, predictions, strict=True):
        answer = None if p.text is None else task.extract(p.text, e)
        cut = p.truncated and answer is None
        failed = p.text is None and not cut
        found.append(Outcome(example_id=e.id, answer=answer, references=e.references, failed=failed, cut=cut))
    return found


def marked(task: Task, example: Example, prediction: Prediction) -> Prediction:
    """A prediction with what was read out of it, its score and what is right, for whoever reads the file.

    No score where the call failed, the answer was cut off before it came, or there is no reference.
    """
    (found,) = outcomes_of(task, [example], [prediction])
    value = next((metric.per_query for name in task.metrics if (metric := get_metric(name)).per_query), None)
    scored = value is not None and example.references and not found.failed and not found.cut
    return prediction.model_copy(
        update={
            "answer": found.answer,
            "references": example.references or None,
            "score": value(found.answer, example.references) if scored and value is not None else None,
        }
    )


def cases_of(
    task: Task,
    queries: Sequence[Example],
    predictions: Sequence[Prediction],
    found: Sequence[Outcome],
    alone: Sequence[Outcome] | None,
) -> list[Case]:
    """The queries on which a system's predictions record a draft, with the answers that are to be compared.

    ``found`` are the outcomes of ``predictions``, ``alone`` those of the strong model alone on the same queries.
    """
    solo = {outcome.example_id: outcome for outcome in alone or ()}
    return [
        Case(
            draft=task.extract(p.draft, e),
            final=outcome,
            solo=solo.get(e.id),
            closed=bool(task.labels or e.choices),
        )
        for e, p, outcome in zip(queries, predictions, found, strict=True)
        if p.draft is not None and e.references
    ]


def uptake(task: Task, cases: Sequence[Case], seed: int, name: str) -> Uptake | None:
    """What the strong model of the system ``name`` does with its drafts; None where none is recorded."""
    closed = all(case.closed for case in cases)
    return uptake_of(cases, right_by(task.metrics, closed), seed, name)


def results_of_systems(
    task: Task,
    metrics: Sequence[str],
    queries: Sequence[Example],
    predictions: Mapping[str, Sequence[Prediction]],
    seed: int,
    name: str = "evaluation",
    stages: Mapping[str, StageResult] | None = None,
    left_out: Mapping[str, str] | None = None,
    judged: Mapping[str, Sequence[Outcome]] | None = None,
) -> Results:
    """Means with intervals of each system, what it does with drafts, and every pair compared on the queries that both answered.

    ``judged``: the outcomes where judges have told them. Raises DataError where nobody has, and a query has no reference.
    """
    without = [e.id for e in queries if not e.references]
    if without and judged is None:
        raise DataError(f"task {task.name}: test question {without[0]} has no reference, and so nothing to score by")
    found = judged or {system: outcomes_of(task, queries, rows) for system, rows in predictions.items()}
    systems = {
        system: SystemResult(
            metrics=summarise(metrics, task.labels, found[system], seed),
            usage=sum((p.usage for p in predictions[system]), Usage()),
            uptake=uptake(task, cases_of(task, queries, rows, found[system], found.get(STRONG.name)), seed, system),
        )
        for system, rows in predictions.items()
    }
    comparisons: list[Comparison] = []
    for a, b in combinations(reversed(list(found)), 2):
        for metric in metrics:
            comparisons.extend(compare(metric, task.labels, a, found[a], b, found[b], seed))
    return Results(
        name=name,
        task=task.name,
        systems=systems,
        comparisons=comparisons,
        stages=dict(stages or {}),
        left_out=dict(left_out or {}),
    )


@dataclass(frozen=True, slots=True)
class _Asking:
    """What ``fill`` needs to know, outside a run."""

    task: Task
    reporter: Reporter
    label: str = ""


async def answer_all(
    system: System, task: Task, queries: Sequence[Example], folder: Path | None, reporter: Reporter
) -> list[Prediction]:
    """A system's answer to each query, in order; kept in ``folder``, where those that are there are not asked again."""
    with TemporaryDirectory() as passing:
        file = JsonlFile((folder or Path(passing)) / f"{system.name}.jsonl", Prediction)
        asking = _Asking(task, reporter)

        async def answered(example: Example) -> Prediction:
            return marked(task, example, await system.answer(example))

        return await fill(
            system.name,
            asking,
            file,
            queries,
            lambda e: e.id,
            lambda p: p.example_id,
            answered,
            limit="max_tokens",
        )
