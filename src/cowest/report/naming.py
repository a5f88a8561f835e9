"""Names, numbers and safe text: how systems, metrics and model output are written on the page."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from cowest.systems.registry import STRONG, SYSTEMS, WEAK

#: What the systems are that every run has: these have a place and a colour of their own.
DESCRIPTIONS = {spec.name: spec.label for spec in SYSTEMS if spec.label}
SINGLE = (WEAK.name, STRONG.name)
_COLLABORATIONS = [spec for spec in SYSTEMS if spec.live and spec.uses == "both"]
#: Systems whose worth is in question, the furthest developed first; in the recipe's own format before others.
TARGETS = tuple(spec.name for spec in sorted(_COLLABORATIONS, key=lambda spec: spec.needs != "align"))
_SPOKEN = {spec.name: spec.spoken for spec in SYSTEMS if spec.spoken}
_ABOUT = {spec.name: spec.label or spec.about for spec in SYSTEMS}
N_COLOURS = 8

_METRICS = {
    "em": "EM",
    "f1": "F1",
    "macro_f1": "Macro-F1",
    "accuracy": "Accuracy",
    "exact_match": "Exact match",
    "squad_em": "EM",
    "squad_f1": "F1",
    "preferred": "Preferred to strong alone",
}
# C0 and C1 controls (not tab, newline), bidirectional overrides and isolates, lone surrogates: text that could
# reorder or hide what stands around it, or that no UTF-8 file can hold.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def visible(text: str) -> str:
    """Return ``text`` with control, bidi-override and surrogate characters made visible."""
    return _UNSEEN.sub(lambda m: _stand_in(ord(m[0])), text.replace("\r\n", "\n"))


def _stand_in(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)
    return f"⟨U+{code:04X}⟩"


def order_systems(names: Iterable[str]) -> list[str]:
    """Return the known systems in the order of the method, then the others as they came."""
    given = list(dict.fromkeys(names))
    return [n for n in DESCRIPTIONS if n in given] + [n for n in given if n not in DESCRIPTIONS]


def target_of(names: Iterable[str]) -> str | None:
    """Return the system that the verdict and the filters are about, or None where no known one took part."""
    given = set(names)
    return next((t for t in TARGETS if t in given), None)


def colour_of(name: str, names: Iterable[str]) -> int:
    """Return the slot of the palette (0 to 7): fixed for the known systems, in order for others."""
    known = list(DESCRIPTIONS)
    if name in known:
        return known.index(name)
    others = [n for n in order_systems(names) if n not in known]
    return len(known) + others.index(name) % (N_COLOURS - len(known))


def spoken(name: str) -> str:
    """Return the system as a sentence names it."""
    return _SPOKEN.get(name, name)


def described(name: str) -> str:
    """Return what a system is, '' for one of another package or version."""
    return _ABOUT.get(name, "")


def metric_label(metric: str) -> str:
    """Return a metric's name for people."""
    return _METRICS.get(metric, metric.replace("_", " "))


def cut_note(a: str, a_cut: int, b: str, b_cut: int) -> str | None:
    """What a comparison has to say of answers that were cut off; None where as many were in both systems.

    >>> cut_note("collab", 1, "strong", 20)
    'cut off at max_tokens before an answer, and left out: collab 1, strong 20; raise max_tokens, or this compares the limit'
    """
    if a_cut == b_cut:
        return None
    counts = f"{a} {a_cut:,}, {b} {b_cut:,}"
    return (
        f"cut off at max_tokens before an answer, and left out: {counts}; raise max_tokens, or this compares the limit"
    )


def finite(value: float | None) -> float | None:
    """Return ``value``, or None where it is not a number one can draw."""
    return value if value is not None and math.isfinite(value) else None


def number(value: float, digits: int = 1) -> str:
    """Return a number with a true minus sign, and without a minus before zero."""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction as a percentage without the sign; an em dash where there is none."""
    known = finite(value)
    return "—" if known is None else number(100 * known, digits)


def points(value: float | None) -> str:
    """Return a signed difference of fractions in percentage points."""
    known = finite(value)
    if known is None:
        return "—"
    text = number(100 * known)
    return text if text.startswith("−") or float(text) == 0 else f"+{text}"


def p_value(p: float | None, *, sentence: bool = False) -> str:
    """Return a p-value, never as 0: ``< 0.001`` below that (``p < 0.001`` in a sentence)."""
    known = finite(p)
    if known is None:
        return "—"
    if known < 0.001:
        return "p < 0.001" if sentence else "< 0.001"
    text = f"{known:.3f}" if known < 0.1 else f"{known:.2f}"
    return f"p = {text}" if sentence else text
