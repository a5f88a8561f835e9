"""Figures of a table in words."""

from __future__ import annotations

from cowest.results import MetricValue


def interval(value: MetricValue) -> str:
    """``69.3 [64.0, 74.3]``, in percent."""
    if value.mean is None or value.ci_low is None or value.ci_high is None:
        return "not scored"
    return f"{100 * value.mean:.1f} [{100 * value.ci_low:.1f}, {100 * value.ci_high:.1f}]"


def p_value(p: float) -> str:
    """Two significant digits; very small ones as a bound, since a bootstrap cannot tell more."""
    return "<0.001" if p < 0.001 else f"{p:.2g}"


def tex_value(text: str, mark: str = "") -> str:
    """A value, marked as the best or as its equal, with what follows it (an interval) in small print."""
    value, _, rest = text.partition(" ")
    command = {"best": "\\textbf", "tied": "\\underline"}.get(mark)
    shown = f"{command}{{{value}}}" if command else value
    return f"{shown} {{\\scriptsize {rest}}}" if rest else shown


def tex(text: str) -> str:
    """A plain text as LaTeX reads it."""
    for mark in "_&%#$":
        text = text.replace(mark, f"\\{mark}")
    return text
