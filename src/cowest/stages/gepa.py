"""Stages ``gepa SYSTEM``: the strong model's prompt of a system, optimised on the training queries by the library gepa.

The queries are those that the feedback asks about, a part of them kept apart to choose by; nothing of validation or test is
looked at. Each answer and each reflection is in ``gepa/SYSTEM.jsonl`` before the search goes on, and is asked for no second time:
a search that was stopped is made again from the start, by the same seed, and finds its answers there.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version

from cowest.assembly.context import Context
from cowest.errors import BudgetExceededError, DataError, StageError
from cowest.protocols import ChatModel
from cowest.recipe.config import RunConfig
from cowest.recipe.outcome import settings_of
from cowest.run.freshness import Depends
from cowest.run.identity import derive_seed
from cowest.run.store import write_atomic
from cowest.stages import depends
from cowest.stages.base import Done, Stage
from cowest.stages.evaluate import not_aligned, weak_ref
from cowest.stages.learn import training_queries
from cowest.stages.loop import feedback_calls, most_feedback_calls
from cowest.stages.optimising import Asked, Drafting, Trial, draft_key, trials_file
from cowest.stages.rounds import Round
from cowest.systems.optimised import Optimised, Tried, optimised_file
from cowest.systems.spec import SystemSpec, Which
from cowest.training.objectives import OBJECTIVES, as_online
from cowest.training.prompt_search import Search, StopSearch, search
from cowest.types import Completion, Example, Usage

GEPA = "gepa"
"""What the stages' names begin with."""
FEWEST_CALLS = 16
"""With fewer no proposal could be tried."""
MOST_CHOOSING = 50
FEWEST_QUERIES = 8


def most_calls(context: Context, counted: bool) -> int:
    """How many calls a prompt may take; ``counted``: the run's feedback is there, and is the measure where none is set."""
    named = context.config.comparison.gepa.calls
    if named is not None:
        return named
    made = feedback_calls(context) if counted else 0
    return max(FEWEST_CALLS, made or most_feedback_calls(context))


def queries_of(context: Context, most: int) -> tuple[Sequence[Example], Sequence[Example]]:
    """The queries to learn from, and those to choose by: a tenth of the calls, half of the queries at most.

    Raises DataError where there are too few with an answer to score by.
    """
    found = [e for e in training_queries(context) if e.references]
    if len(found) < FEWEST_QUERIES:
        raise DataError(
            f"task {context.task.name}: {len(found)} training questions with references are drafted for, and optimising a prompt "
            f"takes {FEWEST_QUERIES} at least: raise draft.queries, or leave the rows *_gepa out"
        )
    n = min(MOST_CHOOSING, len(found) // 2, max(4, most // 10))
    drawn = random.Random(derive_seed(context.config.seed, GEPA, "choosing")).sample(found, n)
    chosen = {e.id for e in drawn}
    return [e for e in found if e.id not in chosen], [e for e in found if e.id in chosen]


def check_queries(context: Context, specs: Iterable[SystemSpec]) -> None:
    """See to it, before anything is paid, that there are questions to optimise by. Raises DataError."""
    if any(spec.optimises for spec in specs):
        queries_of(context, FEWEST_CALLS)


def installed_version() -> str:
    """The library's version; '' where it is not installed."""
    try:
        return version("gepa")
    except PackageNotFoundError:
        return ""


def gepa_stages(
    config: RunConfig, rounds: Sequence[Round], specs: Sequence[SystemSpec], counted: bool
) -> tuple[Stage, ...]:
    """A stage for each of ``specs`` whose prompt is optimised. ``counted``: the stages before them make the feedback."""
    online = config.weak.trainable and config.align.objective != "off" and _draws(config)
    measure: tuple[str, ...] = ()
    if counted and config.comparison.gepa.calls is None:
        measure = tuple(round_.file("align" if online else "feedback.jsonl") for round_ in rounds)
    found = []
    for spec in (spec for spec in specs if spec.optimises):
        trained = {"sft": ("sft",), "align": tuple(round_.file("align") for round_ in rounds)}.get(spec.needs, ())
        reads = tuple(dict.fromkeys((*(trained if config.weak.trainable else ()), *measure)))
        found.append(
            Stage(
                f"{GEPA} {spec.name}",
                1,
                reads,
                (optimised_file(spec.name), trials_file(spec.name)),
                partial(_depends, spec=spec, counted=counted),
                partial(_optimise, spec=spec, counted=counted),
            )
        )
    return tuple(found)


def _draws(config: RunConfig) -> bool:
    return as_online(OBJECTIVES.find(config.align.objective, "align.objective")) is not None


def _depends(context: Context, spec: SystemSpec, counted: bool) -> Depends:
    c, most = context.config, most_calls(context, counted)
    learning, choosing = queries_of(context, most)
    frames, first, reflects = context.frames, choosing[0], context.models.sources.reflects
    found = (
        settings_of("evaluate", c.evaluate, leave_out=("systems", "queries"))
        | settings_of("table.gepa", c.comparison.gepa, leave_out=("calls", "model"))
        | depends.value("the calls of table.gepa", most)
        | depends.questions("learning", learning)
        | depends.questions("choosing", choosing)
        | depends.value("the instruction", context.task.instruction)
        | depends.seen(context, "weak", "strong")
        | context.strong.identity("strong")
        | (depends.value("table.gepa.model", None) if reflects is None else reflects.identity("table.gepa.model"))
        | depends.value("the metric", context.metric)
        | depends.value("seed", c.seed)
        | depends.value("gepa's version", installed_version())
    )
    if spec.optimises == "solo":
        return found | depends.prompt("the strong model alone", frames.solo(first))
    found |= depends.prompt("a draft", frames.draft(first)) | depends.prompt(
        "the collaboration", frames.refine(first, "DRAFT")
    )
    return found if context.weak.trainable else found | context.weak.identity("weak")


async def _optimise(context: Context, spec: SystemSpec, counted: bool) -> Done:
    most = most_calls(context, counted)
    learning, choosing = queries_of(context, most)
    if (why := not_aligned(context, spec)) is not None:
        context.reporter.info(f"{context.label}{GEPA} {spec.name}: warning: nothing to optimise: {why}")
        return _written(context, spec, Asked(context, spec, 0), Search(), (0, 0), aligned=False)
    opened, drafts = list[ChatModel](), dict[str, asyncio.Future[Completion]]()

    def weak(which: Which) -> ChatModel:
        if not opened:
            opened.append(context.models.weak(weak_ref(context, which)))
        return Drafting(opened[0], drafts)

    asked, found = Asked(context, spec, most, weak), Search()
    drafts |= _drafts_there(context, [*learning, *choosing], asked.kept.values())
    seed = derive_seed(context.config.seed, GEPA)
    context.reporter.start(f"{context.label}{GEPA} {spec.name}", most)
    try:
        await _in_thread(asked, lambda: search(context.task.instruction, learning, choosing, asked, seed, found))
    except BudgetExceededError as error:
        told = f"{context.label}{GEPA} {spec.name}: {asked.asked} of {most} calls"
        raise BudgetExceededError(f"{told}. {error}") from None
    finally:
        await asked.aclose()
        for draft in drafts.values():
            draft.cancel()
        await asyncio.gather(*drafts.values(), return_exceptions=True)
        for model in opened:
            await model.aclose()
        context.reporter.finish()
    return _written(context, spec, asked, found, (len(learning), len(choosing)))


def _drafts_there(
    context: Context, queries: Sequence[Example], trials: Iterable[Trial]
) -> dict[str, asyncio.Future[Completion]]:
    """The drafts that a search has had before it was stopped, by their requests."""
    by_id, found = {e.id: e for e in queries}, dict[str, asyncio.Future[Completion]]()
    for trial in trials:
        if trial.draft is not None and trial.example_id in by_id:
            asked = context.frames.draft(by_id[trial.example_id])
            known = found[draft_key(asked, context.config.evaluate.draft)] = asyncio.get_running_loop().create_future()
            known.set_result(Completion(text=trial.draft))
    return found


async def _in_thread(asked: Asked, work: Callable[[], None]) -> None:
    """The search, which blocks; it ends by an exception where no call is left. Raises what a call of it has raised."""

    def until_stopped() -> None:
        try:
            work()
        except StopSearch:
            return

    try:
        await asyncio.to_thread(until_stopped)
    finally:
        asked.stop()
    if asked.failure is not None:
        raise asked.failure


def _written(
    context: Context, spec: SystemSpec, asked: Asked, found: Search, sizes: tuple[int, int], aligned: bool = True
) -> Done:
    """The search's outcome in the run's files, said and counted."""
    own, trials = context.task.instruction, asked.trials()
    if aligned and not found.tried:
        raise StageError(
            f"{GEPA} {spec.name}: {asked.asked} of {asked.most} calls did not answer the {sizes[1]} choosing questions once: "
            "raise table.gepa.calls"
        )
    text, score, _ = found.best if found.tried else (own, None, 0)
    before = found.tried[0][1] if found.tried else None
    reflections = sum(not trial.example_id for trial in trials)
    assert spec.optimises
    record = Optimised(
        system=spec.name,
        asks=spec.optimises,
        own=own,
        instruction=text,
        score=score,
        own_score=before,
        learning=sizes[0],
        choosing=sizes[1],
        calls=asked.asked,
        reflections=reflections,
        refused=found.refused,
        usage=sum((trial.usage for trial in trials), Usage()),
        tried=tuple(Tried(instruction=t, score=s, calls=n) for t, s, n in found.tried),
        ended="not aligned" if not aligned else "calls" if found.ended == "stopped" else found.ended,
        gepa=installed_version(),
    )
    context.run.file(trials_file(spec.name), Trial).replace(trials)
    write_atomic(context.path(optimised_file(spec.name)), record.model_dump_json(indent=1) + "\n")
    counts = {"calls": asked.asked, "reflections": reflections, "refused": found.refused}
    if not aligned:
        return Done(counts)
    counts["tried"] = len(found.tried)
    context.reporter.info(f"{context.label}{GEPA} {spec.name}: {summary(record)}")
    context.tracker.log(f"{context.label}{GEPA} {spec.name}", {"score": score or 0.0, "own_score": before or 0.0})
    errors = [trial.error for trial in trials if trial.error is not None and not trial.example_id]
    warning = f"{len(errors)} of {reflections} reflections failed; the last one: {errors[-1]}" if errors else ""
    if warning:
        context.reporter.info(f"{context.label}{GEPA} {spec.name}: warning: {warning}")
    return Done(counts, warnings=(warning,) if warning else ())


def summary(record: Optimised) -> str:
    """A search in one sentence."""
    cost = f"{record.calls} calls, {record.reflections} of them reflections"
    if record.usage.cost_usd:
        cost += f", USD {record.usage.cost_usd:.4f}"
    if record.own_score is None or record.score is None:
        return f"no search: {record.ended} ({cost})"
    if record.instruction == record.own:
        why = "; it has all of them right" if record.ended == "all right" else ""
        return (
            f"the task's own instruction stays, {100 * record.own_score:.1f} on {record.choosing} training questions{why} "
            f"({len(record.tried) - 1} others were tried on them; {cost})"
        )
    return (
        f"{100 * record.own_score:.1f} -> {100 * record.score:.1f} on {record.choosing} training questions kept to choose by, of "
        f"{len(record.tried)} instructions ({cost})"
    )
