"""The report's plots: matplotlib to inline SVG that follows the page's light or dark colours.

Matplotlib draws with sentinel colours; afterwards each becomes ``currentColor`` or a CSS variable (``--c0`` to
``--c7`` for systems, ``--good``, ``--bad``, ``--grid``), so that one drawing serves both colour schemes. Text stays
text, no font is embedded, every id carries the plot's own prefix, and each drawing has a text alternative with its
numbers.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET  # parses only what matplotlib wrote a line before
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cowest.report.data import CheckpointView, GuardView, TrainingCurve
from cowest.report.naming import N_COLOURS, colour_of, finite, metric_label, number, order_systems, percent, visible
from cowest.results import Results

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ET.register_namespace("", _SVG)
ET.register_namespace("xlink", _XLINK)

INK, GRID, GOOD, BAD, MUTED = "#fe0101", "#fe0102", "#fe0103", "#fe0104", "#fe0105"
SYSTEM = tuple(f"#fe000{i}" for i in range(N_COLOURS))
_CSS = {INK: "currentColor", GRID: "var(--grid)", GOOD: "var(--good)", BAD: "var(--bad)", MUTED: "var(--muted)"} | {
    c: f"var(--c{i})" for i, c in enumerate(SYSTEM)
}
_MARKERS = "os^DvPX*"
_WIDTH = 4.3  # inches; 310 SVG units, so that 10-unit text is about 11 px on a phone


@dataclass(frozen=True)
class Plot:
    """An inline SVG with its heading and a caption; the SVG is safe to put on the page as it is."""

    title: str
    svg: str
    caption: str = ""


def systems_plot(results: Results, metric: str, uid: str) -> Plot:
    """Return the systems' means on ``metric`` with their 95% intervals, one row each."""
    names = order_systems(results.systems)
    said = []
    with _style():
        fig, ax = _axes(0.75 + 0.36 * len(names))
        across = ax.get_yaxis_transform()  # x in parts of the axes, y in rows
        for row, name in enumerate(names):
            value = results.systems[name].metrics.get(metric)
            mean = finite(value.mean) if value else None
            if value is None or mean is None:
                ax.text(0.5, row, "not scored", transform=across, ha="center", va="center", color=MUTED)
                said.append(f"{name} not scored")
                continue
            slot = colour_of(name, names)
            low, high = finite(value.ci_low), finite(value.ci_high)
            if low is not None and high is not None:
                ax.plot([100 * low, 100 * high], [row, row], color=SYSTEM[slot], linewidth=3.5, alpha=0.45)
                said.append(f"{name} {percent(mean)}% (95% interval {percent(low)} to {percent(high)})")
            else:
                said.append(f"{name} {percent(mean)}%")
            ax.plot([100 * mean], [row], _MARKERS[slot], color=SYSTEM[slot], markersize=7)
            ax.text(1.02, row, percent(mean), transform=across, va="center", fontweight="bold")
        ax.set_yticks(range(len(names)), [_short(n) for n in names])
        ax.tick_params(axis="y", length=0, labelcolor=INK)
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.set_xlim(*_percent_limits(results, metric))
        ax.grid(axis="y", visible=False)
        ax.spines["left"].set_visible(False)
        ax.set_xlabel("percent, with 95% interval")
        label = metric_label(metric)
        return Plot(label, _svg(fig, uid, f"{label} per system: {'; '.join(said)}."))


def _percent_limits(results: Results, metric: str) -> tuple[float, float]:
    seen = [v for s in results.systems.values() if (m := s.metrics.get(metric)) for v in (m.mean, m.ci_low, m.ci_high)]
    known = [100 * v for x in seen if (v := finite(x)) is not None]
    if not known:
        return 0.0, 100.0
    low, high = 10 * np.floor((min(known) - 2) / 10), 10 * np.ceil((max(known) + 1) / 10)
    return float(max(low, 0.0) if min(known) >= 0 else low), float(min(high, 100.0) if max(known) <= 100 else high)


def curve_plots(curve: TrainingCurve, uid: str) -> list[Plot]:
    """Return one plot per group of logged values; ``x/chosen`` and ``x/rejected`` share one."""
    found = []
    for i, (title, series) in enumerate(_groups(curve).items()):
        lines = {name: _series(curve, key) for name, key in series.items()}
        lines = {name: line for name, line in lines.items() if line}
        if lines:
            start = float(np.log(2)) if title == "DPO loss" else None
            found.append(_line_plot(title, lines, f"{uid}-{i}", start))
    return found


_TITLES = {
    "logps": "Log-probability of drafts",
    "rewards": "Implicit reward",
    "rewards/margins": "Reward margin, chosen − rejected",
    "rewards/accuracies": "Pairs ranked rightly",
}
_LEFT_OUT = ("epoch", "learning_rate", "grad_norm", "runtime", "per_second", "num_tokens", "total_flos")


def _groups(curve: TrainingCurve) -> dict[str, dict[str, str]]:
    """Return title -> line name -> logged key, losses first; bookkeeping of the trainer is left out."""
    keys = list(dict.fromkeys(k for p in curve.points for k in p.values))
    keys.sort(key=lambda k: (not k.endswith("loss"), not k.startswith("logps"), "margins" not in k))
    stage = "SFT" if curve.stage == "sft" else "DPO"
    groups: dict[str, dict[str, str]] = {}
    for key in keys:
        stem, _, last = key.rpartition("/")
        if key.endswith(_LEFT_OUT):
            continue
        if key in ("loss", "eval_loss"):
            groups.setdefault(f"{stage} loss", {})["validation" if key == "eval_loss" else "training"] = key
        elif last in ("chosen", "rejected"):
            groups.setdefault(_TITLES.get(stem, stem), {})[last] = key
        else:
            groups.setdefault(_TITLES.get(key, key), {})[key] = key
    return groups


def _series(curve: TrainingCurve, key: str) -> list[tuple[int, float]]:
    return [(p.step, v) for p in curve.points if (v := finite(p.values.get(key))) is not None]


_LINE_STYLE = {
    "chosen": (GOOD, "-"),
    "rejected": (BAD, "--"),
    "training": (SYSTEM[1], "-"),
    "validation": (SYSTEM[0], "--"),
}


def _line_plot(title: str, lines: dict[str, list[tuple[int, float]]], uid: str, start: float | None) -> Plot:
    said, caption = [], ""
    with _style():
        fig, ax = _axes(2.5)
        for name, line in lines.items():
            colour, dash = _LINE_STYLE.get(name, (SYSTEM[1], "-"))
            steps, values = [s for s, _ in line], [v for _, v in line]
            ax.plot(steps, values, dash, color=colour, label=_short(name), marker="o" if len(line) == 1 else None)
            said.append(f"{name} from {values[0]:.4g} at step {steps[0]} to {values[-1]:.4g} at step {steps[-1]}")
        if start is not None:
            ax.axhline(start, color=MUTED, linewidth=1, linestyle=":")
            caption = "Dotted: ln 2, where a DPO loss with no extra terms starts."
        if len(lines) > 1:
            ax.legend(frameon=False, labelcolor=INK, fontsize=10)
        _steps_axis(ax)
        return Plot(title, _svg(fig, uid, f"{title}: {'; '.join(said)}."), caption)


def checkpoints_plot(checkpoints: Sequence[CheckpointView], uid: str) -> Plot | None:
    """Return validation score against training step with the chosen checkpoint marked; None where none was scored."""
    ordered = sorted(checkpoints, key=lambda c: c.step)
    scored = [(c.step, 100 * v, c.selected) for c in ordered if (v := finite(c.score)) is not None]
    if not scored:
        return None
    chosen = next(((s, v) for s, v, selected in scored if selected), None)
    with _style():
        fig, ax = _axes(2.5)
        ax.plot([s for s, _, _ in scored], [v for _, v, _ in scored], "o-", color=SYSTEM[1], markersize=4.5)
        if chosen:
            ax.plot(*chosen, "D", color=SYSTEM[3], markersize=9)
            ax.annotate("chosen", chosen, xytext=(0, 9), textcoords="offset points", ha="center", fontweight="bold")
        ax.margins(y=0.28, x=0.1)
        ax.set_ylabel("collaboration score, %")
        _steps_axis(ax)
        said = "; ".join(f"step {s}: {number(v)}%{', chosen' if selected else ''}" for s, v, selected in scored)
        missing = [str(c.step) for c in ordered if finite(c.score) is None]
        caption = f"Chosen: step {chosen[0]}, {number(chosen[1])}%." if chosen else "No checkpoint is marked as chosen."
        caption += f" Not scored: step {', '.join(missing)}." if missing else ""
        svg = _svg(fig, uid, f"Collaboration score by checkpoint: {said}.")
        return Plot("Checkpoints on validation queries", svg, caption)


def gains_plot(gains: Sequence[float], uid: str) -> Plot | None:
    """Return the histogram of gains, coloured by sign; None without any."""
    values = np.array([g for g in gains if finite(g) is not None], dtype=float)
    if not values.size:
        return None
    span = max(1.0, float(np.abs(values).max()))
    edges = np.linspace(-1.05 * span, 1.05 * span, 22)  # an odd number of bins: 0 is in the middle of one
    parts = {"hurt": values[values < 0], "no change": values[values == 0], "helped": values[values > 0]}
    said = ", ".join(f"{name} {len(part):,} ({number(100 * len(part) / values.size)}%)" for name, part in parts.items())
    with _style():
        fig, ax = _axes(2.5)
        ax.hist(list(parts.values()), bins=list(edges), stacked=True, color=[BAD, MUTED, GOOD], rwidth=0.86)
        ax.set_xlabel("gain = score with the draft − score alone")
        ax.set_ylabel("drafts")
        ax.grid(axis="x", visible=False)
        ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        text = f"Gains of {values.size:,} training drafts: {said}."
        return Plot("Gain per draft", _svg(fig, uid, text), text)


def guard_plot(view: GuardView, uid: str) -> Plot:
    """Return quality against strong calls on the certifying queries: every policy, the single systems and the guard's rows."""
    colours = {"weak": SYSTEM[0], "strong": SYSTEM[1], "both": SYSTEM[2], "guarded": SYSTEM[3], "cascade": SYSTEM[4]}
    with _style():
        fig, ax = _axes(2.9)
        for kept, colour, label in ((True, GOOD, "policy, certified"), (False, MUTED, "policy, not certified")):
            points = [p for p in view.points if not p.name and p.kept == kept]
            if points:
                x, y = [p.calls for p in points], [100 * p.score for p in points]
                ax.plot(x, y, "o", color=colour, markersize=4, label=label)
        for i, (name, colour) in enumerate(colours.items()):
            for p in (p for p in view.points if p.name == name):
                marker = _MARKERS[(i + 1) % len(_MARKERS)]
                ax.plot(p.calls, 100 * p.score, marker, color=colour, markersize=8, linestyle="", label=name)
        ax.set_xlabel("strong calls a query")
        ax.set_ylabel(f"{metric_label(view.metric)}, %")
        ax.margins(0.12)
        ax.legend(frameon=False, labelcolor=INK, fontsize=9, ncols=2, loc="upper left", bbox_to_anchor=(0, -0.27))
        said = "; ".join(f"{p.name} {number(100 * p.score)}% at {p.calls:.2f} calls" for p in view.points if p.name)
        text = f"On the certifying queries: {said}."
        return Plot("Quality against strong calls", _svg(fig, uid, text), text)


def _style() -> AbstractContextManager[None]:
    # Set here, not by the user's matplotlibrc.
    return mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "cowest",
            "text.parse_math": False,
            "font.size": 10,
            "axes.unicode_minus": True,
            "axes.edgecolor": MUTED,
            "axes.labelcolor": MUTED,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.8,
            "axes.grid": True,
            "grid.color": GRID,
            "grid.linewidth": 0.7,
            "axes.axisbelow": True,
            "text.color": INK,
            "xtick.color": MUTED,
            "ytick.color": MUTED,
            "xtick.labelcolor": MUTED,
            "ytick.labelcolor": MUTED,
            "lines.linewidth": 1.8,
            "text.usetex": False,
        }
    )


def _axes(height: float) -> tuple[Figure, Axes]:
    fig = Figure(figsize=(_WIDTH, height), layout="constrained")
    return fig, fig.add_subplot()


def _steps_axis(ax: Axes) -> None:
    ax.set_xlabel("optimizer step")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.grid(axis="x", visible=False)


def _short(text: str, limit: int = 20) -> str:
    text = visible(" ".join(text.split()))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _svg(fig: Figure, uid: str, alternative: str) -> str:
    out = io.BytesIO()
    with warnings.catch_warnings():
        # The browser's fonts draw the text, not the ones that matplotlib measured it with.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph .* missing")
        fig.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ET.fromstring(out.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            # A <style> inside an inline SVG would restyle the whole page; the metadata names a schema by URL.
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for node in root.iter():
        for key, value in list(node.attrib.items()):
            node.set(key, _rewrite(key, value, uid))
    for gone in ("width", "height", "version"):
        root.attrib.pop(gone, None)
    root.set("role", "img")
    root.set("aria-label", visible(alternative))
    return ET.tostring(root, encoding="unicode")


def _rewrite(key: str, value: str, uid: str) -> str:
    if key == "id":
        return f"{uid}-{value}"
    if key.endswith("href"):
        return value.replace("#", f"#{uid}-", 1)
    value = re.sub(r"url\(#([^)]+)\)", rf"url(#{uid}-\1)", value)
    return re.sub(r"#[0-9a-f]{6}", lambda m: _CSS.get(m[0], m[0]), value)
