"""Stage ``evaluate``: every system on the held-out test queries, with paired statistics -> ``results.json``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cowest.assembly.build import build_baseline_frames, build_interaction_frames
from cowest.assembly.context import Context
from cowest.assembly.systems import Retrievers, build_system
from cowest.collaboration.sight import QUOTE, Quotations, carried
from cowest.errors import ConfigError, StageError
from cowest.protocols import ChatModel
from cowest.recipe.outcome import settings_of
from cowest.results import StageResult
from cowest.run.freshness import Depends
from cowest.run.store import JsonlFile, write_atomic
from cowest.scoring.statistics import Outcome
from cowest.stages import depends
from cowest.stages.answers import marked, outcomes_of, results_of_systems
from cowest.stages.base import Done, Stage, failures, fill
from cowest.stages.by_round import round_results
from cowest.stages.draft_watch import DraftWatch, Limits
from cowest.stages.learn import sft_model
from cowest.stages.loop import selection
from cowest.stages.preferred import ask_judges, measured, preferred_outcomes
from cowest.stages.verdicts import judges_depend
from cowest.systems.registry import STRONG, evaluated
from cowest.systems.spec import SystemSpec, Which
from cowest.types import Example, Message, ModelRef, Prediction

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
        | depends.value("the metrics", list(measured(context, test_queries(context))))
    )
    if context.judged(test_queries(context)):
        found |= judges_depend(context)
    for spec in specs:
        if not spec.live:
            found |= system_depends(context, spec)
    return found


def system_depends(context: Context, spec: SystemSpec) -> Depends:
    """What one system's answers follow from, beside what it reads of the run."""
    found = _asked(context)
    if not spec.live:
        found |= _beyond_the_frames(context)
    if spec.interacts:
        found |= _turns(context)
    if spec.specialists:
        for name, source in context.models.sources.specialists.items():
            found |= depends.value(f"table.specialists.{name}", True) | source.identity(f"table.specialists.{name}")
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
        | settings_of("table", c.comparison, leave_out=_NOT_OF_A_BASELINE)
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


_NOT_OF_A_BASELINE = ("rows", "baseline", "seeds", "axis", "grid", "questions", "specialists", "gepa")


def _turns(context: Context) -> Depends:
    """What interactions are made of, beside what the baselines are."""
    frames, first = build_interaction_frames, test_queries(context)[0]
    turns = frames(context.config, context.task, context.objects.format)
    questions = context.config.comparison.questions
    return depends.value("table.questions", questions) | depends.prompt(
        "the interactions",
        turns.critique(first, "DRAFT"),
        turns.revise(first, "DRAFT", "CRITIQUE"),
        turns.advise(first, "ATTEMPT"),
        turns.decide(first, "ATTEMPT", "ADVICE"),
        turns.consult(first, questions),
        (Message(role="user", content=turns.reply("REPLY", 0)),),
        turns.consulted(first, "QUESTION"),
        turns.several(first, [("A", "A"), ("B", "B")]),
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


@dataclass(frozen=True, slots=True)
class Answered:
    """A system's answers in the queries' order, and what was said of them while they came."""

    predictions: list[Prediction]
    warnings: tuple[str, ...] = ()


def _watch(context: Context, label: str, queries: Sequence[Example], alone: Sequence[Prediction]) -> DraftWatch:
    settings = context.config.evaluate
    return DraftWatch(
        context,
        label,
        settings.watch,
        "evaluate.watch",
        Limits("evaluate.answer.max_tokens", settings.answer.max_tokens),
        {e.id: e for e in queries},
        lambda answer: answer.draft if isinstance(answer, Prediction) else None,
        {p.example_id: p for p in alone},
    )


async def answer_queries(
    context: Context,
    spec: SystemSpec,
    file: JsonlFile[Prediction],
    label: str,
    retrievers: Retrievers,
    proven: bool = False,
    alone: Sequence[Prediction] = (),
) -> Answered:
    """A system's answers to the test queries; those that are in the file already are kept.

    ``alone``: the same strong model's without a draft, where it has been asked, for the watch on what drafts do.

    A model that cannot serve the system (FLARE, and no log-probabilities) does not take the other systems' answers away: all
    of its queries are entered as failed. ``proven``: its strong model has answered other systems. Raises StageError where calls
    keep failing in another way.
    """
    queries, opened = test_queries(context), list[ChatModel]()
    watch = _watch(context, label, queries, alone)
    context.models.new_step()

    def weak(which: Which) -> ChatModel:
        opened.append(context.models.weak(weak_ref(context, which)))
        return opened[-1]

    try:
        system = build_system(context, spec, context.models.strong, weak, lambda kind: retrievers.of(kind, context))

        async def answered(example: Example) -> Prediction:
            return marked(context.task, example, await system.answer(example))

        made = await fill(
            label,
            context,
            file,
            queries,
            lambda e: e.id,
            lambda p: p.example_id,
            answered,
            limit=_limit(spec),
            proven=proven,
            looking=watch,
        )
        if spec.uses == "both" and context.sight == "weak":
            _tell_what_drafts_carry(context, label, queries, made)
        return Answered(made, watch.warnings)
    except StageError as error:
        if error.kind != "no_logprobs":
            raise
        context.reporter.info(f"{context.label}{label}: given up: {error}")
        failed = [
            Prediction(example_id=e.id, system=spec.name, text=None, error=f"no_logprobs: {error}") for e in queries
        ]
        file.replace(failed)
        return Answered(failed)
    finally:
        for model in opened:
            await model.aclose()


def _tell_what_drafts_carry(
    context: Context, label: str, queries: Sequence[Example], answers: Sequence[Prediction]
) -> None:
    """How much of what the strong model may not see is in the drafts that it was sent."""
    pairs = [(e.context, a.draft) for e, a in zip(queries, answers, strict=True) if e.context and a.draft]
    if not pairs:
        return
    share = sum(carried(text, draft) for text, draft in pairs) / len(pairs)
    quoting = sum(Quotations([text]).quoted(draft) is not None for text, draft in pairs)
    context.reporter.info(
        f"{context.label}{label}: drafts carry {share:.1%} of the contexts' 8-word sequences to the strong model; "
        f"{quoting} of {len(pairs)} quote {QUOTE} characters or more"
    )
    context.tracker.log(f"{context.label}{label}", {"context_8grams": share, "drafts_quoting": quoting})


async def _evaluate(context: Context) -> Done:
    queries, retrievers, began = test_queries(context), Retrievers(), time.monotonic()
    before = context.run.manifest().stages.get(EVALUATE)
    earlier = 0.0 if before is None else before.seconds
    specs, left_out = systems_of(context)
    predictions, proven, warnings = dict[str, list[Prediction]](), False, list[str]()
    for spec in specs:
        file = context.run.file(f"predictions/{spec.name}.jsonl", Prediction)
        alone = predictions.get(STRONG.name, ())
        done = await answer_queries(context, spec, file, f"evaluate {spec.name}", retrievers, proven, alone)
        predictions[spec.name] = rows = done.predictions
        warnings += [f"{spec.name}: {text}" for text in done.warnings]
        proven = proven or (spec.uses != "weak" and any(p.error is None for p in rows))
    for name, why in left_out.items():
        context.reporter.info(f"{context.label}evaluate: warning: no row {name}: {why}")
    judged, told = await _judged(context, queries, predictions)
    warnings += told
    found = judged or {name: outcomes(context, queries, rows) for name, rows in predictions.items()}
    failed = {name: failures(rows) for name, rows in predictions.items()}
    counts = {"queries": len(queries), "systems": len(predictions)}
    counts |= {f"{name}_truncated": sum(p.truncated for p in rows) for name, rows in predictions.items()}
    counts |= {f"{name}_cut_off": sum(o.cut for o in rows) for name, rows in found.items()}
    counts |= {f"{name}_failed": n for name, n in failed.items()}
    seconds = round(earlier + time.monotonic() - began, 2)
    mine = StageResult(counts=counts, seconds=seconds, warnings=tuple(warnings))
    stages = {
        name: StageResult(counts=entry.counts, seconds=entry.seconds, warnings=entry.warnings)
        for name, entry in context.run.manifest().stages.items()
        if entry.status == "done" and name != EVALUATE
    }
    stages[EVALUATE] = mine  # which the manifest does not have yet
    task, c = context.task, context.config
    metrics = measured(context, queries)
    results = results_of_systems(task, metrics, queries, predictions, c.seed, c.name, stages, left_out, judged)
    results = results.model_copy(update={"rounds": round_results(context)})
    write_atomic(context.path("results.json"), results.model_dump_json(indent=2, by_alias=True) + "\n")
    return Done(counts, sum(failed.values()), tuple(warnings))


async def _judged(
    context: Context, queries: Sequence[Example], predictions: Mapping[str, Sequence[Prediction]]
) -> tuple[dict[str, list[Outcome]] | None, list[str]]:
    """Each system's answers compared with the strong model's alone, where not all queries have references; and warnings."""
    if not context.judged(queries):
        return None, []
    found, warnings, alone = dict[str, list[Outcome]](), list[str](), predictions[STRONG.name]
    for system, rows in predictions.items():
        name, label = compared_name(system), f"evaluate {system}"
        if system != STRONG.name:  # compared with itself it is worth 1/2
            told = await ask_judges(context, label, name, queries, rows, alone)
            warnings += [f"{system}: {text}" for text in told]
            for text in told:
                context.reporter.info(f"{context.label}{label}: warning: {text}")
        found[system] = preferred_outcomes(context, name, queries, rows, alone)
    return found, warnings


def compared_name(system: str) -> str:
    """How the files with the judges' verdicts on a system's answers are called."""
    return f"predictions/compared/{system}"


def outcomes(context: Context, queries: Sequence[Example], predictions: Sequence[Prediction]) -> list[Outcome]:
    """A system's extracted answers, see :func:`cowest.stages.answers.outcomes_of`."""
    return outcomes_of(context.task, queries, predictions)


def evaluate_stage(reads: tuple[str, ...]) -> Stage:
    """Evaluation of what the stages before have left; ``reads`` names that."""
    return Stage(EVALUATE, 1, reads, ("predictions", "results.json"), _depends, _evaluate)
