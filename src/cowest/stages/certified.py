"""The stage ``certified``: the rows ``guarded`` and ``cascade`` on the test queries, beside the systems of the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from cowest.assembly.context import Context
from cowest.assembly.systems import GUARD, Retrievers, guard_of
from cowest.collaboration.guard.evidence import ARMS
from cowest.collaboration.guard.policy import CALLS, Guard
from cowest.errors import ConfigError, DataError
from cowest.report.data import GuardPoint, GuardRow, GuardView
from cowest.results import Results, SystemResult
from cowest.run.freshness import Depends, inputs_of, judge
from cowest.run.store import write_atomic
from cowest.stages import depends
from cowest.stages.answers import results_of_systems
from cowest.stages.base import Done, Stage, failures
from cowest.stages.evaluate import answer_queries, system_depends, systems_of, test_queries
from cowest.stages.guard import guard_stages, told
from cowest.stages.loop import begun
from cowest.stages.preferred import measured
from cowest.systems.registry import CASCADE, COLLAB, COLLAB_ALIGNED, GUARDED, STRONG, WEAK
from cowest.types import Prediction

RESULTS = "guard/results.json"
ROWS = (GUARDED, CASCADE)


def _file(name: str) -> str:
    return f"guard/rows/{name}.jsonl"


def _depends(context: Context) -> Depends:
    found = depends.value("rows", [spec.name for spec in ROWS])
    for spec in ROWS:
        found |= system_depends(context, spec)
    return found


async def _certified(context: Context) -> Done:
    queries, retrievers = test_queries(context), Retrievers()
    predictions = {
        spec.name: context.run.file(f"predictions/{spec.name}.jsonl", Prediction).load()
        for spec in systems_of(context)[0]
        if spec not in ROWS
    }
    alone = predictions.get(STRONG.name, [])
    for spec in ROWS:
        file = context.run.file(_file(spec.name), Prediction)
        done = await answer_queries(context, spec, file, spec.name, retrievers, proven=True, alone=alone)
        predictions[spec.name] = done.predictions
    c = context.config
    results = results_of_systems(context.task, measured(context, queries), queries, predictions, c.seed, c.name)
    write_atomic(context.path(RESULTS), results.model_dump_json(indent=2, by_alias=True) + "\n")
    failed = {spec.name: failures(predictions[spec.name]) for spec in ROWS}
    counts = {"queries": len(queries)} | {f"{name}_failed": n for name, n in failed.items()}
    return Done(counts, sum(failed.values()))


def certified_results(context: Context) -> Results:
    """What the stage has left. Raises FileNotFoundError where it has not run."""
    return Results.model_validate_json(context.path(RESULTS).read_bytes())


def routes_of(context: Context) -> dict[str, Counter[str]]:
    """For each row by whom its test queries were answered, and how many ``calls`` they made to the strong model."""
    found = dict[str, Counter[str]]()
    for spec in ROWS:
        rows = context.run.file(_file(spec.name), Prediction).load()
        found[spec.name] = Counter(row.route.who for row in rows if row.route is not None)
        found[spec.name]["calls"] = sum(CALLS[row.route.reason] for row in rows if row.route)
    return found


def certified_stage() -> Stage:
    """After the evaluation, whose predictions it stands beside."""
    writes = (*(_file(spec.name) for spec in ROWS), RESULTS)
    return Stage("certified", 1, (GUARD, "predictions"), writes, _depends, _certified)


STRONG_CALLS = {WEAK.name: 0, STRONG.name: 1, COLLAB.name: 1, COLLAB_ALIGNED.name: 1}
"""Calls to the strong model of the systems that always make as many."""


def outdated(context: Context) -> str | None:
    """Why what a run has of a guard is not what its recipe says; None where it is, or there is none.

    A guard is made by a command of its own, so that ``cowest run`` may go on with other models, or another risk, and leave it.
    """
    if not context.path(GUARD).is_file() or not context.path(RESULTS).is_file():
        return None
    for stage in (*guard_stages(context.config, begun(context)), certified_stage()):
        try:
            verdict = judge(context.run, stage, stage.depends(context), inputs_of(context.run, stage))
        except (ConfigError, DataError) as error:  # no questions to calibrate on any more, answers that are judged
            return str(error)
        if not verdict.settled:
            return f"stage {stage.name} is to be {verdict}"
    return None


def guard_view(context: Context) -> GuardView | None:
    """The guard as report and command show it; None where the run has none, or its rows have not been evaluated."""
    if not context.path(GUARD).is_file() or not context.path(RESULTS).is_file():
        return None
    guard, results, routes = guard_of(context), certified_results(context), routes_of(context)
    metric = next(iter(next(iter(results.systems.values())).metrics))
    shown = [name for name in (*STRONG_CALLS, *routes) if name in results.systems]
    return GuardView(
        promised=guard.promised,
        told=tuple(told(guard)),
        metric=metric,
        rows=tuple(_row(name, results.systems[name], metric, routes.get(name)) for name in shown),
        points=tuple(_points(guard)),
    )


def _row(name: str, found: SystemResult, metric: str, routes: Counter[str] | None) -> GuardRow:
    value, used = found.metrics[metric], found.usage
    n = max(value.n + value.n_cut + value.n_failed, 1)
    calls = STRONG_CALLS.get(name, 0) if routes is None else routes["calls"] / n
    decided = sum(routes[arm] for arm in ARMS) if routes is not None else 0
    return GuardRow(
        name=name,
        score=value,
        calls=calls,
        tokens=(used.input_tokens + used.output_tokens) / n,
        cost_usd=None if not used.cost_usd else used.cost_usd / n,
        answered={arm: routes[arm] / decided for arm in ARMS if routes is not None and routes[arm]},
    )


def _points(guard: Guard) -> Iterator[GuardPoint]:
    """The policies, then by name the systems that are no policy, and the two that were taken."""
    for one in guard.tried:
        yield GuardPoint(score=one.score, calls=one.calls, kept=one.kept)
    for arm, score in guard.alone.items():
        yield GuardPoint(score=score, calls=float(arm != "weak"), kept=False, name=arm)
    for name, one in (("guarded", guard.guarded), ("cascade", guard.cascade)):
        yield GuardPoint(score=one.score, calls=one.calls, kept=one.kept, name=name)
