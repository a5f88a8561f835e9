"""What ``cowest guard`` prints: the promise, and its rows beside the single models on the test queries."""

from __future__ import annotations

from pydantic import JsonValue
from rich.console import Console
from rich.table import Table

from cowest.assembly.context import Context
from cowest.assembly.systems import guard_of
from cowest.report.data import GuardRow, GuardView
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
    for column in ("system", f"{view.metric} [95% CI]", "strong calls", "tokens", "USD", "answered by"):
        table.add_column(column, justify="left" if column in ("system", "answered by") else "right")
    for row in view.rows:
        usd = "-" if row.cost_usd is None else f"{row.cost_usd:.5f}"
        who = ", ".join(f"{arm} {share:.0%}" for arm, share in row.answered.items())
        table.add_row(row.name, _mean(row), f"{row.calls:.2f}", f"{row.tokens:,.0f}", usd, who)
    return table


def _mean(row: GuardRow) -> str:
    score = row.score
    if score.mean is None or score.ci_low is None or score.ci_high is None:
        return "-"
    return f"{100 * score.mean:.1f} [{100 * score.ci_low:.1f}, {100 * score.ci_high:.1f}]"


def compared(results: Results, metric: str) -> list[str]:
    """The guard's rows against each model alone, paired."""
    rows, lines = {spec.name for spec in ROWS}, []
    for c in results.comparisons:
        mine, other = {c.a, c.b} & rows, {c.a, c.b} & {"weak", "strong"}
        if not mine or not other or c.metric != metric or c.test != "paired_bootstrap" or c.diff is None:
            continue
        sign = 100 if c.a in mine else -100
        low, high = sorted((sign * (c.ci_low or 0.0), sign * (c.ci_high or 0.0)))
        lines.append(
            f"{mine.pop()} - {other.pop()}: {sign * c.diff:+.1f} [{low:+.1f}, {high:+.1f}], p = {c.p or 0.0:.2g}"
        )
    return sorted(lines)
