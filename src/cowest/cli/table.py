"""``cowest table`` and ``cowest prompts``: the options, and what is printed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from cowest.errors import ConfigError
from cowest.run import stopping

Set = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads this annotation
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting by its dotted key; may be repeated."),
]


def table(
    recipe: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(help="The recipe, a YAML file.", show_default=False),
    ] = None,
    out: Annotated[Optional[Path], typer.Option(help="The table's folder; default runs/NAME.")] = None,  # noqa: UP045
    rows: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Rows, with commas, in place of the recipe's table.rows."),
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Units (a task with a seed) side by side, one thread each; for local models.")
    ] = 1,
    only: Annotated[Optional[str], typer.Option(help="Only this unit, such as medicine-11; no table.")] = None,  # noqa: UP045
    reuse: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(help="The folder of another table, whose finished trainings and answers are taken over."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the systems that can be rows.")] = False,
    set_: Set = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json instead of tables.")] = False,
) -> None:
    """Compare systems row by row: the paper's table, or an ablation. Rows share models, drafts and every request."""
    if list_:
        from cowest.systems.registry import every_system

        systems = every_system()
        width = max(len(system.name) for system in systems)
        for system in systems:
            print(f"{system.name:<{width}}  {system.about}")
        return
    if recipe is None:
        raise typer.BadParameter("give a recipe, such as recipes/lab-table.yaml; --list shows the rows that there are")
    from cowest.cli.output_table import print_table
    from cowest.recipe.config import load_config
    from cowest.run.progress import default_reporter
    from cowest.table.make import make_table
    from cowest.table.plan import make_plan, table_folder
    from cowest.table.run import run_table

    overrides = [*(set_ or []), *([f"table.rows=[{rows}]"] if rows else [])]
    for other in reuse or ():
        if not other.is_dir():
            raise ConfigError(f"--reuse {other}: no such folder; give that of another table, such as runs/lab-table")
    config = load_config(recipe, overrides)
    plan, folder, reporter = make_plan(config), out or table_folder(config), default_reporter()
    if only is not None:
        stopping.run(run_table(plan, folder, reporter, only, reuse or []))
        return
    made = make_table(plan, recipe, overrides, folder, jobs, reporter, reuse or [])
    if as_json:
        print(json.dumps(made.results.model_dump(mode="json", by_alias=True), indent=2))
    else:
        print_table(made.results, made.written, made.bill)


def prompts(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TASK_OR_RECIPE",
            help="ifqa, pubmedqa, prosocial (samples of ours), a lab domain, a recipe, or a run's folder.",
            show_default=False,
        ),
    ],
    system: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="The row; unset: every row.", show_default=False),
    ] = None,
    example: Annotated[int, typer.Option(min=0, help="Which test query, from 0.")] = 0,
    task: Annotated[Optional[str], typer.Option(help="Which task of a recipe with several.")] = None,  # noqa: UP045
    set_: Set = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the exact messages of a row for an example; texts of models in them are the example's right answer.

    A prompt that was optimised (rows *_gepa) is that of the run's folder (of runs/NAME for a recipe), where there is one.
    """
    from cowest.table.show import messages_of, print_messages

    shown = asyncio.run(messages_of(target, system, example, task, set_ or []))
    if as_json:
        print(json.dumps([s.model_dump(mode="json") for s in shown], indent=2, ensure_ascii=False))
    else:
        print_messages(shown)
