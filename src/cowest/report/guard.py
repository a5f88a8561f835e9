"""How it is written down what `cowest guard` came to: a row a system, on the report's page and the terminal alike."""

from __future__ import annotations

from cowest.report.data import GuardRow, GuardView
from cowest.report.naming import metric_label, percent


def heads(view: GuardView) -> list[str]:
    """The columns; all but the first and the last hold numbers."""
    return ["System", f"{metric_label(view.metric)} [95% CI]", "Strong calls", "Tokens", "Cost", "Answered by"]


def rows(view: GuardView) -> list[list[str]]:
    """A row of text for each system: calls, tokens and cost are of one query."""
    return [_row(row) for row in view.rows]


def _row(row: GuardRow) -> list[str]:
    score = row.score
    return [
        row.name,
        f"{percent(score.mean)} [{percent(score.ci_low)}, {percent(score.ci_high)}]",
        f"{row.calls:.2f}",
        f"{row.tokens:,.0f}",
        "—" if row.cost_usd is None else f"${row.cost_usd:.5f}",
        ", ".join(f"{arm} {percent(share, 0)}%" for arm, share in row.answered.items()) or "—",
    ]
