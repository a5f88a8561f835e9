"""Stage ``evaluate``: every system on the held-out test queries, with paired statistics -> ``results.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from pydantic import JsonValue

from cowest.assembly.context import Context
from cowest.protocols import ChatModel, System
from cowest.run.store import write_atomic
from cowest.scoring.statistics import Outcome, compare, summarise
from cowest.stages.base import Stage, failures, fill
from cowest.stages.feedback import strong_identity
from cowest.stages.learn import selection, sft_model, split_fingerprint
from cowest.systems.collaboration import Collaboration
from cowest.systems.single import SingleCall
from cowest.types import Comparison, Example, Prediction, Results, StageResult, SystemResult, Usage


def test_queries(context: Context) -> Sequence[Example]:
    """The held-out queries that are evaluated."""
    return context.task.examples("test")[: context.config.evaluate.queries]


def _depends(context: Context) -> JsonValue:
    test = test_queries(context)
    frames: list[JsonValue] = [
        m.content for m in (*context.frames.refine(test[0], "DRAFT"), *context.frames.solo(test[0]))
    ]
    settings = context.config.evaluate.model_dump(mode="json")
    return [settings, split_fingerprint(test), frames, strong_identity(context), list(context.task.metrics)]


def _systems(context: Context) -> list[tuple[System, ChatModel | None]]:
    """The systems asked for, each with the weak model that it alone holds open."""
    settings, strong = context.config.evaluate, context.models.strong()
    systems: list[tuple[System, ChatModel | None]] = []
    for name in context.config.systems:
        if name == "strong":
            systems.append((SingleCall(strong, context.frames.solo, settings.answer, name), None))
            continue
        weak = context.models.weak(selection(context).model if name == "collab_aligned" else sft_model(context))
        if name == "weak":
            systems.append((SingleCall(weak, context.frames.draft, settings.draft, name), weak))
        else:
            both = Collaboration(weak, strong, context.frames, settings.draft, settings.answer, name)
            systems.append((both, weak))
    return systems


async def _evaluate(context: Context) -> Mapping[str, int]:
    queries = test_queries(context)
    predictions: dict[str, list[Prediction]] = {}
    for system, weak in _systems(context):
        file = context.run.file(f"predictions/{system.name}.jsonl", Prediction)
        predictions[system.name] = await fill(
            f"evaluate {system.name}", context, file, queries, lambda e: e.id, lambda p: p.example_id, system.answer
        )
        if weak is not None:
            await weak.aclose()
    results = _results(context, queries, predictions)
    write_atomic(context.path("results.json"), results.model_dump_json(indent=2, by_alias=True) + "\n")
    counts = {"queries": len(queries), "systems": len(predictions)}
    counts |= {f"{name}_truncated": sum(p.truncated for p in found) for name, found in predictions.items()}
    return counts | {f"{name}_failed": failures(found) for name, found in predictions.items()}


def outcomes(context: Context, queries: Sequence[Example], predictions: Sequence[Prediction]) -> list[Outcome]:
    """A system's extracted answers. A failed call is ``failed``; a text without an answer is merely wrong."""
    return [
        Outcome(
            example_id=e.id,
            answer=None if p.text is None else context.task.extract(p.text, e),
            references=e.references,
            failed=p.text is None,
        )
        for e, p in zip(queries, predictions, strict=True)
    ]


def _results(context: Context, queries: Sequence[Example], predictions: Mapping[str, Sequence[Prediction]]) -> Results:
    task, seed = context.task, context.config.seed
    found = {name: outcomes(context, queries, rows) for name, rows in predictions.items()}
    systems = {
        name: SystemResult(
            metrics=summarise(task.metrics, task.labels, found[name], seed),
            usage=sum((p.usage for p in predictions[name]), Usage()),
        )
        for name in predictions
    }
    comparisons: list[Comparison] = []
    for a, b in combinations(reversed(list(found)), 2):
        for metric in task.metrics:
            comparisons.extend(compare(metric, task.labels, a, found[a], b, found[b], seed))
    stages = {
        name: StageResult(counts=entry.counts, seconds=entry.seconds)
        for name, entry in context.run.manifest().stages.items()
        if entry.status == "done"
    }
    return Results(name=context.config.name, task=task.name, systems=systems, comparisons=comparisons, stages=stages)


EVALUATE = Stage("evaluate", 1, ("sft", "align"), ("predictions", "results.json"), _depends, _evaluate)
