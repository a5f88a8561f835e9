"""cowest from Python: run, evaluate and compare with objects of your own in place of sections of a recipe.

::

    done = await run("recipe.yaml", task=my_task, strong=my_model)      # within a running event loop, such as a notebook's
    done = run_sync("recipe.yaml", task=my_task, strong=my_model)       # in a script

    done = import_data("faq.csv", "mine", ["frage=input"]); await run("mine/recipe.yaml")

Whatever is handed over is known by its ``name``: one that has changed should have another, or what it made is used again. A
package brings the same things by entry points (:mod:`cowest.recipe.registry`), and then recipes name them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TypedDict, TypeVar, Unpack

from pydantic import JsonValue

from cowest.assembly.objects import Objects
from cowest.errors import ConfigError
from cowest.importing.importer import Imported as Imported
from cowest.importing.importer import import_data as import_data
from cowest.pipeline import RunSummary
from cowest.pipeline import run as run_pipeline
from cowest.protocols import ChatModel, DraftFormat, Reporter, Scorer, Signal, System, Task, Tracker
from cowest.recipe.config import RunConfig, config_from_dict, load_config, with_settings, with_values
from cowest.results import Results
from cowest.run.progress import QuietReporter
from cowest.scoring.metrics import Metric, use_metric
from cowest.stages.answers import answer_all, results_of_systems
from cowest.systems.spec import SystemSpec
from cowest.table.make import finished
from cowest.table.plan import make_plan, table_folder
from cowest.table.results import TableResults
from cowest.table.run import run_table

T = TypeVar("T")
Recipe = RunConfig | Mapping[str, JsonValue] | Path | str


class Handed(TypedDict, total=False):
    """The objects that take the place of a recipe's sections; each may be left out.

    Attributes:
        task: The data with its instruction and metrics.
        weak: A weak model that is not trained here; leave it to the recipe to have one trained.
        strong: The strong model.
        judge: A model that scores answers against the reference.
        compare: Models that compare answers with the strong model's alone, without references.
        scorer: What scores answers, in place of the task's metric.
        metric: The main metric, beside the task's own.
        draft_format: What the weak model writes.
        signal: What a draft is worth.
        systems: More systems to evaluate, each built already, or as a SystemSpec that is given the run's parts.
        tracker: Where losses, scores and counts go.
    """

    task: Task
    weak: ChatModel
    strong: ChatModel
    judge: ChatModel
    compare: Sequence[ChatModel]
    scorer: Scorer
    metric: Metric
    draft_format: DraftFormat
    signal: Signal
    systems: Sequence[System | SystemSpec]
    tracker: Tracker


async def run(
    recipe: Recipe, out: Path | str | None = None, *, reporter: Reporter | None = None, **handed: Unpack[Handed]
) -> RunSummary:
    """Run or continue a recipe in ``out`` (runs/NAME, unless given), with these objects in place of its sections.

    Args:
        recipe: A file, a mapping as in a file, or a RunConfig; sections that an object takes the place of may be left out.
        out: The run directory.
        reporter: Where progress goes; nowhere, unless given.
        handed: See :class:`Handed`.

    Raises:
        CowestError: as :func:`cowest.pipeline.run`.
    """
    objects = _objects(handed)
    config = _config(recipe, objects)
    target = Path("runs") / config.name if out is None else Path(out)
    return await run_pipeline(config, target, reporter or QuietReporter(), objects)


def run_sync(
    recipe: Recipe, out: Path | str | None = None, *, reporter: Reporter | None = None, **handed: Unpack[Handed]
) -> RunSummary:
    """:func:`run` for scripts, in which no event loop runs. Raises RuntimeError within one: await ``run`` there."""
    return _sync(run(recipe, out, reporter=reporter, **handed))


async def table(
    recipe: Recipe, out: Path | str | None = None, *, reporter: Reporter | None = None, **handed: Unpack[Handed]
) -> TableResults:
    """The rows of ``table.rows``, and ``systems`` as more of them, side by side; the arguments are those of :func:`run`.

    Raises:
        CowestError: as :func:`cowest.table.run.run_table`.
    """
    objects = _objects(handed)
    config = _config(recipe, objects)
    plan = make_plan(config, objects)
    target = table_folder(config) if out is None else Path(out)
    bill = await run_table(plan, target, reporter or QuietReporter())
    return finished(plan, target, bill).results


def table_sync(
    recipe: Recipe, out: Path | str | None = None, *, reporter: Reporter | None = None, **handed: Unpack[Handed]
) -> TableResults:
    """:func:`table` for scripts."""
    return _sync(table(recipe, out, reporter=reporter, **handed))


async def evaluate(
    systems: Sequence[System],
    task: Task,
    *,
    metrics: Sequence[str | Metric] | None = None,
    queries: int | None = None,
    seed: int = 0,
    out: Path | str | None = None,
    reporter: Reporter | None = None,
) -> Results:
    """Answer a task's test queries with each system; means with intervals, and paired comparisons.

    Args:
        systems: Objects with a ``name`` and ``async def answer(example)``.
        task: The data.
        metrics: Names or objects, the main one first; the task's, unless given.
        queries: The first so many of the test queries; all, unless given.
        seed: Of the bootstrap.
        out: A folder that keeps every answer (``NAME.jsonl``): the same call continues there after a stop.
        reporter: Where progress goes.

    Raises:
        ConfigError: two systems of one name, an unknown metric.
        StageError: calls keep failing.
    """
    names = [system.name for system in systems]
    if len(set(names)) < len(names):
        raise ConfigError(f"systems: two of them have the same name ({', '.join(names)})")
    measured = tuple(m if isinstance(m, str) else use_metric(m) for m in metrics or task.metrics)
    examples = task.examples("test")[:queries]
    folder = None if out is None else Path(out)
    answers = {s.name: await answer_all(s, task, examples, folder, reporter or QuietReporter()) for s in systems}
    return results_of_systems(task, measured, examples, answers, seed)


def evaluate_sync(
    systems: Sequence[System],
    task: Task,
    *,
    metrics: Sequence[str | Metric] | None = None,
    queries: int | None = None,
    seed: int = 0,
    out: Path | str | None = None,
    reporter: Reporter | None = None,
) -> Results:
    """:func:`evaluate` for scripts."""
    return _sync(evaluate(systems, task, metrics=metrics, queries=queries, seed=seed, out=out, reporter=reporter))


def _sync(work: Coroutine[object, object, T]) -> T:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    work.close()
    raise RuntimeError("an event loop runs already (a notebook, an async function): await the function without _sync")


def _objects(handed: Handed) -> Objects:
    metric, systems = handed.get("metric"), handed.get("systems", ())
    return Objects(
        task=handed.get("task"),
        weak=handed.get("weak"),
        strong=handed.get("strong"),
        judge=handed.get("judge"),
        compare=tuple(handed.get("compare", ())),
        scorer=handed.get("scorer"),
        metric=None if metric is None else use_metric(metric),
        format=handed.get("draft_format"),
        signal=handed.get("signal"),
        systems=tuple(s if isinstance(s, SystemSpec) else _spec(s) for s in systems),
        tracker=handed.get("tracker"),
    )


def _spec(system: System) -> SystemSpec:
    """A system that is built already."""
    return SystemSpec(system.name, "handed over", lambda parts: system)


def _config(recipe: Recipe, objects: Objects) -> RunConfig:
    """The recipe with the objects' names in place of the sections that they stand for, so that the run directory tells."""
    named: dict[str, JsonValue] = {}
    for section, thing in (("task", objects.task), ("weak", objects.weak), ("strong", objects.strong)):
        if thing is not None:
            named[section] = {"kind": "object", "name": thing.name}
    if objects.task is not None:
        named["tasks"] = {}
    if objects.judge is not None:
        named["feedback.judge"] = {"kind": "object", "name": objects.judge.name}
    if objects.compare:
        named["feedback.compare"] = [{"kind": "object", "name": model.name} for model in objects.compare]
    if objects.format is not None:
        named["draft.format"] = objects.format.name
    if objects.signal is not None:
        named["pairs.signal"] = objects.signal.name
    if isinstance(recipe, RunConfig):
        return with_settings(recipe, named)
    if isinstance(recipe, Mapping):
        return config_from_dict(with_values(recipe, named))
    return load_config(Path(recipe), values=named)
