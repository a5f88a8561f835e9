"""What ``cowest ledger`` prints: the bill, for people."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from rich.console import Console
from rich.table import Table

from cowest.ledger.recover import Recovered
from cowest.ledger.summary import LedgerSummary, Line
from cowest.stages.sent import Sent


def print_ledger(bill: LedgerSummary) -> None:
    """Totals, lines by model and by purpose, failures, and the slowest calls, on stdout."""
    console = Console(width=None if Console().is_terminal else 132, highlight=False)
    for line in totals(bill):
        console.print(line, markup=False, soft_wrap=True)
    for name, lines in (("model", bill.models), ("purpose", bill.purposes)):
        if lines:
            console.print(_lines(name, lines))
    for name, counts in (("failed calls", bill.failures), ("attempts tried again", bill.retries)):
        if counts:
            console.print(f"{name}: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()), markup=False)
    if bill.slowest:
        console.print(_slowest(bill))


def print_recovered(found: Recovered) -> None:
    """What was saved, what was lost, and where both files are, on stdout."""
    saved = ", ".join(f"{n:,} {name}" for name, n in found.saved.items() if name in _TOLD) or "the totals"
    lost = ", ".join(f"{n:,} {name}" for name, n in found.lost.items() if name in _TOLD)
    print(f"{found.path}: {saved} saved" + (f"; {lost} lost" if lost else "; none known to be lost"))
    print(f"{found.kept}: the damaged file, as it was")
    print("What was lost is asked, and paid for, again where a run needs it.")


_TOLD: Final = ("answers", "failures", "batches", "exchanges", "verdicts")


def totals(bill: LedgerSummary) -> list[str]:
    """The first lines: what was paid, and what is not known for sure."""
    when = "" if bill.first is None or bill.last is None else f", {_time(bill.first)} to {_time(bill.last)}"
    lines = [
        f"{bill.path}{when}",
        f"{bill.answered:,} answers, {bill.hits:,} more from the cache, {bill.failed:,} failed calls",
        f"{bill.input_tokens:,} prompt tokens, {bill.output_tokens:,} answer tokens"
        + (f" ({bill.reasoning_tokens:,} of them reasoning)" if bill.reasoning_tokens else "")
        + (f"; {bill.estimated_calls:,} answers came without counts: approximated" if bill.estimated_calls else ""),
        f"cost: {cost_line(bill)}",
    ]
    if bill.maybe_paid or bill.under_way:
        lines.append(
            f"  at most: with {bill.maybe_paid:,} requests that were sent and never answered, and {bill.under_way:,} under way"
        )
    return lines


def cost_line(bill: LedgerSummary) -> str:
    """The cost, or in words why it is not known."""
    if bill.cost_usd is None:
        return f"unknown, as no price is known for {', '.join(bill.unpriced_models) or 'a model'} (set its price: in the recipe)"
    more = "" if bill.at_most_usd in (None, bill.cost_usd) else f" (at most {_usd(bill.at_most_usd)})"
    return f"{_usd(bill.cost_usd)} at list or recipe prices{more}"


def _lines(name: str, lines: Mapping[str, Line]) -> Table:
    table = Table(title=f"by {name}", title_justify="left")
    table.add_column(name)
    for column in ("answers", "prompt tokens", "answer tokens", "USD"):
        table.add_column(column, justify="right")
    for key, line in lines.items():
        cost = "unknown" if line.cost_usd is None else f"{line.cost_usd:.4f}"
        table.add_row(key or "-", f"{line.calls:,}", f"{line.input_tokens:,}", f"{line.output_tokens:,}", cost)
    return table


def _slowest(bill: LedgerSummary) -> Table:
    table = Table(title="the slowest", title_justify="left")
    for column in ("seconds", "attempts"):
        table.add_column(column, justify="right")
    for column in ("model", "purpose", "request"):
        table.add_column(column)
    for call in bill.slowest:
        table.add_row(f"{call.latency_s:.2f}", str(call.attempts), call.model, call.purpose or "-", call.key[:12])
    return table


def _usd(value: float | None) -> str:
    return "unknown" if value is None else f"${value:,.4f}"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def print_sent(found: Sent) -> None:
    """What of the contexts was in the requests to the strong model."""
    hidden = "hides its contexts from" if found.hidden else "shows its contexts to"
    print(
        f"The recipe {hidden} the strong model. Of {found.requests:,} requests to it, looked through for {found.contexts:,} texts:"
    )
    print(f"  {found.by_draft:,} hold 40 or more characters in a row of one, within a draft alone")
    print(f"  {found.beside:,} hold such a piece elsewhere{f', as {found.example!r}' if found.example else ''}")
