"""What ``cowest guard`` prints: the promise, and its rows beside the single models on the test queries."""

from __future__ import annotations

from collections import Counter

from pydantic import JsonValue
from rich.console import Console
from rich.table import Table

from cowest.assembly.context import Context
from cowest.assembly.systems import guard_of
from cowest.collaboration.guard.evidence import ARMS
from cowest.results import Results
from cowest.stages.certified import ROWS, certified_results, routes_of
from cowest.stages.guard import told

_EVERY = ("weak", "strong", "collab", "collab_aligned", *(spec.name for spec in ROWS))


def guard_as_json(context: Context) -> dict[str, JsonValue]:
    """The promise, what was seen on the certifying queries, and the rows' results on the test queries."""
    guard, results = guard_of(context), certified_results(context)
    kept = guard.model_dump(mode="json", exclude={"judged", "reference", "tried"})
    return {
        "promised": guard.promised,
        "told": [*told(guard)],
        **kept,
        "tried": [one.model_dump(mode="json") for one in guard.tried],
        "results": results.model_dump(mode="json", by_alias=True),
        "routes": {name: dict(counts) for name, counts in routes_of(context).items()},
    }


def print_guard(context: Context) -> None:
    """A task's promise and table on stdout."""
    console = Console(width=None if Console().is_terminal else 132)
    results = certified_results(context)
    console.print(_table(context.name or results.task, results, routes_of(context)))
    for line in (*told(guard_of(context)), *_compared(results)):
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def _table(title: str, results: Results, routes: dict[str, Counter[str]]) -> Table:
    metric = next(iter(next(iter(results.systems.values())).metrics))
    table = Table(title=f"{title}: test queries", title_justify="left", title_style="bold")
    for column in ("system", f"{metric} [95% CI]", "strong calls", "tokens", "USD", "answered by"):
        table.add_column(column, justify="left" if column in ("system", "answered by") else "right")
    for name in (name for name in _EVERY if name in results.systems):
        row = results.systems[name]
        found, n = row.metrics[metric], max(row.metrics[metric].n, 1)
        mean = "-" if found.mean is None else f"{100 * found.mean:.1f}"
        if found.ci_low is not None and found.ci_high is not None:
            mean += f" [{100 * found.ci_low:.1f}, {100 * found.ci_high:.1f}]"
        who = routes.get(name, Counter())
        shares = ", ".join(f"{arm} {who[arm] / sum(who.values()):.0%}" for arm in ARMS if who[arm])
        usage = row.usage
        calls = "-" if name not in routes and name not in _CALLS else f"{_calls(name, who, n):.2f}"
        usd = "-" if not usage.cost_usd else f"{usage.cost_usd / n:.5f}"
        table.add_row(name, mean, calls, f"{(usage.input_tokens + usage.output_tokens) / n:,.0f}", usd, shares)
    return table


_CALLS = {"weak": 0, "strong": 1, "collab": 1, "collab_aligned": 1}
"""Calls to the strong model of the systems that always make as many."""


def _calls(name: str, who: Counter[str], n: int) -> float:
    return _CALLS[name] if name in _CALLS else who["calls"] / n


def _compared(results: Results) -> list[str]:
    """The rows against each model alone, paired."""
    lines = []
    for c in results.comparisons:
        pairs = {c.a, c.b} & {spec.name for spec in ROWS}, {c.a, c.b} & {"weak", "strong"}
        if c.metric != next(iter(results.systems["weak"].metrics)) or not all(pairs) or c.diff is None or c.p is None:
            continue
        if c.test != "paired_bootstrap":
            continue
        sign = 1 if c.a in pairs[0] else -1
        low, high = sorted((sign * 100 * (c.ci_low or 0), sign * 100 * (c.ci_high or 0)))
        row, other = next(iter(pairs[0])), next(iter(pairs[1]))
        lines.append(f"{row} - {other}: {sign * 100 * c.diff:+.1f} [{low:+.1f}, {high:+.1f}], p = {c.p:.3g}")
    return lines
