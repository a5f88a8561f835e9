"""What ``cowest runs``, ``watch``, ``compare`` and ``prune`` print for people."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, Group
from rich.live import Live as LiveDisplay
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cowest.results import Comparison, MetricValue
from cowest.run.live import Live
from cowest.runs.compare import RunComparison, TaskComparison
from cowest.runs.found import Found, Score, ago
from cowest.runs.prune import Removable
from cowest.runs.watch import Look

_COLOURS = {
    "running": "cyan",
    "done": "green",
    "stopped": "yellow",
    "failed": "red",
    "damaged": "red",
    "not begun": "dim",
}


def _console() -> Console:
    return Console(width=None if Console().is_terminal else 132, highlight=False)


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


def size(count: int) -> str:
    """Bytes as people say them."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] in ("B", "kB") or value >= 100 else f"{value:.1f} {units[0]}"


def _percent(value: MetricValue) -> str:
    if value.mean is None or value.ci_low is None or value.ci_high is None:
        return "-"
    return f"{100 * value.mean:.1f} [{100 * value.ci_low:.1f}, {100 * value.ci_high:.1f}]"


def _usd(run: Found) -> str:
    if run.usd is None:
        return f"{run.calls} calls" if run.calls else "-"
    return f"{run.usd:.2f}" if run.usd >= 0.01 or run.usd == 0 else f"{run.usd:.4f}"


def _short(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2]


def _numbers(run: Found) -> str:
    many = len(run.scores) > 1
    return "\n".join(f"{f'{task}: ' if many else ''}{_of(score)}" for task, score in run.main)


def _of(score: Score) -> str:
    return f"{score.system} {score.metric} {_percent(score.value)}"


def print_runs(directory: object, runs: Sequence[Found]) -> None:
    """A row a run, the one changed last at the end."""
    console = _console()
    if not runs:
        _line(console, f"{directory}: no runs; `cowest run RECIPE` makes runs/NAME")
        return
    table = Table()
    for name in ("run", "state", "task", "weak + strong", "main numbers [95% CI]", "USD", "size", "changed"):
        table.add_column(name, justify="right" if name in ("USD", "size") else "left", overflow="fold")
    for run in sorted(runs, key=lambda run: run.changed):
        state = Text(
            run.state if not run.stage or run.state == "done" else f"{run.state}: {run.stage}",
            style=_COLOURS[run.state],
        )
        named = Text(run.path + (" (table)" if run.kind == "table" else ""))
        models = f"{_short(run.weak)} + {_short(run.strong)}" if run.weak or run.strong else ""
        table.add_row(
            named,
            state,
            Text(run.task),
            Text(models),
            Text(_numbers(run)),
            _usd(run),
            size(run.bytes),
            ago(run.changed),
        )
    console.print(table)
    for run in runs:
        if run.why:
            _line(console, f"{run.path}: {run.state}: {run.why}")


def follow(look: Callable[[], Look], every: float, once: bool) -> None:
    """Show a run until it is over: its log's new lines, and below them where it is."""
    console = Console(highlight=False)
    if once or not console.is_terminal:
        _follow_plainly(console, look, every, once)
        return
    with LiveDisplay(console=console, auto_refresh=False, transient=True) as display:
        while True:
            now = look()
            for line in now.new:
                display.console.print(line, markup=False, soft_wrap=True)
            display.update(Group(*_where(now.run)), refresh=True)
            if now.over:
                break
            time.sleep(every)
    _line(console, told(now.run))


def _follow_plainly(console: Console, look: Callable[[], Look], every: float, once: bool) -> None:
    said = ""
    while True:
        now = look()
        for line in () if once else now.new:
            _line(console, line)
        state = told(now.run)
        if state != said and (once or now.over or not now.new):
            _line(console, state)
            said = state
        sys.stdout.flush()
        if once or now.over:
            return
        time.sleep(every)


def _where(run: Found) -> Iterator[Table | Text]:
    for live in _now(run):
        row = Table.grid(padding=(0, 1))
        row.add_row(
            Text(live.label), ProgressBar(total=live.total or 1, completed=live.done, width=24), Text(_far(live))
        )
        yield row
    yield Text(told(run), style=_COLOURS[run.state])


def _now(run: Found) -> list[Live]:
    return [live for live in run.live if live.ended is None and live.label]


def _far(live: Live) -> str:
    left = live.left_s(time.time())
    rate = (live.done - live.at_start) / max(time.time() - live.step_began, 1e-9)
    parts = [
        f"{live.done}/{live.total}" if live.total else str(live.done),
        f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min",
    ]
    if left is not None:
        parts.append(f"about {left / 60:.0f} min left" if left > 90 else f"about {left:.0f} s left")
    return ", ".join(parts)


def told(run: Found) -> str:
    """Where a run is, in a line."""
    parts = [f"{run.path}: {run.state}"]
    if run.state == "running":
        parts += [f"{live.label} {_far(live)}" for live in _now(run)] or ([run.stage] if run.stage else [])
    elif run.why:
        parts.append(run.why)
    elif run.state == "stopped" and run.stage:
        parts.append(f"in {run.stage}; the same command continues it")
    if run.calls:
        budget = "" if run.budget_usd is None else f" of {run.budget_usd:.2f}"
        parts.append(f"{run.calls} calls paid" + ("" if run.usd is None else f", USD {_usd(run)}{budget}"))
    if run.state == "done":
        parts += [f"{f'{task} ' if task else ''}{_of(score)}" for task, score in run.main]
    return "; ".join(parts)


def print_comparison(done: RunComparison) -> None:
    """A table a task, its paired differences, then what differs in the recipes."""
    console = _console()
    for task in done.tasks:
        console.print(_compared(task))
        for difference in task.differences:
            _line(console, f"  {_difference(difference)}")
        left = [f"{name} {n}" for name, n in task.only.items() if n]
        if left:
            _line(console, f"  {task.n} queries are in all of them; left out, as they are not: {', '.join(left)}")
    for run in done.runs:
        _line(console, f"{run.path}: {run.state}, paid {_usd(run)}{' USD' if run.usd is not None else ''}")
    if not done.settings:
        _line(console, "Their recipes are the same but for their names.")
        return
    names = list(next(iter(done.settings.values())))
    table = Table(title="Settings that differ", title_justify="left", title_style="bold")
    for name in ("setting", *names):
        table.add_column(name, overflow="fold")
    for key, values in done.settings.items():
        table.add_row(Text(key), *(Text("" if v is None else str(v)) for v in values.values()))
    console.print(table)


def _compared(task: TaskComparison) -> Table:
    title = (
        f"{task.task}: {task.metric} on {task.n} common queries"
        if task.task
        else f"{task.metric} on {task.n} common queries"
    )
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("run", "system", "common queries [95% CI]", "all of its queries [95% CI]", "failed", "cut"):
        table.add_column(name, justify="left" if name in ("run", "system") else "right", overflow="fold")
    for side in task.sides:
        failed, cut = str(side.whole.n_failed), str(side.whole.n_cut)
        table.add_row(Text(side.run), side.system, _percent(side.shared), _percent(side.whole), failed, cut)
    return table


def _difference(c: Comparison) -> str:
    if c.diff is None or c.ci_low is None or c.ci_high is None or c.p is None:
        return f"{c.a} - {c.b}: not known, no query was scored in both"
    p = f"{c.p:.2g}" if c.p >= 1e-4 else f"{c.p:.1e}"
    between = f"{100 * c.diff:+.1f} points [{100 * c.ci_low:+.1f}, {100 * c.ci_high:+.1f}]"
    return f"{c.a} - {c.b}: {between}, p = {p} ({c.test}, n = {c.n})"


def print_removable(parts: Sequence[Removable]) -> None:
    """What can go, and how much that is."""
    console = _console()
    if not parts:
        _line(console, "nothing to remove")
        return
    table = Table()
    table.add_column("can go", overflow="fold")
    table.add_column("why")
    table.add_column("frees", justify="right")
    for part in parts:
        table.add_row(Text(part.path), part.why, size(part.bytes))
    console.print(table)
    _line(console, f"{len(parts)} in all, {size(sum(part.bytes for part in parts))}")
