"""A table for people and papers: Markdown, CSV, LaTeX, and the rows of the terminal's."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cowest.report.naming import cut_note
from cowest.report.uptake import COLUMNS as UPTAKE_COLUMNS
from cowest.report.uptake import LEGEND as UPTAKE_LEGEND
from cowest.report.uptake import TITLE, beyond, columns, counts_of, interval_of, notes, percent_of
from cowest.run.store import write_atomic
from cowest.table.results import Difference, GridDifference, RowResult, Table, TableResults
from cowest.table.words import interval, p_value, tex, tex_value
from cowest.table.write_pooled import claims_markdown, pooled_csv, pooled_latex, pooled_markdown

LEGEND = (
    "Percent with 95% bootstrap intervals over queries. Bold: the best mean; italic: not significantly below it (paired test, "
    "Holm-corrected, alpha 0.05). Difference: paired, in points, to {baseline}; p by exact McNemar (right or "
    "wrong) or the paired bootstrap, Holm-corrected over the rows. USD and s are of one query, s as measured in this run. Cut: "
    "answers that were cut off at max_tokens before they came, left out of the mean (counted as wrong in table.csv). Shortened: "
    "queries whose context had to be shortened to fit the window."
)

_OF_THE_ROW = (
    *("task", "label", "row", "metric", "mean", "ci_low", "ci_high", "n", "failed", "cut", "mean_cut_wrong", "mark"),
)
_DIFFERENCE = ("baseline", "difference", "difference_low", "difference_high", "p", "p_holm", "test", "baseline_cut")
_TAKEN = (
    "usd_per_query",
    "seconds_per_query",
    "calls",
    "input_tokens",
    "output_tokens",
    "truncated",
    "truncated_context",
    "feedback_calls",
)
COLUMNS = (*_OF_THE_ROW, *_DIFFERENCE, *_TAKEN)
"""Of the CSV."""


@dataclass(frozen=True, slots=True)
class Cells:
    """A row in words. ``values`` are (text, mark) by metric; ``difference`` and ``p`` are of the main metric."""

    name: str
    values: Sequence[tuple[str, Literal["best", "tied", ""]]]
    difference: str
    p: str
    usd: str
    seconds: str
    n: str
    failed: str
    cut: str
    shortened: str


def heading(table: Table) -> str:
    """The task, and the grid's point where there is one."""
    return f"{table.task}, {table.label}" if table.label else table.task


def cells(table: Table) -> list[Cells]:
    """Every row of a table in words."""
    main = table.metrics[0]
    against = {d.comparison.a: d for d in table.differences if d.comparison.metric == main}
    found = []
    for name, row in table.rows.items():
        d = against.get(name)
        first = row.metrics[main]
        found.append(
            Cells(
                name=name,
                values=[(interval(row.metrics[m]), row.marks[m]) for m in table.metrics],
                difference="" if d is None or d.comparison.diff is None else f"{100 * d.comparison.diff:+.1f}",
                p="" if d is None or d.p_holm is None else p_value(d.p_holm),
                usd=_usd(row),
                seconds="" if row.latency_s is None else f"{row.latency_s:.2f}",
                n=str(first.n),
                failed=str(first.n_failed),
                cut=str(first.n_cut),
                shortened=str(row.truncated_context),
            )
        )
    return found


def _usd(row: RowResult) -> str:
    if row.usage.cost_usd is None:
        return "unknown" if row.usage.calls else ""
    each = row.usage.cost_usd / max(1, row.queries)
    return f"{each:.5f}" if each else "0"


def write_table(results: TableResults, out: Path) -> dict[str, Path]:
    """Write results.json, table.md, table.csv, table.tex, uptake.csv and pooled.csv into ``out``; returns their paths by kind."""
    texts = {
        "results.json": results.model_dump_json(indent=2, by_alias=True) + "\n",
        "table.md": markdown(results),
        "table.csv": csv_text(results),
        "table.tex": latex(results),
        "uptake.csv": uptake_csv(results),
        "pooled.csv": pooled_csv(results),
    }
    for name, text in texts.items():
        write_atomic(out / name, text)
    return {name: out / name for name in texts}


def markdown(results: TableResults) -> str:
    """One Markdown table for each task and point of the grid, then all tasks together, and the paper's claims."""
    lines = []
    for table in results.tables:
        head = [
            "row",
            *table.metrics,
            f"{table.metrics[0]} - {results.baseline}",
            "p",
            "USD",
            "s",
            "n",
            "failed",
            "cut",
            "shortened",
        ]
        lines += [f"### {heading(table)}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for c in cells(table):
            values = [_marked(text, mark, "**", "_") for text, mark in c.values]
            counts = (c.n, c.failed, c.cut, c.shortened)
            lines.append(f"| {' | '.join([f'`{c.name}`', *values, c.difference, c.p, c.usd, c.seconds, *counts])} |")
        lines += ["", *(line for note in cut_notes(table) for line in (f"Note: {note}.", ""))]
        lines += [line for note in calls_before(table) for line in (f"{note}.", "")]
        lines += _uptake(table)
        if len(table.by_seed) > 1:
            lines += ["By seed: " + _by_seed(table), ""]
    lines += [*pooled_markdown(results), *claims_markdown(results.claims)]
    if results.grid_differences:
        lines += _along(results)
    lines.append(LEGEND.format(baseline=f"`{results.baseline}`"))
    if any(row.uptake is not None for table in results.tables for row in table.rows.values()):
        lines += ["", f"{TITLE}: {UPTAKE_LEGEND} Percent with 95% Wilson intervals, and counts."]
    lines += [line for text in results.warnings for line in ("", f"Warning: {text}")]
    lines += [f"Left out: `{name}`, since {why}." for name, why in results.left_out.items()]
    return "\n".join(lines) + "\n"


def _uptake(table: Table) -> list[str]:
    """What the strong model does with a draft, a line a row that has drafts."""
    found = {name: row.uptake for name, row in table.rows.items() if row.uptake is not None}
    if not found:
        return []
    shown = columns(list(found.values()))
    head = ["row", *(c.head for c in shown), "beyond alone"]
    lines = [f"#### {TITLE}: {heading(table)}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, uptake in found.items():
        shares = [c.of(uptake) for c in shown]
        values = [
            f"{percent_of(s)} [{interval_of(s)}] ({counts_of(s)})" if s is not None and s.of else "" for s in shares
        ]
        lines.append(f"| {' | '.join([f'`{name}`', *values, beyond(uptake)])} |")
    return [*lines, "", *(line for note in notes(found) for line in (f"Note: {note}.", ""))]


def uptake_csv(results: TableResults) -> str:
    """One line a row with drafts, task and share (:data:`cowest.report.uptake.COLUMNS`); fractions, not percent."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("task", "label", "row", "share", "n", "of", "value", "ci_low", "ci_high"))
    for table in results.tables:
        for name, row in table.rows.items():
            for column in UPTAKE_COLUMNS if row.uptake is not None else ():
                s = None if row.uptake is None else column.of(row.uptake)
                if s is not None:
                    values = (s.n, s.of, s.share, s.ci_low, s.ci_high)
                    writer.writerow((table.task, table.label, name, column.key, *values))
    return file.getvalue()


def _along(results: TableResults) -> list[str]:
    """Each row against itself at the grid's first point."""
    lines = [
        f"### Along the grid ({results.axis or 'setting'})",
        "",
        "| task | row | point | difference | p |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| {d.task} | `{d.row}` | {d.label} - {d.first} | {points} | {p} |" for d, points, p in along(results)]
    return [*lines, ""]


def along(results: TableResults) -> Iterator[tuple[GridDifference, str, str]]:
    """What changes along the grid, each with its points, interval and p in words."""
    for d in results.grid_differences:
        c = d.comparison
        if c.diff is not None and d.p_holm is not None:
            points = f"{100 * c.diff:+.1f} [{100 * (c.ci_low or 0):+.1f}, {100 * (c.ci_high or 0):+.1f}]"
            yield d, points, p_value(d.p_holm)


def cut_notes(table: Table) -> list[str]:
    """What the differences to the baseline have to say of answers that were cut off, one for each row."""
    main = [d.comparison for d in table.differences if d.comparison.metric == table.metrics[0]]
    notes = [(c, cut_note(c.a, c.a_cut, c.b, c.b_cut)) for c in main]
    return [f"{c.a} - {c.b}: {note}" for c, note in notes if note]


def calls_before(table: Table) -> list[str]:
    """What rows had cost before they answered anything; nothing where none had."""
    asked = [f"{name} {row.feedback_calls:,}" for name, row in table.rows.items() if row.feedback_calls]
    return (
        [f"Strong calls before the first answer (feedback, calibration, prompt): {', '.join(asked)}"] if asked else []
    )


def _by_seed(table: Table) -> str:
    names = [name for name, row in table.rows.items() if "best" in row.marks.values()] or list(table.rows)[:1]
    parts = []
    for name in names:
        values = [seeds.get(name) for seeds in table.by_seed.values()]
        shown = ", ".join("not scored" if v is None else f"{100 * v:.1f}" for v in values)
        parts.append(f"`{name}` {shown} ({table.metrics[0]}, seeds {', '.join(table.by_seed)})")
    return "; ".join(parts) + ". All rows are in results.json."


def _marked(text: str, mark: str, best: str, tied: str) -> str:
    value, _, rest = text.partition(" ")
    sign = {"best": best, "tied": tied}.get(mark, "")
    return f"{sign}{value}{sign} {rest}".rstrip()


def csv_text(results: TableResults) -> str:
    """One line a row, task and metric; fractions, not percent."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for table in results.tables:
        against = {(d.comparison.a, d.comparison.metric): d for d in table.differences}
        for name, row in table.rows.items():
            usd = None if row.usage.cost_usd is None else row.usage.cost_usd / max(1, row.queries)
            for metric, v in row.metrics.items():
                d = against.get((name, metric))
                writer.writerow(
                    (
                        *(table.task, table.label, name, metric, v.mean, v.ci_low, v.ci_high),
                        *(v.n, v.n_failed, v.n_cut, v.mean_cut_wrong, row.marks[metric]),
                        *_against(results.baseline, d),
                        *(usd, row.latency_s, row.usage.calls, row.usage.input_tokens, row.usage.output_tokens),
                        *(row.truncated, row.truncated_context, row.feedback_calls),
                    )
                )
    return file.getvalue()


def _against(baseline: str, d: Difference | None) -> list[str | float | None]:
    """The columns of a row's difference to the baseline; empty for the baseline itself."""
    if d is None:
        return [""] * len(_DIFFERENCE)
    c = d.comparison
    return [baseline, c.diff, c.ci_low, c.ci_high, c.p, d.p_holm, c.test, c.b_cut]


def latex(results: TableResults) -> str:
    """A booktabs table for each task and point: means, intervals in small print, the best bold and its equals underlined."""
    lines = ["% Made by cowest; needs \\usepackage{booktabs}."]
    for table in results.tables:
        rows = cells(table)
        cut = any(c.cut != "0" for c in rows)  # a column of zeros is left out
        spec = "l" + "r" * (len(table.metrics) + 2 + cut)
        metrics = " & ".join(tex(m) for m in table.metrics)
        lines += [
            "\\begin{table}[t]\\centering",
            f"\\caption{{{tex(heading(table))}. $\\Delta$: to {tex(results.baseline)}, $p$ Holm-corrected.}}",
            f"\\begin{{tabular}}{{{spec}}}\\toprule",
            f"row & {metrics} & $\\Delta$ & $p${' & cut off' if cut else ''} \\\\ \\midrule",
        ]
        for c in rows:
            values = " & ".join(tex_value(text, mark) for text, mark in c.values)
            p = c.p.replace("<", "$<$")
            difference = f"${c.difference}$" if c.difference else ""
            lines.append(f"{tex(c.name)} & {values} & {difference} & {p}{f' & {c.cut}' if cut else ''} \\\\")
        lines += ["\\bottomrule\\end{tabular}\\end{table}", ""]
    return "\n".join([*lines, *pooled_latex(results)]) + "\n"
