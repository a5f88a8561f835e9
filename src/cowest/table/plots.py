"""A table as plots with error bars: a point for each row, or for an ablation a line for each row along the grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from cowest.results import MetricValue
from cowest.table.pooled import OVER_ALL, PooledTable
from cowest.table.results import Table, TableResults

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
"""Okabe and Ito's palette, which colour-blind readers can tell apart; markers differ, too."""
_MARKERS = "osD^vP*X"


def write_plots(results: TableResults, out: Path) -> list[Path]:
    """Write ``plots/TASK.svg`` and ``.png`` for every task and for all together; returns the PNG files."""
    folder = out / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    written, figures = [], dict[str, Figure]()
    for task in dict.fromkeys(table.task for table in results.tables):
        tables = [table for table in results.tables if table.task == task]
        figures[task] = _grid(tables, results.axis) if len(tables) > 1 else _rows(tables[0])
    for pooled in results.pooled:
        name = OVER_ALL.replace(" ", "-") + (f"-{pooled.label}" if pooled.label else "")
        figures[name] = _pooled(pooled)
    for name, figure in figures.items():
        with mpl.rc_context({"svg.hashsalt": "cowest", "svg.fonttype": "none"}):
            figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
            figure.savefig(folder / f"{name}.png", bbox_inches="tight", dpi=150)
        written.append(folder / f"{name}.png")
    return written


def _rows(table: Table) -> Figure:
    metric = table.metrics[0]
    told = f"{metric}, percent, with 95% interval (red: best, yellow: tied with it)"
    return _means(
        table.task, told, {name: (row.metrics[metric], row.marks[metric]) for name, row in table.rows.items()}
    )


def _pooled(table: PooledTable) -> Figure:
    told = "mean over tasks, percent, with 95% interval"
    return _means(OVER_ALL, told, {name: (row.mean, "") for name, row in table.rows.items()})


def _means(title: str, told: str, rows: Mapping[str, tuple[MetricValue, str]]) -> Figure:
    figure = Figure(figsize=(7, 0.9 + 0.28 * len(rows)))
    axes = figure.subplots()
    for y, (value, mark) in enumerate(rows.values()):
        colour = {"best": _COLOURS[1], "tied": _COLOURS[4]}.get(mark, _COLOURS[0])
        if value.mean is not None:
            axes.errorbar(
                [100 * value.mean], [y], xerr=_bars([value]), fmt=_MARKERS[0], color=colour, capsize=3, markersize=5
            )
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(told)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _grid(tables: Sequence[Table], axis: str | None) -> Figure:
    metric, labels = tables[0].metrics[0], [table.label for table in tables]
    figure = Figure(figsize=(max(5.0, 1.4 * len(labels) + 2.5), 4))
    axes = figure.subplots()
    names = list(dict.fromkeys(name for table in tables for name in table.rows))
    for i, name in enumerate(names):
        known = [(x, t.rows[name].metrics[metric]) for x, t in enumerate(tables) if name in t.rows]
        known = [(x, value) for x, value in known if value.mean is not None]
        shift = 0.5 * (i - (len(names) - 1) / 2) / max(1, len(names))  # so that intervals do not hide each other
        axes.errorbar(
            [x + shift * 0.4 for x, _ in known],
            [100 * (value.mean or 0.0) for _, value in known],
            yerr=_bars([value for _, value in known]),
            fmt=f"{_MARKERS[i % len(_MARKERS)]}-",
            color=_COLOURS[i % len(_COLOURS)],
            capsize=3,
            markersize=5,
            label=name,
        )
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlabel(axis or "setting")
    axes.set_ylabel(f"{metric}, percent")
    axes.set_title(f"{tables[0].task}: mean with 95% interval", loc="left", fontweight="bold")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _bars(values: Sequence[MetricValue]) -> list[list[float]]:
    """Lengths of the error bars below and above the means, in percent."""
    below = [100 * ((v.mean or 0.0) - (v.ci_low if v.ci_low is not None else v.mean or 0.0)) for v in values]
    above = [100 * ((v.ci_high if v.ci_high is not None else v.mean or 0.0) - (v.mean or 0.0)) for v in values]
    return [[max(0.0, x) for x in below], [max(0.0, x) for x in above]]
