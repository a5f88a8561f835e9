"""Stage ``evaluate``: every system on the held-out test queries, with paired statistics -> ``results.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from cowest.assembly.context import Context
from cowest.protocols import ChatModel, System
from cowest.recipe.config import SystemName
from cowest.recipe.outcome import settings_of
from cowest.run.freshness import Depends
from cowest.run.store import write_atomic
from cowest.scoring.statistics import Outcome, compare, summarise
from cowest.stages import depends
from cowest.stages.base import Done, Stage, failures, fill
from cowest.stages.learn import selection, sft_model
from cowest.systems.collaboration import Collaboration
from cowest.systems.single import SingleCall
from cowest.types import Comparison, Example, ModelRef, Prediction, Results, StageResult, SystemResult, Usage


def test_queries(context: Context) -> Sequence[Example]:
    """The held-out queries that are evaluated."""
    return context.task.examples("test")[: context.config.evaluate.queries]


def _depends(context: Context) -> Depends:
    test, c = test_queries(context), context.config
    return (
        settings_of("evaluate", c.evaluate)
        | depends.questions("test", test)
        | depends.prompt("a draft", context.frames.draft(test[0]))
        | depends.prompt("the collaboration", context.frames.refine(test[0], "DRAFT"))
        | depends.prompt("the strong model alone", context.frames.solo(test[0]))
        | context.strong.identity("strong")
        | (depends.value("weak.model", "trained") if context.weak.trainable else context.weak.identity("weak"))
        | depends.value("the metrics", list(context.task.metrics))
    )


def systems_of(context: Context) -> tuple[tuple[SystemName, ...], dict[str, str]]:
    """The systems that are there to be evaluated, and why the others that the recipe asks for are not."""
    left_out = {}
    if "collab_aligned" in context.config.systems:
        why = why_not_aligned(context)
        if why is not None:
            left_out["collab_aligned"] = why
    return tuple(name for name in context.config.systems if name not in left_out), left_out


def why_not_aligned(context: Context) -> str | None:
    """Why the run has no aligned weak model, in words; None where it has one."""
    if context.config.align.objective == "off":
        return "align.objective is off: the weak model is not aligned"
    return selection(context).skipped


def _systems(context: Context, names: Sequence[SystemName]) -> list[tuple[System, ChatModel | None]]:
    """The systems asked for, each with the weak model that it alone holds open."""
    settings, strong = context.config.evaluate, context.models.strong()
    systems: list[tuple[System, ChatModel | None]] = []
    for name in names:
        if name == "strong":
            systems.append((SingleCall(strong, context.frames.solo, settings.answer, name), None))
            continue
        weak = context.models.weak(_weak(context, name))
        if name == "weak":
            systems.append((SingleCall(weak, context.frames.draft, settings.draft, name), weak))
        else:
            both = Collaboration(weak, strong, context.frames, settings.draft, settings.answer, name)
            systems.append((both, weak))
    return systems


def _weak(context: Context, name: SystemName) -> ModelRef:
    if name == "collab_aligned":
        return context.located(selection(context).model)
    return sft_model(context) if context.weak.trainable else context.weak.base()


async def _evaluate(context: Context) -> Done:
    queries = test_queries(context)
    names, left_out = systems_of(context)
    predictions: dict[str, list[Prediction]] = {}
    for system, weak in _systems(context, names):
        file = context.run.file(f"predictions/{system.name}.jsonl", Prediction)
        predictions[system.name] = await fill(
            f"evaluate {system.name}", context, file, queries, lambda e: e.id, lambda p: p.example_id, system.answer
        )
        if weak is not None:
            await weak.aclose()
    for name, why in left_out.items():
        context.reporter.info(f"{context.label}evaluate: no row {name}: {why}")
    results = _results(context, queries, predictions, left_out)
    write_atomic(context.path("results.json"), results.model_dump_json(indent=2, by_alias=True) + "\n")
    counts = {"queries": len(queries), "systems": len(predictions)}
    counts |= {f"{name}_truncated": sum(p.truncated for p in found) for name, found in predictions.items()}
    failed = {name: failures(found) for name, found in predictions.items()}
    return Done(counts | {f"{name}_failed": n for name, n in failed.items()}, sum(failed.values()))


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


def _results(
    context: Context,
    queries: Sequence[Example],
    predictions: Mapping[str, Sequence[Prediction]],
    left_out: Mapping[str, str],
) -> Results:
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
    return Results(
        name=context.config.name,
        task=task.name,
        systems=systems,
        comparisons=comparisons,
        stages=stages,
        left_out=dict(left_out),
    )


def evaluate_stage(reads: tuple[str, ...]) -> Stage:
    """Evaluation of what the stages before have left; ``reads`` names that."""
    return Stage("evaluate", 1, reads, ("predictions", "results.json"), _depends, _evaluate)
