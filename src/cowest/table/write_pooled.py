"""What a table says over all tasks, and of the paper's claims, in words: cells, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cowest.report.naming import cut_note
from cowest.results import Comparison
from cowest.table.claims import TableClaim
from cowest.table.pooled import OVER_ALL, PooledTable
from cowest.table.results import TableResults
from cowest.table.words import interval, p_value, tex, tex_value

LEGEND = (
    "Over all tasks: the mean of the tasks' scores, each task weighing the same, with 95% intervals by a bootstrap of the queries "
    "within task and seed. Difference: paired, in points, to {baseline}; p by a stratified sign-flip permutation test, corrected "
    "over the rows (Holm). At least: the one-sided 95% lower bound of the difference; a row is shown to be not worse by more than "
    "2 points (non-inferiority) where it is -2.0 or more, for each row by itself. Feedback: different strong calls behind the "
    "feedback that the row's weak model is aligned on, of all tasks and seeds. Nothing is said of other tasks or seeds than these."
)
CLAIMS_LEGEND = (
    "Claims: shown (opposite shown) where the difference is above (below) 0 with p < 0.05, two-sided, Holm-corrected over the "
    "claims of a task; not shown says that these queries cannot tell, and not that there is no difference."
)
COLUMNS = (
    *("label", "row", "mean", "ci_low", "ci_high", "n", "failed", "cut", "mean_cut_wrong", "baseline", "difference"),
    *("difference_low", "difference_high", "difference_at_least", "p", "p_holm", "test", "baseline_cut"),
    *("calls_per_query", "feedback_calls"),
)
"""Of pooled.csv."""


@dataclass(frozen=True, slots=True)
class PooledCells:
    """A row over all tasks in words."""

    name: str
    mean: str
    difference: str
    at_least: str
    p: str
    n: str
    failed: str
    cut: str
    calls: str
    feedback: str


def pooled_cells(table: PooledTable) -> list[PooledCells]:
    """Every row in words; feedback is left empty where no row has any."""
    counted = any(row.feedback_calls for row in table.rows.values())
    return [
        PooledCells(
            name=name,
            mean=interval(row.mean),
            difference="" if row.against is None else difference(row.against),
            at_least="" if row.at_least is None else bound(row.at_least),
            p="" if row.p_holm is None else p_value(row.p_holm),
            n=str(row.mean.n),
            failed=str(row.mean.n_failed),
            cut=str(row.mean.n_cut),
            calls=f"{row.calls_per_query:.3g}",
            feedback="" if row.feedback_calls is None or not counted else f"{row.feedback_calls:,}",
        )
        for name, row in table.rows.items()
    ]


def difference(c: Comparison) -> str:
    """``+3.1 [+0.2, +6.1]``, in points; ``not scored`` without a query that both answered."""
    if c.diff is None or c.ci_low is None or c.ci_high is None:
        return "not scored"
    return f"{100 * c.diff:+.1f} [{100 * c.ci_low:+.1f}, {100 * c.ci_high:+.1f}]"


def bound(at_least: float) -> str:
    """In points, rounded down: a bound that is just below -2 must not read as -2.0."""
    return f"{math.floor(1000 * at_least + 1e-9) / 10:+.1f}"


def pooled_heading(table: PooledTable) -> str:
    """``Over all tasks``, and the grid's point where there is one."""
    return f"{OVER_ALL.capitalize()}, {table.label}" if table.label else OVER_ALL.capitalize()


def averaged(table: PooledTable) -> str:
    """Which metric of each task is averaged, in a line."""
    if len(metrics := set(table.metrics.values())) == 1:
        return f"The mean of {metrics.pop()} over {', '.join(table.metrics)}."
    return "The mean of " + ", ".join(f"{metric} ({task})" for task, metric in table.metrics.items()) + "."


def pooled_notes(table: PooledTable) -> Iterator[str]:
    """Rows that are not there, and differences that leave out other queries for the one than for the other."""
    for name, tasks in table.missing.items():
        yield f"{name} is not pooled: {', '.join(tasks)} does not have it"
    for c in (row.against for row in table.rows.values()):
        if c is not None and (note := cut_note(c.a, c.a_cut, c.b, c.b_cut)):
            yield f"{c.a} - {c.b}: {note}"


def pooled_markdown(results: TableResults) -> list[str]:
    """The lines of table.md on all tasks together; none where there is one task."""
    lines = []
    for table in results.pooled:
        head = ["row", "mean", f"mean - {results.baseline}", "at least", "p", "n", "failed", "cut", "calls a query"]
        rows = pooled_cells(table)
        feedback = any(c.feedback for c in rows)
        head += ["feedback"] if feedback else []
        lines += [f"### {pooled_heading(table)}", "", averaged(table), ""]
        lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for c in rows:
            told = [f"`{c.name}`", c.mean, c.difference, c.at_least, c.p, c.n, c.failed, c.cut, c.calls]
            lines.append(f"| {' | '.join(told + ([c.feedback] if feedback else []))} |")
        lines += ["", *(line for note in pooled_notes(table) for line in (f"Note: {note}.", ""))]
    return [*lines, LEGEND.format(baseline=f"`{results.baseline}`"), ""] if lines else []


def claim_cells(claim: TableClaim) -> tuple[str, str, str, str, str]:
    """A claim in words: what is claimed, where, the difference, p, the verdict."""
    c = claim.comparison
    where = f"{claim.where}, {claim.label}" if claim.label else claim.where
    p = "" if claim.p_holm is None else p_value(claim.p_holm)
    return f"{claim.claim} ({c.a} - {c.b})", where, difference(c), p, claim.verdict


def claims_markdown(claims: Sequence[TableClaim]) -> list[str]:
    """The lines of table.md on the paper's claims; none where the table does not have their rows."""
    if not claims:
        return []
    head = ("claim", "where", "difference", "p", "verdict")
    lines = ["### The paper's claims here", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(claim_cells(claim))} |" for claim in claims]
    return [*lines, "", CLAIMS_LEGEND, ""]


def pooled_csv(results: TableResults) -> str:
    """One line a row over all tasks; fractions, not percent. Nothing but the head where there is one task."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for table in results.pooled:
        for name, row in table.rows.items():
            v, c = row.mean, row.against
            against = (
                [""] * 9
                if c is None
                else [results.baseline, c.diff, c.ci_low, c.ci_high, row.at_least, c.p, row.p_holm, c.test, c.b_cut]
            )
            scores = (v.mean, v.ci_low, v.ci_high, v.n, v.n_failed, v.n_cut, v.mean_cut_wrong)
            writer.writerow((table.label, name, *scores, *against, row.calls_per_query, row.feedback_calls))
    return file.getvalue()


def pooled_latex(results: TableResults) -> list[str]:
    """The lines of table.tex on all tasks together."""
    lines = []
    for table in results.pooled:
        caption = f"{tex(pooled_heading(table))}. {tex(averaged(table))} $\\Delta$: to {tex(results.baseline)}"
        lines += [
            "\\begin{table}[t]\\centering",
            f"\\caption{{{caption}, at least: one-sided 95\\% bound, $p$ Holm-corrected.}}",
            "\\begin{tabular}{lrrrrr}\\toprule",
            "row & mean & $\\Delta$ & at least & $p$ & calls \\\\ \\midrule",
        ]
        for c in pooled_cells(table):
            told = (
                tex(c.name),
                tex_value(c.mean),
                tex_value(c.difference),
                c.at_least,
                c.p.replace("<", "$<$"),
                c.calls,
            )
            lines.append(f"{' & '.join(told)} \\\\")
        lines += ["\\bottomrule\\end{tabular}\\end{table}", ""]
    return lines
