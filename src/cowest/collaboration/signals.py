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


@dataclass(frozen=True, slots=True)
class Outcome:
    """The score of the refined answer, E(y*, x): the strong model alone is not asked, which saves a call a query.

    Among the drafts of one query it differs from the gain by a constant, so that rule ``ordered`` makes the same pairs.
    """

    name: str = "outcome"
    asks: frozenset[Asks] = frozenset({"refine"})
    alone: bool = False

    def value(self, feedback: Feedback) -> float | None:
        """None where the refined answer is unscored."""
        return feedback.refined.value


@dataclass(frozen=True, slots=True)
class Surplus:
    """What the two have together beyond the better of them: E(y*, x) - max(E(z, x), E(y, x)), y the draft by itself.

    A right draft that is only passed on is worth nothing, one that leads to what neither had is.
    """

    name: str = "surplus"
    asks: frozenset[Asks] = frozenset({"refine", "solo"})
    alone: bool = False

    def value(self, feedback: Feedback) -> float | None:
        """None where a part is unscored."""
        parts = feedback.refined.value, feedback.solo.value, feedback.weak.value
        if parts[0] is None or parts[1] is None or parts[2] is None:
            return None
        return parts[0] - max(parts[1], parts[2])


SIGNALS: Registry[Signal] = Registry(
    "signal",
    "cowest.signals",
    {s.name: s for s in (Gain(), DraftScore(), Outcome(), Surplus())},
    ("name", "asks", "alone", "value"),
)
