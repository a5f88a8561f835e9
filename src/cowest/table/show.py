"""``cowest prompts``: the exact messages of a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import JsonValue

from cowest.assembly.build import build_frames
from cowest.assembly.context import Context
from cowest.assembly.prepare import prepare
from cowest.assembly.stand_ins import dry_run
from cowest.assembly.systems import Retrievers, check_systems
from cowest.errors import ConfigError
from cowest.recipe.config import RunConfig, config_from_dict, load_config
from cowest.recipe.kept import kept_recipe
from cowest.recipe.problems import did_you_mean
from cowest.recipe.shipped import packaged_recipe
from cowest.run.progress import QuietReporter
from cowest.run.store import RunDir
from cowest.stages.evaluate import test_queries
from cowest.systems.optimised import optimised_file
from cowest.systems.registry import TABLE, find_systems, variant_of
from cowest.types import Message, Record, Sampling

SAMPLES = ("ifqa", "pubmedqa", "prosocial")
DOMAINS = ("counterfactuals", "medicine", "ethics")


class Shown(Record):
    """One request of a row."""

    row: str
    call: int
    model: str
    sampling: Sampling
    messages: tuple[Message, ...]


def recipe_of(target: str, overrides: Sequence[str] = ()) -> RunConfig:
    """A recipe from its path, that of a run, or one around a task's name. Raises ConfigError for neither."""
    if target in SAMPLES:  # nothing is asked, so any models will do: these have no window to fit into
        served: JsonValue = {"kind": "openai", "model": "any", "api_key_env": None}
        return config_from_dict(
            {"name": target, "task": {"kind": target, "sample": True}, "weak": served, "strong": served}
        )
    if target in DOMAINS:
        lab = load_config(packaged_recipe("lab"))
        return lab.model_copy(update={"name": target, "tasks": {target: lab.tasks[target]}})
    if Path(target).is_dir():
        if overrides:
            raise ConfigError(f"--set: {target} is a run, whose recipe is fixed; give a recipe")
        return kept_recipe(Path(target))
    if Path(target).suffix not in (".yaml", ".yml") and not Path(target).exists():
        known = (*SAMPLES, *DOMAINS)
        hint = did_you_mean(target, known) or f"there are: {', '.join(known)}"
        raise ConfigError(f"{target}: neither a task that ships with cowest nor a recipe; {hint}")
    return load_config(Path(target), overrides)


async def messages_of(
    target: str, system: str | None, number: int, task: str | None, overrides: Sequence[str]
) -> list[Shown]:
    """The requests that each row makes for test query ``number``. Raises ConfigError for what is not there."""
    config = recipe_of(target, overrides)
    run = Path(target) if Path(target).is_dir() else Path("runs") / config.name
    contexts = prepare(config, run, QuietReporter(), offline=True)
    context = _of_task(contexts, task)
    queries = test_queries(context)
    if number >= len(queries):
        raise ConfigError(f"--example {number}: the task has {len(queries)} test queries, counted from 0")
    rows, retrievers, shown = find_systems([system], "SYSTEM") if system else TABLE, Retrievers(), list[Shown]()
    check_systems(context, rows, "SYSTEM")
    for row in rows:
        _, changed = variant_of(context.config, row)
        mine = replace(context, config=changed, frames=build_frames(changed, context.task))
        if row.optimises:
            mine = replace(mine, run=_optimised_run(mine, run, row.name))
        sure = 1e-9 if row.needs == "guard" else 1.0  # a guard then asks all that it can
        _, asked = await dry_run(mine, row, queries[number], retrievers, sure)
        shown += [
            Shown(row=row.name, call=i, model=a.model, sampling=a.sampling, messages=a.messages)
            for i, a in enumerate(asked, start=1)
        ]
    return shown


def _optimised_run(context: Context, run: Path, row: str) -> RunDir:
    """Where a row's prompt is: in the run's folder of the task, or in the first of a table's that has it."""
    if context.path(optimised_file(row)).is_file():
        return context.run
    task = context.run.path.name if context.run.path != run else ""
    found = sorted(path.parent.parent for path in run.glob(f"*/**/{optimised_file(row)}"))
    mine = [path for path in found if not task or path.relative_to(run).parts[0].startswith(f"{task}-")]
    return RunDir(mine[0]) if mine else context.run


def _of_task(contexts: Sequence[Context], task: str | None) -> Context:
    by_name = {c.run.path.name if len(contexts) > 1 else c.task.name: c for c in contexts}
    if task is None:
        return contexts[0]
    if task not in by_name:
        raise ConfigError(f"--task {task}: the recipe has {', '.join(by_name)}")
    return by_name[task]


def print_messages(shown: Sequence[Shown]) -> None:
    """Plain text on stdout, so that it can be read, compared and piped."""
    for one in shown:
        s = one.sampling
        print(f"=== {one.row}, call {one.call}: {one.model} (temperature {s.temperature:g}, max_tokens {s.max_tokens})")
        for message in one.messages:
            print(f"--- {message.role}\n{message.content}")
        print()
