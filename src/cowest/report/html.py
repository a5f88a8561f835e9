"""The report page: records in, one HTML file out that loads nothing and runs no script but its own.

Model text is untrusted. It reaches the page in two ways: through autoescaped template variables, and as JSON in a
script element of a type that browsers do not run, which our script reads and shows with ``textContent``. A content
security policy in the page allows only the script whose hash it names, and no load from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from cowest.report import guard, judging, rounds
from cowest.report.data import PipelineCounts, RunReport, TaskReport
from cowest.report.naming import (
    colour_of,
    cut_note,
    described,
    metric_label,
    order_systems,
    p_value,
    percent,
    points,
    spoken,
    target_of,
    visible,
)
from cowest.report.plots import Plot, checkpoints_plot, curve_plots, gains_plot, guard_plot, systems_plot
from cowest.report.queries import OUTCOMES, QueryList, query_list
from cowest.report.uptake import beyond, columns, counts_of, notes
from cowest.report.verdict import Verdict, mean, verdicts
from cowest.results import Comparison, MetricValue, Results, Share
from cowest.types import Record


class MetricCell(Record):
    """One cell of the results table, in percent; ``note`` says where its counts differ from the main metric's."""

    value: str
    interval: str | None
    best: bool
    note: str | None


class SystemRow(Record):
    """One row of the results table."""

    name: str
    description: str
    colour: int
    cells: list[MetricCell]
    n: int | None
    n_failed: int | None
    n_cut: int | None
    calls: int
    input_tokens: int
    output_tokens: int
    cost: str


class ComparisonRow(Record):
    """One paired comparison, differences in percentage points."""

    a: str
    b: str
    metric: str
    diff: str
    interval: str
    p: str
    test: str
    n: int
    note: str | None


class CountRow(Record):
    """One bar of the way from drafts to pairs; ``width`` is in percent of the largest."""

    label: str
    value: int
    width: float
    note: str | None


class OverviewCell(Record):
    """A system's main metric in the overview."""

    value: str
    best: bool


class UptakeCell(Record):
    """One share of what the strong model does with a draft; ``value`` in percent, '—' where there is no case."""

    value: str
    counts: str
    interval: str | None


class UptakeSystem(Record):
    """One system with drafts. ``beyond``: agreement with the draft beyond that without it, in points."""

    name: str
    colour: int
    beyond: str


class UptakeRow(Record):
    """One share, and what it means, with a cell for each system."""

    head: str
    about: str
    cells: list[UptakeCell]


class UptakeView(Record):
    """What the strong model does with a draft: a column a system, which also fits a narrow page."""

    systems: list[UptakeSystem]
    rows: list[UptakeRow]
    notes: list[str]
    against_solo: bool


class RoundsView(Record):
    """The rounds of a loop, a row each, and why no other followed."""

    heads: list[str]
    rows: list[list[str]]
    ending: str
    legend: str


class GuardTable(Record):
    """What `cowest guard` has come to: the promise, a row a system, and quality against calls."""

    heads: list[str]
    rows: list[list[str]]
    told: list[str]
    plot: Plot


class JudgingTable(Record):
    """What the judges that compare answers came to, a row a judge."""

    heads: list[str]
    rows: list[list[str]]
    notes: list[str]
    legend: str


class TaskView(Record):
    """One section of the page, ready to be written down."""

    key: str
    task: str
    name: str
    main_metric: str
    metrics: list[str]
    verdicts: list[Verdict]
    rows: list[SystemRow]
    left_out: list[tuple[str, str]]
    warnings: list[tuple[str, str]]
    uptake: UptakeView | None
    comparisons: list[ComparisonRow]
    other_comparisons: list[ComparisonRow]
    overview: dict[str, OverviewCell]
    systems_plots: list[Plot]
    training_plots: list[Plot]
    rounds: RoundsView | None
    judging: JudgingTable | None
    guard: GuardTable | None
    gains_plot: Plot | None
    counts: list[CountRow]
    stages: list[tuple[str, str, str]]
    queries: QueryList


def render(report: RunReport) -> str:
    """Return the page as text; write it as UTF-8. Parts without data are left out, never faked."""
    script, style = _asset("report.js"), _asset("report.css")
    names = order_systems(n for t in report.tasks for n in t.results.systems)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _template().render(
        report=report,
        tasks=[_task_view(task, f"task-{i}") for i, task in enumerate(report.tasks, 1)],
        systems=[(n, described(n), colour_of(n, names)) for n in names],
        outcomes=OUTCOMES,
        script=Markup(script),
        style=Markup(style),
        script_hash=f"sha256-{digest}",
    )


def _task_view(task: TaskReport, key: str) -> TaskView:
    results, main = task.results, task.main_metric
    seen = list(dict.fromkeys(m for s in results.systems.values() for m in s.metrics))
    metrics = sorted(seen, key=lambda m: m != main)
    training = [p for i, c in enumerate(task.curves) for p in curve_plots(c, f"{key}-curve{i}")]
    if (checkpoints := checkpoints_plot(task.checkpoints, f"{key}-checkpoints")) is not None:
        training.append(checkpoints)
    comparisons = sorted(results.comparisons, key=lambda c: not _about(c, target_of(results.systems)))
    return TaskView(
        key=key,
        task=results.task,
        name=results.name,
        main_metric=metric_label(main),
        metrics=[metric_label(m) for m in metrics],
        verdicts=verdicts(results, main),
        rows=_rows(task, metrics),
        left_out=list(results.left_out.items()),
        warnings=[(stage, text) for stage, done in results.stages.items() for text in done.warnings],
        uptake=_uptake(results),
        comparisons=[_comparison(c) for c in comparisons if c.metric == main],
        other_comparisons=[_comparison(c) for c in comparisons if c.metric != main],
        overview=_overview(task),
        systems_plots=[systems_plot(results, m, f"{key}-metric{i}") for i, m in enumerate(metrics)],
        training_plots=training,
        rounds=_rounds(results),
        judging=_judging(task),
        guard=_guard(task, key),
        gains_plot=gains_plot(task.gains, f"{key}-gains"),
        counts=_counts(task.counts),
        stages=[
            (stage, f"{s.seconds:,.1f}", ", ".join(f"{k.replace('_', ' ')} {v:,}" for k, v in s.counts.items()))
            for stage, s in results.stages.items()
        ],
        queries=query_list(task.queries),
    )


def _overview(task: TaskReport) -> dict[str, OverviewCell]:
    best, metric = _best(task, task.main_metric), task.main_metric
    return {
        name: OverviewCell(value=percent(mean(task.results, name, metric)), best=name in best)
        for name in task.results.systems
    }


def _about(comparison: Comparison, target: str | None) -> bool:
    return target in (comparison.a, comparison.b)


def _best(task: TaskReport, metric: str) -> set[str]:
    """Return the systems with the highest mean as it is written on the page; none where all are equal."""
    means = {n: m for n in task.results.systems if (m := mean(task.results, n, metric)) is not None}
    shown = {n: percent(m) for n, m in means.items()}
    if len(set(shown.values())) < 2:
        return set()
    top = percent(max(means.values()))
    return {n for n, text in shown.items() if text == top}


def _rows(task: TaskReport, metrics: list[str]) -> list[SystemRow]:
    systems = task.results.systems
    names = order_systems(systems)
    best = {m: _best(task, m) for m in metrics}
    rows = []
    for name in names:
        result = systems[name]
        main, usage = result.metrics.get(task.main_metric), result.usage
        rows.append(
            SystemRow(
                name=name,
                description=described(name),
                colour=colour_of(name, names),
                cells=[_cell(result.metrics.get(m), main, name in best[m]) for m in metrics],
                n=main.n if main else None,
                n_failed=main.n_failed if main else None,
                n_cut=main.n_cut if main else None,
                calls=usage.calls,
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cost="—" if usage.cost_usd is None else f"${usage.cost_usd:,.4f}",
            )
        )
    return rows


def _rounds(results: Results) -> RoundsView | None:
    if not results.rounds:
        return None
    return RoundsView(
        heads=list(rounds.HEADS),
        rows=[list(rounds.cells(one)) for one in results.rounds],
        ending=rounds.ending(results.rounds),
        legend=rounds.LEGEND,
    )


def _guard(task: TaskReport, key: str) -> GuardTable | None:
    view = task.guard
    if view is None:
        return None
    plot = guard_plot(view, f"{key}-guard")
    return GuardTable(heads=guard.heads(view), rows=guard.rows(view), told=list(view.told), plot=plot)


def _judging(task: TaskReport) -> JudgingTable | None:
    if not task.judging:
        return None
    return JudgingTable(
        heads=list(judging.HEADS),
        rows=judging.rows(task.judging),
        notes=judging.notes(task.judging),
        legend=judging.LEGEND,
    )


def _uptake(results: Results) -> UptakeView | None:
    names = order_systems(results.systems)
    found = {name: u for name in names if (u := results.systems[name].uptake) is not None}
    if not found:
        return None
    return UptakeView(
        systems=[
            UptakeSystem(name=name, colour=colour_of(name, names), beyond=beyond(u).replace("-", "−"))
            for name, u in found.items()
        ],
        rows=[
            UptakeRow(head=c.head, about=c.about, cells=[_uptake_cell(c.of(u)) for u in found.values()])
            for c in columns(list(found.values()))
        ],
        notes=notes(found),
        against_solo=any(u.solo is not None for u in found.values()),
    )


def _uptake_cell(share: Share | None) -> UptakeCell:
    if share is None or share.share is None:
        return UptakeCell(value="—", counts=counts_of(share), interval=None)
    interval = f"{percent(share.ci_low, 0)} to {percent(share.ci_high, 0)}"
    return UptakeCell(value=percent(share.share, 0), counts=counts_of(share).replace("/", " of "), interval=interval)


def _cell(value: MetricValue | None, main: MetricValue | None, best: bool) -> MetricCell:
    if value is None:
        return MetricCell(value="—", interval=None, best=False, note=None)
    known = value.ci_low is not None and value.ci_high is not None
    differs = main is not None and (value.n, value.n_failed) != (main.n, main.n_failed)
    notes = [f"n = {value.n:,}, {value.n_failed:,} failed"] if differs else []
    if value.mean_cut_wrong is not None:
        notes.append(f"{percent(value.mean_cut_wrong)} with those cut off as wrong")
    return MetricCell(
        value=percent(value.mean),
        interval=f"{percent(value.ci_low)} to {percent(value.ci_high)}" if known else None,
        best=best,
        note="; ".join(notes) or None,
    )


def _comparison(row: Comparison) -> ComparisonRow:
    known = row.ci_low is not None and row.ci_high is not None
    return ComparisonRow(
        a=row.a,
        b=row.b,
        metric=metric_label(row.metric),
        diff=points(row.diff),
        interval=f"{points(row.ci_low)} to {points(row.ci_high)}" if known else "—",
        p=p_value(row.p),
        test=row.test.replace("_", " "),
        n=row.n,
        note=cut_note(row.a, row.a_cut, row.b, row.b_cut),
    )


def _counts(counts: list[PipelineCounts]) -> list[CountRow]:
    top = max((c.value for c in counts), default=0)
    return [
        CountRow(label=c.label, value=c.value, width=100 * max(c.value, 0) / top if top > 0 else 0.0, note=c.note)
        for c in counts
    ]


def _asset(name: str) -> str:
    # Newlines as the browser's parser will see them, or the script's hash in the policy would not match.
    return resources.files("cowest.report").joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


@cache
def _template() -> Template:
    environment = Environment(
        loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined, finalize=_finalize,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(spoken=spoken, thousands=lambda n: f"{n:,}", safe_svg=Markup)
    return environment.get_template("report.html.j2")


def _finalize(value: object) -> object:
    """Make unseen characters visible in every plain string that the template prints."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
