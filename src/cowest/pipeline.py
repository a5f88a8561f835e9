"""READ FIRST: the stages in order, and the loop that runs them.

    sft -> [ sample -> feedback -> pairs -> align ] -> evaluate -> report

With ``draft.turn`` a round begins with a stage ``openings``: what comes before the turn that the weak model is trained for.

The brackets are a round (:mod:`cowest.stages.rounds`): it drafts with a policy and leaves a better one; how many there are
shows as they go (:mod:`cowest.stages.loop`). A weak model that is served elsewhere is not trained: sample -> feedback -> pairs ->
evaluate -> report. An online objective (grpo) draws and refines drafts while it trains: sft -> align -> evaluate -> report.

A stage runs when its outputs are missing, unfinished or stale; otherwise it is reused, and the reason is said either way
(:mod:`cowest.run.freshness` has the rule). An unfinished stage continues record by record. Several domains are run one after the
other, each in its own folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from cowest.assembly.context import Context
from cowest.assembly.here import check_here
from cowest.assembly.objects import NOTHING, Objects
from cowest.assembly.prepare import check_installed, prepare
from cowest.assembly.systems import GUARD
from cowest.errors import ConfigError
from cowest.ledger.ledger import LedgerSummary, purpose
from cowest.protocols import Reporter
from cowest.recipe.config import RunConfig, with_settings
from cowest.recipe.kept import keep_recipe, kept_recipe, kept_task
from cowest.run.freshness import Verdict, inputs_of, judge, make_room
from cowest.run.live import LoggedReporter
from cowest.run.manifest import StageEntry
from cowest.run.progress import QuietReporter
from cowest.run.store import RunDir
from cowest.stages.base import Stage, checked, executed
from cowest.stages.by_round import drift_stage
from cowest.stages.certified import certified_stage
from cowest.stages.current import require_current
from cowest.stages.evaluate import evaluate_stage
from cowest.stages.export import FILES, merged
from cowest.stages.feedback import feedback_stage
from cowest.stages.gepa import GEPA, check_queries, gepa_stages
from cowest.stages.guard import calibration_queries, check_guarded, check_rows, guard_stages
from cowest.stages.learn import SFT, align_stage, learned_from
from cowest.stages.loop import begun, rounds_of
from cowest.stages.openings import openings_stage
from cowest.stages.pairs import pairs_stage
from cowest.stages.reporting import Written, write_results
from cowest.stages.rounds import Round
from cowest.stages.sample import sample_stage
from cowest.stages.upgrade import upgrade
from cowest.systems.optimised import optimised_file
from cowest.systems.registry import evaluated
from cowest.systems.spec import SystemSpec
from cowest.training.objectives import LABELS, PAIRS
from cowest.types import ModelRef


def stages_of(config: RunConfig, rounds: Sequence[Round] | None = None) -> tuple[Stage, ...]:
    """The stages that a recipe asks for, in order, with these rounds of it; with the first, unless they are named."""
    specs = evaluated(config)[0]
    trains, needs = config.weak.trainable, {spec.needs for spec in specs}
    shows_drafts, guarded = "sample" in needs, "guard" in needs
    learns_from = learned_from(config) if trains else None
    rounds = rounds or rounds_of(config)[:1]
    judges = len(config.feedback.compare)
    reads = {
        "sft": trains,
        **{round_.file("align"): learns_from is not None for round_ in rounds},
        "drafts.jsonl": shows_drafts,
        GUARD: guarded,
        **{optimised_file(spec.name): True for spec in specs if spec.optimises},
    }
    return checked(
        (
            *((SFT,) if trains else ()),
            *((sample_stage(rounds[0]),) if shows_drafts and learns_from == () else ()),
            *(stage for round_ in rounds for stage in stages_of_round(round_, learns_from, judges)),
            *(guard_stages(config, rounds) if guarded else ()),
            *gepa_stages(config, rounds, specs, counted=True),
            evaluate_stage(tuple(name for name, wanted in reads.items() if wanted)),
        )
    )


def stages_now(context: Context) -> tuple[Stage, ...]:
    """The stages with the rounds that have begun: another may follow once the last of them is done."""
    return stages_of(context.config, begun(context))


def stages_of_round(round_: Round, learns_from: Sequence[str] | None = (PAIRS,), judges: int = 0) -> tuple[Stage, ...]:
    """One pass of the loop, with so many judges that compare answers; without alignment (None) its pairs are for others.

    An alignment that learns from no file draws drafts of its own, and asks the strong model about those: it is the whole round.
    """
    if learns_from is not None and not learns_from:
        return (*openings_stage(round_), align_stage(round_, ()))
    drift = (drift_stage(round_),) if round_.number > 1 else ()
    labels = LABELS in (learns_from or ())
    found = (
        *openings_stage(round_),
        sample_stage(round_),
        *drift,
        feedback_stage(round_, judges),
        pairs_stage(round_, labels),
    )
    return (*found, align_stage(round_, learns_from)) if learns_from else found


@dataclass(frozen=True, slots=True)
class RunSummary(Written):
    """Where a run's outputs are, its results by task ('' is the only task of a recipe), and what it has paid for."""

    bill: LedgerSummary | None = None


async def run(config: RunConfig, out: Path, reporter: Reporter, objects: Objects = NOTHING) -> RunSummary:
    """Run or continue a recipe in ``out``; ``objects`` are what a script has handed over (:mod:`cowest.api`).

    Raises ConfigError, DataError, ModelNotFoundError (before anything is paid) and StageError (a stage could not do its work).
    """
    logged = LoggedReporter(reporter, out, "run")
    check_installed(config)
    contexts = prepare(config, out, logged, objects=objects)
    check_guards(contexts)
    check_here(config)
    models = contexts[0].models
    with logged.opened():
        try:
            for context in contexts:
                with context.run.locked():
                    upgrade(context, stages_now(context), out)
            for number, context in enumerate(contexts):
                with context.run.locked():
                    if number == 0:
                        keep_recipe(config, out)
                    await run_stages(context)
            bill = models.bill()
        finally:
            await models.aclose()
        written = await write_results(config, contexts, out)
    return RunSummary(out, written.report, written.results, bill)


async def run_only(config: RunConfig, name: str, out: Path, reporter: Reporter) -> None:
    """Run the stages of one domain of a recipe, without summary and report."""
    if name not in config.tasks:
        raise ConfigError(f"--only {name!r}: the recipe's domains are {', '.join(config.tasks) or 'not named'}")
    single = config.model_copy(update={"tasks": {name: config.tasks[name]}})
    logged = LoggedReporter(reporter, out / name, "run", log=False)  # what it prints is kept there by who started it
    context = prepare(single, out, logged)[0]
    check_guards([context])
    with logged.opened():
        try:
            with context.run.locked():
                upgrade(context, stages_now(context), out)
                await run_stages(context)
        finally:
            await context.models.aclose()


def check_guards(contexts: Sequence[Context]) -> None:
    """Raise, before anything is paid, where a recipe evaluates ``guarded`` or ``cascade`` and can have no guard, or ``*_gepa``.

    Raises MissingExtraError, ConfigError or DataError (no questions to calibrate on, or to optimise a prompt by).
    """
    for context in contexts:
        specs = evaluated(context.config)[0]
        check_rows(context, specs)
        check_queries(context, specs)


async def guard(run: Path, settings: Mapping[str, JsonValue], reporter: Reporter) -> list[Context]:
    """Calibrate and certify a run's guard, and put its rows beside the run's systems: :mod:`cowest.stages.guard`.

    ``settings`` are of the recipe's section ``guard``, by dotted key. What the run lacks is made first. Raises as :func:`run` does.
    """
    config = with_settings(kept_recipe(run), settings)
    check_guarded(config)
    logged = LoggedReporter(reporter, run, "guard")
    contexts = prepare(config, run, logged)
    check_here(config)
    try:
        for context in contexts:
            calibration_queries(context)  # raises before anything is paid, and leaves no trace
        with logged.opened():
            for number, context in enumerate(contexts):
                with context.run.locked():
                    if number == 0:
                        keep_recipe(config, run)
                    await run_stages(context, stages_with_guard)
            await write_results(config, contexts, run)
    finally:
        await contexts[0].models.aclose()
    return contexts


def stages_with_guard(context: Context) -> tuple[Stage, ...]:
    """A run's stages with those of the guard, and its rows after the evaluation."""
    found = stages_now(context)
    there = {stage.name for stage in found}
    made = guard_stages(context.config, begun(context))
    return checked((*found, *(stage for stage in made if stage.name not in there), certified_stage()))


async def report_again(out: Path, target: Path | None = None) -> RunSummary:
    """Rebuild the report of a finished run from its files alone; into ``target`` where the run's folder may not be written.

    Raises ConfigError where ``out`` is no run, StageError where a part of it was made with another recipe, or is damaged.
    """
    config = kept_recipe(out)
    contexts = prepare(config, out, QuietReporter(), offline=True)
    for context in contexts:
        require_current(context, stages_now(context))
    written = await write_results(config, contexts, target or out)
    return RunSummary(out, written.report, written.results)


def export_weak(run: Path, which: str, target: Path, task: str | None = None) -> ModelRef:
    """Merge a task's weak model (``sft`` or ``aligned``) into one checkpoint in ``target``.

    Raises ConfigError where the run has none, StageError or DataError where it is not what recipe.yaml says.
    """
    if which not in FILES:
        raise ConfigError(f"--which {which!r}: say 'aligned' or 'sft'")
    config, out, name = kept_task(run, task)
    context = next(c for c in prepare(config, out, QuietReporter(), offline=True) if c.name == name)
    require_trained(context, which)
    return merged(context, which, target)


def require_trained(context: Context, which: str = "aligned") -> None:
    """Raise StageError where the weak model (``sft`` or ``aligned``) was made with something else than the recipe says."""
    aligns = {round_.stage("align") for round_ in begun(context)} if which == "aligned" else set[str]()
    require_current(context, stages_now(context), {"sft"} | aligns)


def require_guarded(context: Context) -> None:
    """Raise StageError where the guard was made with other models, prompts or settings than the recipe says."""
    require_current(context, stages_with_guard(context), {"calibrate", "guard"}, "cowest guard")


def require_optimised(context: Context, spec: SystemSpec) -> None:
    """Raise StageError where a system's prompt was found with other models, questions or settings than the recipe says."""
    require_current(context, stages_now(context), {f"{GEPA} {spec.name}"})


async def run_stages(
    context: Context, stages: Callable[[Context], Sequence[Stage]] = stages_now, pool: Sequence[RunDir] = ()
) -> None:
    """Run one task's stages in order, reusing what is fresh, or what another run directory of ``pool`` has made.

    ``stages`` is asked again after each of them: a round may be followed by another.
    """
    done = set[str]()
    while (stage := next((one for one in stages(context) if one.name not in done), None)) is not None:
        done.add(stage.name)
        purpose.set(context.purpose(stage.name))  # every paid call is entered with what it was for
        depends, inputs = stage.depends(context), inputs_of(context.run, stage)
        verdict = judge(context.run, stage, depends, inputs)
        for donor in () if verdict.kept else pool:
            if judge(donor, stage, depends, inputs).fresh:
                context.run.adopt(donor, stage.name, stage.writes)
                verdict = Verdict("reuse", f" from {donor.path.name}")
                break
        context.reporter.info(f"{context.label}{stage.name}: {verdict}")
        if verdict.fresh:
            continue
        make_room(context.run, stage, verdict)
        context.models.new_step()
        before = context.run.manifest().stages.get(stage.name)
        earlier = before.seconds if before is not None and verdict.kept else 0.0
        known = {name: identity for name, identity in inputs.items() if identity is not None}
        made_with = dict(depends.values)
        entry = StageEntry(status="running", version=stage.version, made_with=made_with, inputs=known, seconds=earlier)
        await executed(context, stage, entry)
