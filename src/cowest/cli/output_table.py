"""What ``cowest table`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from cowest.cli.output import print_uptake
from cowest.cli.output_ledger import cost_line
from cowest.ledger.summary import LedgerSummary
from cowest.report.uptake import LEGEND
from cowest.table.pooled import PooledTable
from cowest.table.results import Table, TableResults
from cowest.table.write import along, calls_before, cells, cut_notes, heading
from cowest.table.write_pooled import CLAIMS_LEGEND, averaged, claim_cells, pooled_cells, pooled_heading, pooled_notes
from cowest.table.write_pooled import LEGEND as POOLED_LEGEND

_STYLES = {"best": "bold green", "tied": "yellow", "": ""}


def print_table(results: TableResults, written: Sequence[Path], bill: LedgerSummary | None) -> None:
    """Every table on stdout, then where the files are."""
    console = Console(width=None if Console().is_terminal else 150)
    for table in results.tables:
        console.print(_table(table, results.baseline))
        for note in (*cut_notes(table), *calls_before(table)):
            console.print(note, markup=False, highlight=False, soft_wrap=True)
        print_uptake(console, {n: r.uptake for n, r in table.rows.items() if r.uptake is not None})
    _print_pooled(console, results)
    console.print(
        "* best, = not significantly below it; p Holm-corrected; cut: answers cut off at max_tokens before they came, left out "
        "of the mean; short: contexts shortened to fit the window",
        markup=False,
        soft_wrap=True,
    )
    if any(row.uptake is not None for table in results.tables for row in table.rows.values()):
        console.print(LEGEND, markup=False, soft_wrap=True)
    for text in results.warnings:
        console.print(f"warning: {text}", markup=False, highlight=False, soft_wrap=True)
    for d, points, p in along(results):
        console.print(f"{d.task}: {d.row}, {d.label} - {d.first}: {points}, p = {p}", markup=False, highlight=False)
    for name, why in results.left_out.items():
        console.print(f"left out: {name}, since {why}", markup=False, soft_wrap=True)
    if bill is not None:
        console.print(
            f"Paid in all: {cost_line(bill)}; `cowest ledger {bill.path}` has the details.",
            markup=False,
            soft_wrap=True,
        )
    console.print("Written: " + ", ".join(map(str, written)), markup=False, highlight=False, soft_wrap=True)


def _print_pooled(console: Console, results: TableResults) -> None:
    """All tasks together, and the paper's claims."""
    for table in results.pooled:
        console.print(_pooled(table, results.baseline))
        for line in (averaged(table), *pooled_notes(table)):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if results.pooled:
        console.print(POOLED_LEGEND.format(baseline=results.baseline), markup=False, highlight=False, soft_wrap=True)
    for claim in results.claims:
        text, where, points, p, verdict = claim_cells(claim)
        told = "" if not p else f", p {p.replace('<', '< ') if p.startswith('<') else f'= {p}'}"
        said = f"{where}: {text}: {verdict}: {points}{told}"
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    if results.claims:
        console.print(CLAIMS_LEGEND, markup=False, highlight=False, soft_wrap=True)


def _pooled(table: PooledTable, baseline: str) -> RichTable:
    rows = pooled_cells(table)
    feedback = any(c.feedback for c in rows)
    made = RichTable(title=pooled_heading(table), title_justify="left", title_style="bold")
    made.add_column("row", no_wrap=True)
    for name in ("mean [95% CI]", f"- {baseline} [95% CI]"):
        made.add_column(escape(name), justify="right", no_wrap=True)
    for name in ("at least", "p", "n", "failed", "cut", "calls/q", *(["feedback"] if feedback else [])):
        made.add_column(name, justify="right")
    for c in rows:
        told = (c.name, c.mean, c.difference, c.at_least, c.p, c.n, c.failed, c.cut, c.calls)
        made.add_row(*map(escape, told), *([c.feedback] if feedback else []))
    return made


def _table(table: Table, baseline: str) -> RichTable:
    made = RichTable(title=heading(table), title_justify="left", title_style="bold")
    made.add_column("row", no_wrap=True)
    for metric in table.metrics:
        made.add_column(f"{metric} [95% CI]", justify="right", no_wrap=True)
    for name in (f"- {baseline}", "p", "USD/q", "s/q", "n", "failed", "cut", "short"):
        made.add_column(name, justify="right")
    for c in cells(table):
        values = [f"[{_STYLES[mark]}]{_sign(mark)}{text}[/]" if mark else text for text, mark in _escaped(c.values)]
        made.add_row(c.name, *values, c.difference, c.p, c.usd, c.seconds, c.n, c.failed, c.cut, c.shortened)
    return made


def _sign(mark: str) -> str:
    return {"best": "* ", "tied": "= "}.get(mark, "")


def _escaped(values: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(text.replace("[", "\\["), mark) for text, mark in values]  # rich would take an interval for markup
