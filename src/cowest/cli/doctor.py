"""``cowest doctor``: the options, and what is printed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from cowest.doctor.findings import Diagnosis

_MARKS = {"ok": "ok", "note": "-", "warning": "!", "broken": "BROKEN"}


def doctor(
    recipe: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this annotation
        typer.Argument(
            help="A recipe: also look for its packages and models, and ask its endpoints for their models.",
            show_default=False,
        ),
    ] = None,
    call: Annotated[
        bool,
        typer.Option(
            "--call", help="Pay for one short call to each endpoint of the recipe; says before what it costs."
        ),
    ] = False,
    torch: Annotated[
        bool, typer.Option("--torch", help="Load torch and compute on each device: some seconds.")
    ] = False,
    set_: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the recipe; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of a list.")] = False,
) -> None:
    """Look at this machine, its packages and settings, and at a recipe's endpoints. Pays for nothing unless asked.

    Exit code 1 where something that is needed is broken.
    """
    from cowest.doctor.diagnosis import diagnose
    from cowest.errors import ConfigError
    from cowest.recipe.config import load_config

    if recipe is None and (call or set_):
        raise ConfigError(f"{'--call' if call else '--set'}: name the recipe: `cowest doctor recipe.yaml --call`")
    config = None if recipe is None else load_config(recipe, set_ or [])
    found = diagnose(config, torch=torch, call=call, tell=lambda line: print(line, file=sys.stderr, flush=True))
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        _print(found)
    if not found.healthy:
        raise typer.Exit(1)


def _print(found: Diagnosis) -> None:
    section = ""
    print(f"cowest {found.version}")
    for finding in found.findings:
        if finding.section != section:
            section = finding.section
            print(f"\n{section}")
        print(f"  {_MARKS[finding.state]:<6} {finding.name:<20} {finding.said}")
        if finding.todo is not None:
            print(f"  {'':<6} {'':<20} -> {finding.todo}")
    broken = sum(finding.state == "broken" for finding in found.findings)
    warned = sum(finding.state == "warning" for finding in found.findings)
    said = f"{broken} broken, " if broken else "Nothing is broken, "
    print(f"\n{said}{warned} warning{'' if warned == 1 else 's'}")
