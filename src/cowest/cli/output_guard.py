"""What ``cowest guard`` prints: the promise, and its rows beside the single models on the test queries."""

from __future__ import annotations

from pydantic import JsonValue
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cowest.assembly.context import Context
from cowest.assembly.systems import guard_of
from cowest.report.data import GuardView
from cowest.report.guard import heads, rows
from cowest.results import Results
from cowest.stages.certified import ROWS, certified_results, guard_view


def guard_as_json(context: Context) -> dict[str, JsonValue]:
    """The promise, what was seen on the certifying queries, and the rows' results on the test queries."""
    guard, view = guard_of(context), guard_view(context)
    kept = guard.model_dump(mode="json", exclude={"judged", "reference"})
    shown = {} if view is None else view.model_dump(mode="json", exclude={"points"})
    results = certified_results(context).model_dump(mode="json", by_alias=True)
    return {**kept, **shown, "results": results}


def print_guard(context: Context) -> None:
    """A task's promise and table on stdout."""
    console = Console(width=None if Console().is_terminal else 132)
    results, view = certified_results(context), guard_view(context)
    assert view is not None
    console.print(_table(context.name or results.task, view))
    for line in (*view.told, *compared(results, view.metric)):
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def _table(title: str, view: GuardView) -> Table:
    table = Table(title=f"{title}: test queries", title_justify="left", title_style="bold")
    columns = heads(view)
    for column in columns:
        table.add_column(escape(column), justify="left" if column in (columns[0], columns[-1]) else "right")
    for row in rows(view):
        table.add_row(*map(escape, row))
    return table


def compared(results: Results, metric: str) -> list[str]:
    """The guard's rows against each model alone, paired."""
    mine_all, lines = {spec.name for spec in ROWS}, []
    for c in results.comparisons:
        mine, other = {c.a, c.b} & mine_all, {c.a, c.b} & {"weak", "strong"}
        if not mine or not other or c.metric != metric or c.test != "paired_bootstrap" or c.diff is None:
            continue
        sign = 100 if c.a in mine_all else -100
        low, high = sorted((sign * (c.ci_low or 0.0), sign * (c.ci_high or 0.0)))
        lines.append(
            f"{mine.pop()} - {other.pop()}: {sign * c.diff:+.1f} [{low:+.1f}, {high:+.1f}], p = {c.p or 0.0:.2g}"
        )
    return sorted(lines)
