"""The command line: parse, load the recipe, call the pipeline. Results on stdout, progress and errors on stderr.

Exit codes: 0 success, 2 bad input (recipe, data, arguments), 1 a failure while running, 3 the budget is reached,
130 interrupted (Ctrl-C), 143 terminated (SIGTERM), 129 hung up.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import io
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

import cowest
from cowest.cli.doctor import doctor
from cowest.cli.guard import guard
from cowest.cli.import_data import import_data
from cowest.cli.ledger import ledger
from cowest.cli.prices import prices
from cowest.cli.runs import compare, prune, runs, watch
from cowest.cli.serve import serve
from cowest.cli.table import prompts, table
from cowest.errors import CowestError, StageError
from cowest.run import stopping

app = typer.Typer(
    name="cowest",
    help="Pair a small model you can train with a strong model you cannot: the weak one drafts, the strong one refines.",
    epilog="Example: cowest run recipes/lab.yaml --out runs/lab",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
lab = typer.Typer(
    help="The offline lab: synthetic domains and tiny models. Example: cowest lab study --seeds 11,12,13 --out runs/study",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(lab, name="lab")
app.add_typer(ledger, name="ledger")

Recipe = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]
Set = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads this annotation
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting by its dotted key; may be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")]


def _version(asked: bool) -> None:
    if asked:
        print(cowest.__version__)
        raise typer.Exit()


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command(epilog="Example: cowest run recipes/lab.yaml --set seed=12 --set tasks.medicine.test=500")
def run(
    recipe: Recipe,
    out: Annotated[Optional[Path], typer.Option(help="The run directory; default runs/NAME.")] = None,  # noqa: UP045
    set_: Set = None,
    as_json: Json = False,
    jobs: Annotated[int, typer.Option(min=1, help="Domains run side by side, one thread each.")] = 1,
    only: Annotated[Optional[str], typer.Option(help="Only this domain's stages; no summary, no report.")] = None,  # noqa: UP045
) -> None:
    """Run a recipe, or continue it where it was stopped."""
    from cowest.assembly.here import check_here
    from cowest.assembly.prepare import check_installed, prepare
    from cowest.cli.output import print_results, results_json
    from cowest.pipeline import check_guards, run_only
    from cowest.pipeline import run as run_pipeline
    from cowest.recipe.config import load_config
    from cowest.run.progress import default_reporter
    from cowest.run.side_by_side import side_by_side

    config = load_config(recipe, set_ or [])
    folder, reporter = out or Path("runs") / config.name, default_reporter()
    if only is not None:
        stopping.run(run_only(config, only, folder, reporter))
        return
    if jobs > 1 and len(config.tasks) > 1:
        check_installed(config)
        check_guards(
            prepare(config, folder, reporter)
        )  # what is wrong in the last is said before the first is paid for
        check_here(config)
        side_by_side("run", list(config.tasks), recipe, folder, set_ or [], jobs, reporter)
    done = stopping.run(run_pipeline(config, folder, reporter))
    if as_json:
        print(json.dumps(results_json(done), indent=2))
    else:
        print_results(done)


@app.command(epilog="Example: cowest validate recipes/lab.yaml --json")
def validate(
    recipe: Recipe,
    set_: Set = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of recipes, with every setting.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check everything that can be checked without loading a model or paying for a call."""
    from cowest.assembly.look import look_at_data
    from cowest.assembly.prepare import prepare
    from cowest.cli.output_validate import print_health
    from cowest.pipeline import check_guards
    from cowest.recipe.config import RunConfig, load_config
    from cowest.run.progress import QuietReporter, default_reporter

    if schema:
        print(json.dumps(RunConfig.model_json_schema(), indent=2))
        return
    config = load_config(recipe, set_ or [])
    looks = look_at_data(config)
    if not as_json:  # before models and keys are looked for: data comes first, and is often all there is yet
        print(f"{recipe}:")
        for name, found in looks.items():
            print_health(name, found)
    check_guards(prepare(config, Path("runs") / config.name, QuietReporter() if as_json else default_reporter()))
    if as_json:
        tasks = {name: found.splits for name, found in looks.items()}
        data = {name: found.model_dump(mode="json") for name, found in looks.items()}
        print(json.dumps({"valid": True, "name": config.name, "tasks": tasks, "data": data}, indent=2))
    else:
        print(f"{recipe}: valid")


@app.command(epilog="Example: cowest report runs/lab")
def report(
    directory: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The folder that report.html goes to; default: the run's own."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a finished run's report.html again and print its results."""
    from cowest.cli.output import print_results, results_json
    from cowest.pipeline import report_again

    try:
        done = stopping.run(report_again(directory, out))
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) and out is None:
            raise StageError(
                f"{directory}: cannot be written ({error.strerror}); `cowest report {directory} --out FOLDER` writes it elsewhere"
            ) from None
        raise
    if as_json:
        print(json.dumps(results_json(done), indent=2))
    else:
        print_results(done)


@app.command(epilog="Example: cowest estimate my-domain/real-pair.yaml --set draft.queries=200 --measure")
def estimate(
    recipe: Recipe,
    out: Annotated[Optional[Path], typer.Option(help="The run directory; default runs/NAME.")] = None,  # noqa: UP045
    set_: Set = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Load the models of this machine and measure how fast they read, write and learn: a minute or some.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Print what a recipe will cost before anything is paid: calls, tokens, USD and time, stage by stage. Wants no key.

    The time of models on this machine is told by what earlier stages of the run have noted, or by --measure.

    What trains or answers on this machine: how much memory it takes at most, and whether that is free now.

    A recipe with a section "table" is estimated as `cowest table` runs it.
    """
    from cowest.cli.output_estimate import print_estimate
    from cowest.costs.estimate import estimate as estimate_run
    from cowest.recipe.config import load_config
    from cowest.run.progress import default_reporter
    from cowest.table.estimate import estimate_table

    config = load_config(recipe, set_ or [])
    estimate_recipe = estimate_run if config.table is None else estimate_table
    found = estimate_recipe(config, out or Path("runs") / config.name, default_reporter() if measure else None)
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        print_estimate(found)


@app.command(epilog="Example: cowest collect runs/mine --out collected.jsonl")
def collect(
    target: Annotated[
        Path, typer.Argument(metavar="RUN_OR_RECIPE", help="What was served with --collect.", show_default=False)
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="The file of examples; pairs go beside it. Default: collected.jsonl in the run's (domain's) folder."
        ),
    ] = None,
    task: Annotated[Optional[str], typer.Option(help="Only this domain of the recipe.")] = None,  # noqa: UP045
    delete: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="ID", help="Delete this exchange ('all': every one), and write nothing; may be repeated."),
    ] = None,
    keep_days: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0, help="Delete what is older than so many days, and write nothing."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn what `cowest serve --collect` kept into examples and preference pairs for the next run, or delete it."""
    from cowest.cli.output_collect import print_collected, print_deleted
    from cowest.server.collect import collect as collect_run
    from cowest.server.collect import forget

    if delete or keep_days is not None:
        gone = forget(target, delete or [], keep_days)
        print(gone.model_dump_json(indent=2)) if as_json else print_deleted(gone)
        return
    found = collect_run(target, out, task)
    print(found.model_dump_json(indent=2)) if as_json else print_collected(found)


@app.command(epilog="Example: cowest init my-domain && cowest run my-domain/recipe.yaml")
def init(
    directory: Annotated[Path, typer.Argument(help="A new or empty folder.", show_default=False)],
) -> None:
    """Write a recipe and a small sample dataset that run as they are, to put your own data and models into."""
    from cowest.cli.starter import write_starter

    for path in write_starter(directory):
        print(path)


@app.command(epilog="Example: cowest merge runs/mine --out mine-merged")
def merge(
    directory: Annotated[
        Path, typer.Argument(help="A run directory, or the folder of one of its domains.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Where the merged checkpoint goes.", show_default=False)],
    which: Annotated[str, typer.Option(help="aligned or sft.")] = "aligned",
    task: Annotated[Optional[str], typer.Option(help="Which domain of a run with several.")] = None,  # noqa: UP045
) -> None:
    """Export a run's weak model as one ordinary checkpoint (adapter merged into its base)."""
    from cowest.pipeline import export_weak

    print(export_weak(directory, which, out, task).base)


app.command(epilog="Example: cowest doctor my-domain/real-pair.yaml")(doctor)
app.command("import", epilog="Example: cowest import faq.csv --out mine --map frage=input --map antwort=answer")(
    import_data
)
app.command(epilog="Example: cowest guard runs/lab --risk 0.02 --delta 0.05")(guard)
app.command(epilog="Example: cowest serve runs/lab --port 8080")(serve)
app.command(epilog="Example: cowest table recipes/lab-table.yaml --jobs 2")(table)
app.command(epilog="Example: cowest prices --check recipes/paper/*.yaml")(prices)
app.command(epilog="Example: cowest runs")(runs)
app.command(epilog="Example: cowest watch runs/lab")(watch)
app.command(epilog="Example: cowest compare runs/lab runs/lab-2 --system collab")(compare)
app.command(epilog="Example: cowest prune runs/lab --dry-run")(prune)
app.command(epilog="Example: cowest prompts pubmedqa supericl")(prompts)


@lab.command(epilog="Example: cowest lab study --seeds 11,12,13 --out runs/study --jobs 2")
def study(
    seeds: Annotated[str, typer.Option(help="World seeds, comma-separated.")] = "11,12,13",
    out: Annotated[Path, typer.Option(help="Where the units, the table's files, study.json and study.md go.")] = Path(
        "runs/study"
    ),
    domains: Annotated[str, typer.Option(help="Domains, comma-separated.")] = "counterfactuals,medicine,ethics",
    jobs: Annotated[int, typer.Option(min=1, help="Units side by side, one thread each.")] = 2,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Run every domain on several world seeds and test, pooled over the seeds, what the lab is to show."""
    from cowest.run.progress import default_reporter
    from cowest.table.study import parse_seeds, run_study

    found, text = run_study(parse_seeds(seeds), domains.split(","), out, jobs, set_ or [], default_reporter())
    print(json.dumps(found.model_dump(mode="json"), indent=2) if as_json else text)


@lab.command(epilog="Example: cowest lab pretrain strong --out lab-weights")
def pretrain(
    which: Annotated[str, typer.Argument(help="strong, strong-small, strong-tiny, strong-asks, weak or weak-small.")],
    out: Annotated[Path, typer.Option(help="Where checkpoints, log and model go.")] = Path("lab-weights"),
    steps: Annotated[Optional[int], typer.Option(min=1, help="Fewer or more steps than the plan's.")] = None,  # noqa: UP045
) -> None:
    """Make a lab model from nothing (strong: about an hour on two cores)."""
    from dataclasses import replace

    from cowest.errors import ConfigError
    from cowest.lab.pretrain import PLANS
    from cowest.lab.pretrain import pretrain as run_pretraining
    from cowest.run.progress import default_reporter

    if which not in PLANS:
        raise ConfigError(f"cowest lab pretrain {which}: there are {', '.join(PLANS)}")
    plan = PLANS[which] if steps is None else replace(PLANS[which], steps=steps)
    print(run_pretraining(plan, out, default_reporter()))


@lab.command("serve-strong", epilog="Example: cowest lab serve-strong --port 8091")
def serve_strong(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 picks a free one.")] = 8091,
    model: Annotated[str, typer.Option(help="Which model to serve.")] = "lab:strong",
) -> None:
    """Serve the lab's strong model as an OpenAI-compatible endpoint, a true black box. Prints the base_url."""
    from cowest.assembly.sources import build_model
    from cowest.models.endpoint import make_app, run_endpoint
    from cowest.recipe.config import LocalModelConfig

    served = build_model(LocalModelConfig(kind="local", model=model))
    asyncio.run(
        run_endpoint(
            make_app(served, model_name="lab-strong"), lambda url: print(url, flush=True), host=host, port=port
        )
    )


def relax_gc() -> None:
    """Look for cyclic garbage less often: with thousands of calls alive that search took a third of the client's time."""
    gc.set_threshold(50_000, 50, 100)


def told(error: OSError) -> str:
    """A system's error in a line: the path, what is wrong, and what to do."""
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        todo = "free some space there and run the same command: it continues where it was"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        todo = "give a folder that may be written, or change its permissions"
    else:
        return str(error)
    return f"{where}{error.strerror}; {todo}"


def main() -> None:
    """The entry point of the ``cowest`` command."""
    # Before torch is loaded: threads that spin while they wait bring a machine with few cores to a crawl when it is shared.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    relax_gc()
    for stream in (sys.stdout, sys.stderr):  # a pipe on Windows has the few characters of its code page
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # which JSON reads as what it was
    try:
        with stopping.handled():
            app(standalone_mode=True)
    except CowestError as error:
        print(f"cowest: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        print(f"cowest: {error.name} is not installed: pip install 'cowest[train,plots]'", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # no permission, a full disk, a file where a folder should be
        print(f"cowest: {told(error)}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as stop:
        if stop.code in {128 + number for number in stopping.SIGNALS}:
            with contextlib.suppress(OSError):  # the terminal may be gone
                print(stopping.STOPPED, file=sys.stderr, flush=True)
        raise
