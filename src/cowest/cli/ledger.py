"""``cowest ledger``: the bill of a run, and saving a ledger that is damaged."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer
from typer.core import TyperGroup


class _BillFirst(TyperGroup):
    """``cowest ledger RUN`` is ``cowest ledger show RUN``."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # theirs is private
        if not args and ctx.resilient_parsing:  # a shell asks what could come next: the commands
            return super().parse_args(ctx, args)
        if not args or (args[0] not in self.commands and args[0] not in ("--help", "-h")):
            args = ["show", *args]
        return super().parse_args(ctx, args)


ledger = typer.Typer(
    cls=_BillFirst,
    help="What was paid, of a run directory or a ledger file. `cowest ledger RUN` is `cowest ledger show RUN`.",
    epilog="Example: cowest ledger runs/mine --export calls.jsonl",
    rich_markup_mode=None,
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")]
Directory = Annotated[Path, typer.Argument(help="A run directory, or a ledger file.", show_default=False)]


@ledger.command(epilog="Example: cowest ledger show runs/mine --export calls.jsonl")
def show(
    directory: Directory,
    as_json: Json = False,
    export: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write every answer and failure to this file, one JSON object a line; - is stdout."),
    ] = None,
    everyone: Annotated[bool, typer.Option("--all", help="All runs that share the ledger, not only this one.")] = False,
) -> None:
    """Print what was paid: calls, tokens, cost, cache hits, failures by kind, the slowest."""
    from cowest.assembly.opened import ledger_of
    from cowest.cli.output_ledger import print_ledger
    from cowest.ledger.summary import export_ledger, summarise_ledger

    path, run_name = ledger_of(directory)
    name = None if everyone else run_name
    if export is not None:
        lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in export_ledger(path, name))
        if str(export) == "-":
            sys.stdout.writelines(lines)
        else:
            from cowest.run.store import write_lines

            print(f"{export}: {write_lines(export, lines)} entries")
        return
    bill = summarise_ledger(path, name)
    if as_json:
        print(bill.model_dump_json(indent=2))
    else:
        print_ledger(bill)


@ledger.command(epilog="Example: cowest ledger sent runs/mine")
def sent(
    directory: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)], as_json: Json = False
) -> None:
    """Look for the task's contexts and documents in what was sent to the strong model; exit code 1 where something left unseen.

    With `context_for: weak` only drafts may hold a part of them.
    """
    from cowest.cli.output_ledger import print_sent
    from cowest.stages.sent import sent as look

    found = look(directory)
    print(found.model_dump_json(indent=2)) if as_json else print_sent(found)
    if found.hidden and found.beside:
        raise typer.Exit(1)


@ledger.command(epilog="Example: cowest ledger recover runs/mine/ledger.sqlite")
def recover(
    directory: Directory,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Where the new ledger goes; default: in the place of the damaged one, which is kept beside it."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Save what can be read of a damaged ledger into a new one. No run may be using it."""
    from cowest.assembly.opened import ledger_of
    from cowest.cli.output_ledger import print_recovered
    from cowest.ledger.recover import recover as recover_ledger

    path = directory if directory.is_file() else ledger_of(directory)[0]
    found = recover_ledger(path, out)
    print(found.model_dump_json(indent=2)) if as_json else print_recovered(found)
