"""``cowest prices``: what models cost, and which of them are old."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from cowest.costs.prices import PriceCheck


def prices(
    recipes: Annotated[
        Optional[list[Path]],  # noqa: UP045 - typer reads this annotation
        typer.Argument(help="Recipes, for their models only, those of grids included.", show_default=False),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Print what is old only; exit code 1 where something is to be mended.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")] = False,
) -> None:
    """Print the list prices that cowest knows, with their date, and the days on which providers end their models."""
    from datetime import date

    from cowest.costs.prices import check_prices

    found = check_prices(recipes or [], date.today())
    if not (found.models or found.old or as_json):
        print("no model behind an endpoint is named")
    elif as_json:
        print(found.model_dump_json(indent=2))
    elif check:
        _print_check(found)
    else:
        _print_list(found)
    if check and found.old:
        raise typer.Exit(1)


def _print_check(found: PriceCheck) -> None:
    for title, lines in (("old", found.old), ("to know", found.soon)):
        if lines:
            print(f"{title}:")
            print("".join(f"  {line}\n" for line in lines), end="")
    if not found.old:
        models = f"{len(found.models)} model{'' if len(found.models) == 1 else 's'}"
        print(f"nothing is old: {models}, prices known on {found.known}")


def _print_list(found: PriceCheck) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="")
    for name in ("model", "provider", "prompt", "answer", "ends", "instead"):
        table.add_column(name, justify="right" if name in ("prompt", "answer") else "left")
    for line in found.models:
        ended = line.ends is not None and line.ends <= found.today
        ends = "" if line.ends is None else f"{line.ends}{' (ended)' if ended else ''}"
        table.add_row(line.model, line.provider or "", _usd(line.input), _usd(line.output), ends, line.instead or "")
    print(f"USD for a million tokens, known on {found.known}; `price` in a recipe overrides")
    Console(width=None if Console().is_terminal else 132, highlight=False, markup=False).print(table)


def _usd(price: float | None) -> str:
    return "unknown" if price is None else f"{price:.2f}"
