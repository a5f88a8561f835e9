"""``cowest runs``, ``watch``, ``compare`` and ``prune``: the options, and what is printed as JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Optional, TypeAlias

import typer

Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")]
System: TypeAlias = Annotated[
    Optional[str],  # noqa: UP045 - typer reads this annotation
    typer.Option(help="Whose answers; default: collab_aligned, or what comes nearest."),
]
Run: TypeAlias = Annotated[Path, typer.Argument(metavar="RUN", help="A run or table directory.", show_default=False)]


def runs(
    directory: Annotated[Path, typer.Argument(help="The folder with the runs.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List the runs and tables in a folder: state, task, models, main numbers, what was paid, size."""
    from cowest.cli.output_runs import print_runs
    from cowest.errors import ConfigError
    from cowest.runs.found import found, runs_in

    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such folder; `cowest run RECIPE` makes runs/NAME")
    listed = [found(path) for path in runs_in(directory)]
    if as_json:
        print(json.dumps([run.model_dump(mode="json") for run in listed], indent=2))
    else:
        print_runs(directory, listed)


def watch(
    run: Run,
    once: Annotated[bool, typer.Option("--once", help="Say how it stands now, and end.")] = False,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 1.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON at each look that shows something new.")
    ] = False,
) -> None:
    """Follow a run from another terminal: step, progress, time left, calls and USD. Ends when the run does.

    Exit code 1 where it failed, was killed or stopped before it was done.
    """
    from cowest.cli.output_runs import follow
    from cowest.runs.watch import Look, look

    last: Look | None = None

    def looked() -> Look:
        nonlocal last
        last = look(run, last)
        return last

    if as_json:
        while True:
            before, now = last, looked()
            if before is None or now != before:
                print(now.model_dump_json(), flush=True)
            if once or now.over:
                break
            time.sleep(every)
    else:
        follow(looked, every, once)
    if last is not None and last.over and last.run.state not in ("done", "running"):
        sys.exit(1)


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN...", help="Run directories; the first is compared with.", show_default=False),
    ],
    system: System = None,
    as_json: Json = False,
) -> None:
    """Compare runs on the same queries: paired differences, the settings that differ, what each has paid."""
    from cowest.cli.output_runs import print_comparison
    from cowest.runs.compare import compare_runs

    done = compare_runs(runs, system)
    print(done.model_dump_json(indent=2)) if as_json else print_comparison(done)


def prune(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run or table directories.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Delete what runs can do without: checkpoints that were not chosen, leftovers of crashes. Asks first.

    A pruned run is still done: it can be continued, reported, served and merged.
    """
    from cowest.cli.output_runs import print_removable, size
    from cowest.errors import ConfigError
    from cowest.runs.prune import removable, remove

    parts = {run: removable(run) for run in runs}
    everything = [part for found in parts.values() for part in found]
    if not as_json:
        print_removable(everything)
    if everything and not dry_run and not yes:
        if as_json or not sys.stdin.isatty():
            raise ConfigError("nothing was deleted: say --yes to delete, --dry-run to look")
        if not typer.confirm("Delete them?"):
            print("nothing was deleted")
            return
    freed = 0 if dry_run else sum(remove(run, found) for run, found in parts.items() if found)
    if as_json:
        told = {
            "removed" if not dry_run else "would_remove": [part.model_dump() for part in everything],
            "bytes": freed,
        }
        print(json.dumps(told, indent=2))
    elif everything and not dry_run:
        print(f"{size(freed)} free")
