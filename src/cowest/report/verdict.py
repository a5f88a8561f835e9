"""The plain sentences of the report, computed from the paired comparisons and from nothing else."""

from __future__ import annotations

from typing import Literal

from cowest.report.naming import SINGLE, finite, number, p_value, percent, spoken, target_of
from cowest.results import Results
from cowest.systems.registry import COLLAB, COLLAB_ALIGNED
from cowest.types import Record

Tone = Literal["good", "bad", "neutral"]
#: Below this p, and with an interval that leaves out 0, a difference is called one.
ALPHA = 0.05
EQUALS, LESS = "\u00a0=\u00a0", "\u00a0<\u00a0"


class Verdict(Record):
    """A sentence and whether it is good news for collaboration."""

    tone: Tone
    text: str


class Contrast(Record):
    """``a`` minus ``b`` on one metric, all its tests taken together."""

    diff: float
    ci_low: float | None
    ci_high: float | None
    p: float | None
    n: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0 and p is below 0.05, as far as they are known; at least one must be."""
        tests: list[bool] = []
        if self.p is not None:
            tests.append(self.p < ALPHA)
        if self.ci_low is not None and self.ci_high is not None:
            tests.append(self.ci_low > 0 or self.ci_high < 0)
        return bool(tests) and all(tests)


def contrast(results: Results, a: str, b: str, metric: str) -> Contrast | None:
    """Return a minus b, or None where no comparison has both. Of several tests the largest p counts, to be cautious."""
    both = [c for c in results.comparisons if c.metric == metric and {c.a, c.b} == {a, b}]
    rows = [c for c in both if finite(c.diff) is not None]
    if not rows:
        return None
    row = next((c for c in rows if finite(c.ci_low) is not None and finite(c.ci_high) is not None), rows[0])
    if row.diff is None:
        return None
    ps = [p for c in rows if (p := finite(c.p)) is not None]
    low, high = finite(row.ci_low), finite(row.ci_high)
    sign = 1.0
    if row.a != a:
        sign = -1.0
        low, high = (None if high is None else -high), (None if low is None else -low)
    return Contrast(diff=sign * row.diff, ci_low=low, ci_high=high, p=max(ps, default=None), n=row.n)


def better_single(results: Results, metric: str) -> str | None:
    """Return the single model with the higher mean, or None where neither has one."""
    means = {n: m for n in SINGLE if (m := mean(results, n, metric)) is not None}
    return max(means, key=lambda n: means[n]) if means else None


def mean(results: Results, system: str, metric: str) -> float | None:
    """Return the system's mean on the metric, None where it has none."""
    found = results.systems.get(system)
    value = found.metrics.get(metric) if found else None
    return finite(value.mean) if value else None


def verdicts(results: Results, metric: str) -> list[Verdict]:
    """Return the main verdict, then what alignment added where that can be told."""
    target = target_of(results.systems)
    if target is None:
        return [Verdict(tone="neutral", text="No collaboration took part, so there is nothing to compare it with.")]
    found = [_against_single(results, target, metric)]
    if target == COLLAB_ALIGNED.name and COLLAB.name in results.systems:
        found.append(_alignment(results, metric))
    return found


def _against_single(results: Results, target: str, metric: str) -> Verdict:
    single, subject = better_single(results, metric), _capital(spoken(target))
    if single is None:
        return Verdict(tone="neutral", text=f"{subject} cannot be judged: neither model alone has a score.")
    whom = f"the better single model ({single} alone, {percent(mean(results, single, metric))}%)"
    found = contrast(results, target, single, metric)
    if found is None:
        text = f"{subject} was not compared with {whom}: no paired comparison is recorded."
        return Verdict(tone="neutral", text=text)
    if not found.clear:
        return Verdict(tone="neutral", text=f"{subject} {_unclear(found, whom)}.")
    by = f"by {_gap(found.diff)} {_evidence(found)}"
    if found.diff > 0:
        return Verdict(tone="good", text=f"{subject} beats {whom} {by}.")
    return Verdict(tone="bad", text=f"{subject} does worse than {whom} {by}.")


def _alignment(results: Results, metric: str) -> Verdict:
    found = contrast(results, COLLAB_ALIGNED.name, COLLAB.name, metric)
    whom = spoken(COLLAB.name)
    if found is None:
        return Verdict(tone="neutral", text=f"Alignment was not compared with {whom}.")
    if not found.clear:
        return Verdict(tone="neutral", text=f"With alignment, collaboration {_unclear(found, whom)}.")
    if found.diff > 0:
        return Verdict(tone="good", text=f"Alignment adds {_gap(found.diff)} to {whom} {_evidence(found)}.")
    return Verdict(tone="bad", text=f"Alignment costs {_gap(found.diff)} against {whom} {_evidence(found)}.")


def _unclear(found: Contrast, whom: str) -> str:
    if found.p is None and found.ci_low is None:
        return f"scores {_where(found.diff, whom)}, but this was not tested"
    return f"does not clearly differ from {whom}: it scores {_where(found.diff)} {_evidence(found)}"


def _where(diff: float, whom: str = "") -> str:
    if number(100 * abs(diff)) == "0.0":
        return f"the same as {whom}" if whom else "the same"
    side = "above" if diff > 0 else "below"
    return f"{_gap(diff)} {side} {whom}" if whom else f"{_gap(diff)} {'higher' if diff > 0 else 'lower'}"


def _gap(diff: float) -> str:
    text = number(100 * abs(diff))
    return f"{text} point" if text == "1.0" else f"{text} points"


def _evidence(found: Contrast) -> str:
    parts = []
    if found.ci_low is not None and found.ci_high is not None:
        sign = -1 if found.diff < 0 and found.clear else 1  # "worse by 3 points (1 to 5)", not "(-5 to -1)"
        low, high = sorted((sign * found.ci_low, sign * found.ci_high))
        parts.append(f"95% CI {number(100 * low)} to {number(100 * high)}")
    if found.p is not None:
        parts.append(p_value(found.p, sentence=True))
    parts.append(f"n = {found.n:,}")
    # A number stays on one line with its name.
    return f"({', '.join(part.replace(' = ', EQUALS).replace(' < ', LESS) for part in parts)})"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
