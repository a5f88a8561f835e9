"""Stage ``evaluate``: every system on the held-out test queries, with paired statistics -> ``results.json``."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cowest.assembly.build import build_baseline_frames
from cowest.assembly.context import Context
from cowest.assembly.systems import Retrievers, build_system
from cowest.errors import ConfigError, StageError
from cowest.protocols import ChatModel
from cowest.recipe.outcome import settings_of
from cowest.run.freshness import Depends
from cowest.run.store import JsonlFile, write_atomic
from cowest.scoring.statistics import Outcome
from cowest.stages import depends
from cowest.stages.answers import outcomes_of, results_of_systems
from cowest.stages.base import Done, Stage, failures, fill
from cowest.stages.learn import selection, sft_model
from cowest.systems.registry import evaluated
from cowest.systems.spec import SystemSpec, Which
from cowest.types import Example, ModelRef, Prediction, StageResult

EVALUATE = "evaluate"


def test_queries(context: Context) -> Sequence[Example]:
    """The held-out queries that are evaluated."""
    return context.task.examples("test")[: context.config.evaluate.queries]


def _asked_for(context: Context) -> tuple[tuple[SystemSpec, ...], dict[str, str]]:
    """The recipe's systems with those that were handed over, and why it cannot have others that it names."""
    specs, left_out = evaluated(context.config)
    taken = {spec.name for spec in specs} & {spec.name for spec in context.objects.systems}
    if taken:
        raise ConfigError(
            f"systems: {', '.join(sorted(taken))}: a system of this name is evaluated already; give yours another"
        )
    return (*specs, *context.objects.systems), left_out


def _depends(context: Context) -> Depends:
    specs, _ = _asked_for(context)
    found = (
        _asked(context)
        | depends.value("evaluate.systems", [spec.name for spec in specs])
        | context.strong.identity("strong")
        | (depends.value("weak.model", "trained") if context.weak.trainable else context.weak.identity("weak"))
        | depends.value("the metrics", list(context.task.metrics))
    )
    for spec in specs:
        if not spec.live:
            found |= system_depends(context, spec)
    return found


def system_depends(context: Context, spec: SystemSpec) -> Depends:
    """What one system's answers follow from, beside what it reads of the run."""
    found = _asked(context)
    if not spec.live:
        found |= _beyond_the_frames(context)
    if spec.uses != "weak":
        found |= context.strong.identity("strong")
    if spec.uses != "strong" and (spec.needs == "nothing" or not context.weak.trainable):
        found |= context.weak.identity("weak")
    return found


def _asked(context: Context) -> Depends:
    test, frames = test_queries(context), context.frames
    return (
        settings_of("evaluate", context.config.evaluate, leave_out=("systems",))
        | depends.questions("test", test)
        | depends.prompt("a draft", frames.draft(test[0]))
        | depends.prompt("the collaboration", frames.refine(test[0], "DRAFT"))
        | depends.prompt("the strong model alone", frames.solo(test[0]))
        | depends.seen(context, "weak", "strong")
    )


def _beyond_the_frames(context: Context) -> Depends:
    """What the systems of ``cowest table`` follow from that do more than put the frames to the models."""
    c, first = context.config, test_queries(context)[0]
    baseline = build_baseline_frames(c, context.task)
    return (
        settings_of("draft.sampling", c.draft.sampling)
        | settings_of("table", c.comparison, leave_out=("rows", "baseline", "seeds", "axis", "grid"))
        | depends.questions("training", context.task.examples("train"))
        | depends.prompt(
            "the baselines",
            baseline.zero_shot(first),
            baseline.self_refine(first, "ANSWER"),
            baseline.predicted(first, "LABEL", 0.5),
            baseline.choose(first, ["A", "B"]),
        )
        | depends.value("seed", c.seed)
    )


def systems_of(context: Context) -> tuple[tuple[SystemSpec, ...], dict[str, str]]:
    """The systems that are there to be evaluated, and why the others that the recipe asks for are not."""
    specs, left_out = _asked_for(context)
    left_out |= {spec.name: why for spec in specs if (why := not_aligned(context, spec))}
    return tuple(spec for spec in specs if spec.name not in left_out), left_out


def not_aligned(context: Context, spec: SystemSpec) -> str | None:
    """Why there is no aligned model for a system that needs one: what stands in its place is the model before alignment."""
    return selection(context).skipped if spec.needs == "align" else None


def weak_ref(context: Context, which: Which) -> ModelRef:
    """The weak model at that point of its training, as the run made it; one that is served elsewhere is what it is.

    Raises FileNotFoundError where the run is not as far, DataError where the weights are gone, StageError for an aligned model
    where there was nothing to learn from.
    """
    if which == "base" or not context.weak.trainable:
        return context.weak.base()
    if which == "sft":
        return sft_model(context)
    chosen = selection(context)
    if chosen.skipped is not None:
        raise StageError(f"{context.run.path}: it has no aligned weak model: {chosen.skipped}")
    return context.located(chosen.model)


def _limit(spec: SystemSpec) -> str:
    """The settings that bound the length of a system's answers."""
    draft, answer = "evaluate.draft.max_tokens", "evaluate.answer.max_tokens"
    return {"weak": draft, "strong": answer}.get(spec.uses, f"{answer} (or {draft})")


async def answer_queries(
    context: Context,
    spec: SystemSpec,
    file: JsonlFile[Prediction],
    label: str,
    retrievers: Retrievers,
    proven: bool = False,
) -> list[Prediction]:
    """A system's answers to the test queries; those that are in the file already are kept.

    A model that cannot serve the system (FLARE, and no log-probabilities) does not take the other systems' answers away: all
    of its queries are entered as failed. ``proven``: its strong model has answered other systems. Raises StageError where calls
    keep failing in another way.
    """
    queries, opened = test_queries(context), list[ChatModel]()
    context.models.new_step()

    def weak(which: Which) -> ChatModel:
        opened.append(context.models.weak(weak_ref(context, which)))
        return opened[-1]

    try:
        system = build_system(context, spec, context.models.strong, weak, lambda kind: retrievers.of(kind, context))
        return await fill(
            label,
            context,
            file,
            queries,
            lambda e: e.id,
            lambda p: p.example_id,
            system.answer,
            limit=_limit(spec),
            proven=proven,
        )
    except StageError as error:
        if error.kind != "no_logprobs":
            raise
        context.reporter.info(f"{context.label}{label}: given up: {error}")
        failed = [
            Prediction(example_id=e.id, system=spec.name, text=None, error=f"no_logprobs: {error}") for e in queries
        ]
        file.replace(failed)
        return failed
    finally:
        for model in opened:
            await model.aclose()


async def _evaluate(context: Context) -> Done:
    queries, retrievers, began = test_queries(context), Retrievers(), time.monotonic()
    before = context.run.manifest().stages.get(EVALUATE)
    earlier = 0.0 if before is None else before.seconds
    specs, left_out = systems_of(context)
    predictions, proven = dict[str, list[Prediction]](), False
    for spec in specs:
        file = context.run.file(f"predictions/{spec.name}.jsonl", Prediction)
        rows = await answer_queries(context, spec, file, f"evaluate {spec.name}", retrievers, proven)
        predictions[spec.name] = rows
        proven = proven or (spec.uses != "weak" and any(p.error is None for p in rows))
    for name, why in left_out.items():
        context.reporter.info(f"{context.label}evaluate: warning: no row {name}: {why}")
    found = {name: outcomes(context, queries, rows) for name, rows in predictions.items()}
    failed = {name: failures(rows) for name, rows in predictions.items()}
    counts = {"queries": len(queries), "systems": len(predictions)}
    counts |= {f"{name}_truncated": sum(p.truncated for p in rows) for name, rows in predictions.items()}
    counts |= {f"{name}_cut_off": sum(o.cut for o in rows) for name, rows in found.items()}
    counts |= {f"{name}_failed": n for name, n in failed.items()}
    mine = StageResult(counts=counts, seconds=round(earlier + time.monotonic() - began, 2))
    stages = {
        name: StageResult(counts=entry.counts, seconds=entry.seconds)
        for name, entry in context.run.manifest().stages.items()
        if entry.status == "done" and name != EVALUATE
    }
    stages[EVALUATE] = mine  # which the manifest does not have yet
    task, c = context.task, context.config
    results = results_of_systems(task, task.metrics, queries, predictions, c.seed, c.name, stages, left_out)
    write_atomic(context.path("results.json"), results.model_dump_json(indent=2, by_alias=True) + "\n")
    return Done(counts, sum(failed.values()))


def outcomes(context: Context, queries: Sequence[Example], predictions: Sequence[Prediction]) -> list[Outcome]:
    """A system's extracted answers, see :func:`cowest.stages.answers.outcomes_of`."""
    return outcomes_of(context.task, queries, predictions)


def evaluate_stage(reads: tuple[str, ...]) -> Stage:
    """Evaluation of what the stages before have left; ``reads`` names that."""
    return Stage(EVALUATE, 1, reads, ("predictions", "results.json"), _depends, _evaluate)
