"""The guard's stages: ``calibrate``, which asks every arm about queries that trained nothing, and ``guard``, which learns from it.

``certified`` puts the rows ``guarded`` and ``cascade`` beside the run's own systems on the test queries.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from cowest.assembly.context import Context
from cowest.assembly.systems import GUARD, parts_of
from cowest.collaboration.calls import CallFailed, Tally
from cowest.collaboration.guard.evidence import ARMS, Answered, Arm
from cowest.collaboration.guard.learn import FEWEST, Learned, Numbers, learn
from cowest.collaboration.guard.policy import Guard
from cowest.collaboration.guard.promise import least_queries
from cowest.errors import ConfigError, DataError, StageError
from cowest.recipe.config import RunConfig
from cowest.recipe.outcome import settings_of
from cowest.run.freshness import Depends
from cowest.run.store import write_atomic
from cowest.stages import depends
from cowest.stages.base import Done, Stage, failures, fill
from cowest.stages.choosing import validation_queries
from cowest.stages.evaluate import weak_ref
from cowest.stages.loop import selection
from cowest.stages.rounds import Round
from cowest.systems.guarded import Opinions, opinions_of
from cowest.systems.registry import GUARDED
from cowest.systems.spec import SystemSpec, Which
from cowest.tasks.base import CALIBRATION
from cowest.types import Completion, Example, Usage

CALIBRATE, CERTIFY = "calibrate", "guard"
"""The names of the two stages."""
AT_ONCE = 128
"""Queries under way together: enough to fill a batch, and a run that is killed has kept those before."""
CALIBRATED = "guard/calibration.jsonl"


def calibration_queries(context: Context) -> Sequence[Example]:
    """The queries that trained nothing and chose nothing: those that ``task.calibration`` keeps, else of the validation split.

    Raises DataError where there are too few to learn anything from, or some have no answer to score by.
    """
    config = context.config
    kept = config.task.calibration if config.task is not None else 0
    if kept:
        found = list(context.task.examples(CALIBRATION))
    else:
        chose = {e.id for e in validation_queries(context)} if config.weak.trainable else set[str]()
        found = [e for e in context.task.examples("validation") if e.id not in chose]
    found = found[: config.guard.queries]
    if len(found) < 2 * FEWEST:
        enough = math.ceil(1.5 * least_queries(config.guard.risk, config.guard.delta))
        raise DataError(
            f"task {context.task.name}: {len(found)} questions are left to calibrate on (training and the choice of a checkpoint "
            f"have seen the others), and a promise at risk {config.guard.risk:g} and delta {config.guard.delta:g} takes {enough} "
            "at least: set task.calibration to that or more, which keeps them from training (and trains again), or "
            "align.selection_queries to leave some of the validation questions"
        )
    without = [e.id for e in found if not e.references]
    if without:
        raise DataError(f"task {context.task.name}: calibration question {without[0]} has no reference to score by")
    only = {e.references[0] for e in found}
    if context.task.labels and len(only) == 1:
        raise DataError(
            f"task {context.task.name}: all {len(found)} calibration questions have the answer {only.pop()!r}: nothing can be "
            "learned from one class; give others"
        )
    return found


def weak_models(context: Context) -> tuple[Which, Which]:
    """Which weak model answers alone, and which drafts: the aligned one where there is one that differs."""
    if not context.weak.trainable:
        return "base", "base"
    if context.config.align.objective == "off" or selection(context).skipped is not None:
        return "sft", "sft"
    return "sft", "sft" if weak_ref(context, "aligned") == weak_ref(context, "sft") else "aligned"


def _calibrate_depends(context: Context) -> Depends:
    c, queries = context.config, calibration_queries(context)
    found = (
        settings_of("evaluate", c.evaluate, leave_out=("systems", "queries"))
        | settings_of("guard", c.guard, leave_out=("risk", "delta", "queries"))
        | settings_of("draft.sampling", c.draft.sampling)
        | depends.questions("calibration", queries)
        | depends.prompt("a draft", context.frames.draft(queries[0]))
        | depends.prompt("the collaboration", context.frames.refine(queries[0], "DRAFT"))
        | depends.prompt("the strong model alone", context.frames.solo(queries[0]))
        | depends.seen(context, "weak", "strong")
        | context.strong.identity("strong")
        | depends.value("the metric", context.metric)
        | depends.value("seed", c.seed)
    )
    return found if context.weak.trainable else found | context.weak.identity("weak")


async def _answered(context: Context, opinions: Opinions, example: Example) -> Answered:
    """Every arm's answer to one query, and its score; an answer that was cut off, or is none, is worth 0, as it is to a user."""
    scorer, scores, usage = context.metric_scorer(), dict[Arm, float](), dict[Arm, Usage]()
    try:
        opening = await opinions.begin(example, Tally())
        evidence = opening.evidence
        for arm in ARMS:
            tally = Tally()
            done: Completion | None = await opinions.ask(arm, example, opening, tally)
            value = 0.0 if done is None else (await scorer.score(example, done.text)).value or 0.0
            if not 0 <= value <= 1:
                raise StageError(
                    f"calibrate: {context.metric} gives {value:g}, and the promise is about scores from 0 to 1"
                )
            scores[arm], usage[arm] = value, tally.usage
            evidence = evidence.model_copy(update={"arms": {**evidence.arms, arm: opinions.said(done, example)}})
    except CallFailed as error:
        return Answered(example_id=example.id, error=str(error))
    return Answered(example_id=example.id, evidence=evidence, scores=scores, usage=usage)


async def _calibrate(context: Context) -> Done:
    queries = calibration_queries(context)
    models = [context.models.weak(weak_ref(context, which)) for which in dict.fromkeys(weak_models(context))]
    parts = parts_of(context, GUARDED, context.models.strong, lambda which: models[0])
    drafter = models[1] if len(models) > 1 else None
    opinions = opinions_of(parts, models[0], drafter, context.config.guard.samples, context.config.guard.confidence)
    try:
        made = await fill(
            "calibrate",
            context,
            context.run.file(CALIBRATED, Answered),
            queries,
            lambda e: e.id,
            lambda a: a.example_id,
            lambda e: _answered(context, opinions, e),
            at_once=AT_ONCE,
            limit="evaluate.answer.max_tokens",
        )
    finally:
        for model in models:
            await model.aclose()
    failed = failures(made)
    return Done({"queries": len(made), "failed": failed}, failed)


def _guard_depends(context: Context) -> Depends:
    return settings_of("guard", context.config.guard) | depends.value("seed", context.config.seed)


async def _guard(context: Context) -> Done:
    rows = context.run.file(CALIBRATED, Answered).load()
    whole = sorted((row for row in rows if row.error is None), key=lambda row: row.example_id)
    c = context.config
    try:
        learned = learn(Numbers.of(whole, context.task.labels), c.seed, c.guard.risk, c.guard.delta)
    except ValueError as error:
        raise StageError(f"guard: {error}") from None
    guard = guard_from(context, learned, whole, left_out=len(rows) - len(whole))
    write_atomic(context.path(GUARD), guard.model_dump_json(indent=1) + "\n")
    for line in told(guard):
        context.reporter.info(f"{context.label}guard: {line}")
    return Done(
        {"learned_from": guard.learned_from, "certified_on": guard.certified_on, "promised": int(guard.promised)}
    )


def guard_from(context: Context, learned: Learned, rows: Sequence[Answered], left_out: int = 0) -> Guard:
    """The guard of a run."""
    best, cheapest = learned.best or learned.alone, learned.cheapest or learned.alone
    numbers = Numbers.of(rows, context.task.labels)
    testing = numbers.part(learned.testing)
    weak, drafter = weak_models(context)
    assert weak != "aligned"
    seen = numbers.features["weak"]
    return Guard(
        risk=learned.risk,
        delta=learned.delta,
        judged=learned.judged,
        guarded=best.certificate,
        cascade=cheapest.certificate,
        tried=tuple(one.certificate for one in learned.tried),
        alone={arm: float(testing.scores[arm].mean()) for arm in ARMS},
        learned_from=len(learned.learning),
        certified_on=len(learned.testing),
        left_out=left_out,
        enough=learned.more,
        weak=weak,
        drafter=drafter,
        samples=context.config.guard.samples,
        confidence=context.config.guard.confidence,
        reference=tuple(tuple(None if np.isnan(v) else round(float(v), 6) for v in row) for row in seen),
    )


def told(guard: Guard) -> list[str]:
    """The promise in words, and what was seen."""
    better = guard.guarded.candidate.only
    lines = []
    if guard.left_out:
        lines.append(f"{guard.left_out} calibration queries are left out, since a call failed; run again to ask them")
    if not guard.promised:
        more = (
            "no policy looks safe enough on them to say how many would do"
            if guard.enough is None
            else f"about {guard.enough} calibration queries would do"
        )
        return [
            *lines,
            f"no promise: {guard.certified_on} certifying queries are too few for risk {guard.risk:g} at delta "
            f"{guard.delta:g}; {more}. Both rows are the {better} model alone, which looks better.",
        ]
    lines.append(
        f"promised with probability {1 - guard.delta:.0%}: at most {100 * guard.risk:g} points below the better single model "
        f"({guard.certified_on} certifying queries, {sum(t.kept for t in guard.tried)} of {len(guard.tried)} policies passed)"
    )
    for name, one in (("guarded", guard.guarded), ("cascade", guard.cascade)):
        shares = ", ".join(f"{arm} {share:.0%}" for arm, share in one.answered.items() if share)
        lines.append(f"{name}: {100 * one.score:.1f} with {one.calls:.2f} strong calls a query ({shares})")
    return lines


def guard_stages(config: RunConfig, rounds: Sequence[Round]) -> tuple[Stage, ...]:
    """What makes a run's guard, after the last alignment of these rounds."""
    aligns = tuple(round_.file("align") for round_ in rounds) if config.align.objective != "off" else ()
    trained = ("sft", *aligns) if config.weak.trainable else ()
    return (
        Stage(CALIBRATE, 1, trained, (CALIBRATED,), _calibrate_depends, _calibrate),
        Stage(CERTIFY, 2, (CALIBRATED, *trained), (GUARD,), _guard_depends, _guard),
    )


def check_rows(context: Context, specs: Iterable[SystemSpec]) -> None:
    """See to it, before anything is paid, that a task can have a guard where some system needs one.

    Raises what :func:`check_guarded` and :func:`calibration_queries` raise.
    """
    if any(spec.needs == "guard" for spec in specs):
        check_guarded(context.config)
        calibration_queries(context)


def check_guarded(config: RunConfig) -> None:
    """Raise ConfigError for a recipe that can have no guard."""
    if config.draft.turn != "draft":
        raise ConfigError(
            f"guard: its third way to answer is the collaboration, and draft.turn: {config.draft.turn} trains the weak model for "
            "another turn than a draft; guard a run with draft.turn: draft"
        )
    if config.feedback.compare or config.feedback.judge is not None:
        raise ConfigError(
            "guard: it certifies scores by the task's metric, and this recipe has its answers judged (feedback.judge or "
            "feedback.compare)"
        )
