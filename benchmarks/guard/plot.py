"""Expected score against strong calls a query, a panel a cell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

MARKS = {
    "weak": ("o", "tab:gray"),
    "strong": ("s", "tab:blue"),
    "both": ("^", "tab:purple"),
    "guarded": ("D", "tab:green"),
    "cascade": ("v", "tab:orange"),
}
CALLS = {"weak": 0.0, "strong": 1.0, "both": 1.0}
ACROSS = 6


def drawn(cells: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Write the plot of these cells."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    down = -(-len(cells) // ACROSS)
    across = min(len(cells), ACROSS)
    figure, panels = pyplot.subplots(down, across, figsize=(3.0 * across, 2.8 * down + 0.5), sharex=True, squeeze=False)
    for panel, (name, cell) in zip(panels.flat, cells.items(), strict=False):
        points = {arm: (CALLS[arm], score) for arm, score in cell["alone"].items()}
        points |= {row: (one["calls"], one["score"]) for row, one in cell["rows"].items()}
        for who, (calls, score) in points.items():
            marker, colour = MARKS[who]
            panel.scatter(calls, 100 * score, marker=marker, color=colour, s=55, label=who, zorder=3)
        panel.axhline(100 * cell["better"], color="black", linewidth=0.8, linestyle=":")
        domain, strong, when = name.split()
        panel.set_title(f"{domain}\n{strong}, {when} alignment", fontsize=8)
        panel.set_xlim(-0.15, 2.05)
        panel.grid(alpha=0.3)
    for panel in list(panels.flat)[len(cells) :]:
        panel.set_axis_off()
    figure.supxlabel("strong calls a query", fontsize=9)
    figure.supylabel("expected score, %", fontsize=9, x=0.005)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(labels), fontsize=9, frameon=False)
    figure.tight_layout(rect=(0.015, 0.01, 1, 0.95))
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
