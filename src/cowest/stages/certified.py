"""The stage ``certified``: the rows ``guarded`` and ``cascade`` on the test queries, beside the systems of the run."""

from __future__ import annotations

from collections import Counter

from cowest.assembly.context import Context
from cowest.assembly.systems import GUARD, Retrievers
from cowest.collaboration.guard.policy import CALLS
from cowest.results import Results
from cowest.run.freshness import Depends
from cowest.run.store import write_atomic
from cowest.stages import depends
from cowest.stages.answers import results_of_systems
from cowest.stages.base import Done, Stage, failures
from cowest.stages.evaluate import answer_queries, system_depends, systems_of, test_queries
from cowest.stages.preferred import measured
from cowest.systems.registry import CASCADE, GUARDED, STRONG
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
