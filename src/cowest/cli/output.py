"""What the command line prints of results: a table for people, the same as JSON for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import JsonValue
from rich.console import Console
from rich.table import Table

from cowest.cli.output_ledger import cost_line
from cowest.pipeline import RunSummary
from cowest.report import rounds
from cowest.report.naming import TARGETS, cut_note
from cowest.report.uptake import LEGEND, TITLE, beyond, columns, counts_of, notes, percent_of
from cowest.results import MetricValue, Results, RoundResult, Uptake
from cowest.stages.reporting import summary_json


def results_json(done: RunSummary) -> JsonValue:
    """The content of ``results.json`` (one task), or of ``summary.json`` with the path of the report."""
    if "" in done.results:
        return done.results[""].model_dump(mode="json", by_alias=True) | {"report": str(done.report)}
    name = next(iter(done.results.values())).name
    return summary_json(name, done.results) | {"report": str(done.report)}


def print_results(done: RunSummary) -> None:
    """Systems x metrics on stdout, a column a metric, with 95% intervals."""
    console = Console(width=None if Console().is_terminal else 132)
    for name, results in done.results.items():
        console.print(_table(name or results.task, results))
        print_uptake(console, {n: s.uptake for n, s in results.systems.items() if s.uptake is not None})
        _print_rounds(console, results.rounds)
        for line in (
            *_warning_lines(results),
            *_cut_lines(results),
            *_left_out_lines(results),
            *_main_comparisons(results),
        ):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        console.print()
    if any(s.uptake is not None for r in done.results.values() for s in r.systems.values()):
        console.print(LEGEND, markup=False, highlight=False, soft_wrap=True)
    if done.bill is not None:
        console.print(
            f"Paid in all: {cost_line(done.bill)}; `cowest ledger {done.out}` has the details.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"Report: {done.report}", markup=False, highlight=False, soft_wrap=True)


def _table(title: str, results: Results) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("system")
    metrics = list(next(iter(results.systems.values())).metrics)
    for metric in metrics:
        table.add_column(f"{metric} [95% CI]", justify="right")
    table.add_column("n", justify="right")
    table.add_column("failed", justify="right")
    table.add_column("cut", justify="right")
    for system, result in results.systems.items():
        first = result.metrics[metrics[0]]
        cells = [_cell(result.metrics[m]) for m in metrics]
        table.add_row(system, *cells, str(first.n), str(first.n_failed), str(first.n_cut))
    return table


def _cut_lines(results: Results) -> list[str]:
    """What the column "cut" means, where something was."""
    lines = []
    for system, result in results.systems.items():
        metric, first = next(iter(result.metrics.items()))
        if first.n_cut and first.mean_cut_wrong is not None:
            setting = "evaluate.draft.max_tokens" if system == "weak" else "evaluate.answer.max_tokens"
            lines.append(
                f"  {system}: {first.n_cut} cut off before an answer, left out of the mean; counted as wrong, {metric} is "
                f"{100 * first.mean_cut_wrong:.1f} (raise {setting})"
            )
    return lines


def print_uptake(console: Console, uptakes: Mapping[str, Uptake]) -> None:
    """What the strong model does with a draft, a row a system; nothing where no system has drafts."""
    if not uptakes:
        return
    shown = columns(list(uptakes.values()))
    table = Table(title=TITLE, title_justify="left", title_style="bold")
    table.add_column("system")
    for column in shown:
        table.add_column(column.head, justify="right")
    for name, uptake in uptakes.items():
        cells = [column.of(uptake) for column in shown]
        table.add_row(name, *(f"{percent_of(share)}\n{counts_of(share)}" for share in cells))
    console.print(table)
    lines = [f"{name}: the draft's answer is its own {by} more often than alone" for name, by in _beyond(uptakes)]
    for line in (*lines, *notes(uptakes)):
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def _print_rounds(console: Console, found: Sequence[RoundResult]) -> None:
    """What each round took and gave; nothing for a recipe of one."""
    if not found:
        return
    table = Table(title=rounds.TITLE, title_justify="left", title_style="bold")
    for n, head in enumerate(rounds.HEADS):
        table.add_column(head, justify="right" if n else "left")
    for one in found:
        table.add_row(*rounds.cells(one))
    console.print(table)
    for line in (rounds.ending(found), rounds.LEGEND):
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def _beyond(uptakes: Mapping[str, Uptake]) -> list[tuple[str, str]]:
    return [(name, by) for name, uptake in uptakes.items() if (by := beyond(uptake))]


def _warning_lines(results: Results) -> list[str]:
    """What the run noticed of its own records."""
    return [f"  warning: {stage}: {text}" for stage, s in results.stages.items() for text in s.warnings]


def _left_out_lines(results: Results) -> list[str]:
    """Why a row that the recipe asks for is not there."""
    return [f"  warning: no row {name}: {why}" for name, why in results.left_out.items()]


def _cell(value: MetricValue) -> str:
    if value.mean is None or value.ci_low is None or value.ci_high is None:
        return "not scored"
    return f"{100 * value.mean:5.1f} [{100 * value.ci_low:.1f}, {100 * value.ci_high:.1f}]"


def _main_comparisons(results: Results) -> list[str]:
    lines = []
    for c in results.comparisons:
        main = next(iter(results.systems[c.a].metrics))
        if c.a not in TARGETS or c.metric != main:
            continue
        note = cut_note(c.a, c.a_cut, c.b, c.b_cut)
        if c.diff is None and c.test == "paired_bootstrap" and note:
            lines.append(f"  {c.a} - {c.b}: no query was answered by both; {note}")
        if c.diff is not None and c.p is not None and c.ci_low is not None and c.test != "paired_bootstrap":
            lines.append(
                f"  {c.a} - {c.b}: {100 * c.diff:+.1f} points "
                f"[{100 * c.ci_low:+.1f}, {100 * (c.ci_high or 0):+.1f}], p = {c.p:.2g} ({c.test}, n = {c.n})"
            )
            lines += [f"    {note}"] if note else []
    return lines
