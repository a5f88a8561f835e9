"""What ``cowest estimate`` prints."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from cowest.estimate import Estimate, Range


def print_estimate(found: Estimate) -> None:
    """A line for each kind of call, the totals, and what they rest on, on stdout."""
    console = Console(width=None if Console().is_terminal else 132, highlight=False)
    if not found.stages:
        console.print(f"{found.name}: every model runs on this machine; nothing is paid for.")
        return
    several = len({s.model for s in found.stages}) > 1
    table = Table(title=f"{found.name}: expected \\[low, high]", title_justify="left")
    for column in ("stage", "calls for", *(("model",) if several else ())):
        table.add_column(column)
    for column in ("calls", "prompt tokens", "answer tokens", "USD", "time"):
        table.add_column(column, justify="right")
    for s in found.stages:
        cells = (f"{s.domain}: {s.stage}" if s.domain else s.stage, s.calls_for, *((s.model,) if several else ()))
        amounts = (_count(s.calls), _count(s.input_tokens), _count(s.output_tokens), _usd(s.cost_usd))
        table.add_row(*cells, *amounts, _duration(s.seconds.expected))
    console.print(table)
    console.print(
        f"In all: {_count(found.calls)} calls, {_count(found.tokens)} tokens, {_time(found.seconds)}", markup=False
    )
    if found.cost_usd is not None:
        console.print(f"Cost:   USD {_usd(found.cost_usd)}", markup=False)
    else:
        names = ", ".join(found.unpriced_models)
        console.print(
            f"Cost:   unknown: no price is known for {names}; give its price: {{input: ..., output: ...}}", markup=False
        )
    if found.already_paid:
        cost = "" if found.already_paid_usd is None else f", USD {found.already_paid_usd:.4f}"
        console.print(
            f"{found.already_paid:,} answers are in the ledger already{cost}: the same requests are not paid for again."
        )
    for line in (*found.budget, *found.assumptions):
        console.print(f"- {line}", markup=False, soft_wrap=True)


def _count(r: Range) -> str:
    return _shown(_short(r.low), _short(r.expected), _short(r.high))


def _usd(r: Range | None) -> str:
    return "unknown" if r is None else _shown(f"{r.low:,.2f}", f"{r.expected:,.2f}", f"{r.high:,.2f}")


def _time(r: Range) -> str:
    return _shown(_duration(r.low), _duration(r.expected), _duration(r.high))


def _shown(low: str, expected: str, high: str) -> str:
    return expected if low == expected == high else f"{expected} [{low}, {high}]"


def _short(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:,.1f}M"
    return f"{value / 1e3:,.0f}k" if value >= 1e4 else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
