"""Signals: what a draft is worth. The paper's is the gain; packages add others (entry points ``cowest.signals``).

A signal names the requests that it needs, so that nothing is asked for it in vain, and gives a draft's value from their scores.
"""

from __future__ import annotations

from dataclasses import dataclass

from cowest.protocols import Asks, Signal
from cowest.recipe.registry import Registry
from cowest.types import Feedback


@dataclass(frozen=True, slots=True)
class Gain:
    """Collaborative feedback E(y*, x) - E(z, x) (paper, step 5): what the draft adds to the strong model alone."""

    name: str = "collaboration"
    asks: frozenset[Asks] = frozenset({"refine", "solo"})
    alone: bool = False

    def value(self, feedback: Feedback) -> float | None:
        """None where a part is unscored."""
        return feedback.gain


@dataclass(frozen=True, slots=True)
class DraftScore:
    """The score of the draft by itself, as in RLWF: the strong model is never asked what it makes of it."""

    name: str = "draft"
    asks: frozenset[Asks] = frozenset()
    alone: bool = True

    def value(self, feedback: Feedback) -> float | None:
        """None where the draft is unscored."""
        return feedback.weak.value


SIGNALS: Registry[Signal] = Registry(
    "signal", "cowest.signals", {s.name: s for s in (Gain(), DraftScore())}, ("name", "asks", "alone", "value")
)
