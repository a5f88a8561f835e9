"""``cowest guard``: the options, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Optional, TypeAlias

import typer

# typer reads these annotations, and knows Optional only
Run: TypeAlias = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)]
Risk: TypeAlias = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        help="How much worse than the better model alone it may be, in units of the score; default: the recipe's, 0.02."
    ),
]
Delta: TypeAlias = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(help="With which probability, over calibration sets, that may fail; default: the recipe's, 0.05."),
]
Samples: TypeAlias = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        min=0, max=64, help="Further answers of the weak model, for their agreement; default: the recipe's, 4."
    ),
]
Queries: TypeAlias = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, help="Calibration queries at most; default: all that there are."),
]
Confidence: TypeAlias = Annotated[
    Optional[bool],  # noqa: UP045
    typer.Option(
        "--confidence/--no-confidence",
        help="Whether the models tell how sure they are by log-probabilities; default: the recipe's, that they do.",
    ),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")]


def guard(
    run: Run,
    risk: Risk = None,
    delta: Delta = None,
    samples: Samples = None,
    queries: Queries = None,
    confidence: Confidence = None,
    as_json: Json = False,
) -> None:
    """Learn who answers (weak alone, strong alone, both), with a promise never to be worse than the better model alone."""
    from cowest import pipeline
    from cowest.cli.output_guard import guard_as_json, print_guard
    from cowest.errors import ConfigError
    from cowest.run import stopping
    from cowest.run.progress import default_reporter

    given = {
        "guard.risk": risk,
        "guard.delta": delta,
        "guard.samples": samples,
        "guard.queries": queries,
        "guard.confidence": confidence,
    }
    for option, value, example in (("--risk", risk, "0.02"), ("--delta", delta, "0.05")):
        if value is not None and not 0 < value < 1:
            raise ConfigError(f"{option} {value:g}: give a number between 0 and 1, such as {example}")
    settings = {key: value for key, value in given.items() if value is not None}
    contexts = stopping.run(pipeline.guard(run, settings, default_reporter()))
    found: dict[str, Any] = {context.name or context.task.name: guard_as_json(context) for context in contexts}
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for context in contexts:
        print_guard(context)
