"""Signals: what a draft is worth. The paper's is the gain; packages add others (entry points ``cowest.signals``).

A signal names the requests that it needs, so that nothing is asked for it in vain, and gives a draft's value from their scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cowest.protocols import Asks, Signal
from cowest.recipe.registry import Registry
from cowest.scoring.scripts import units
from cowest.types import Draft, Feedback


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
        return feedback.weak.worth


@dataclass(frozen=True, slots=True)
class Outcome:
    """E(y*, x): the score of the refined answer. Within a query it orders drafts as the gain does, and asks for no solo answers."""

    name: str = "outcome"
    asks: frozenset[Asks] = frozenset({"refine"})
    alone: bool = False

    def value(self, feedback: Feedback) -> float | None:
        """None where the refined answer is unscored."""
        return feedback.refined.worth


@dataclass(frozen=True, slots=True)
class Better:
    """E(y*, x) - max(E(z, x), E(y, x)): what the two together add to the better of the two alone.

    A draft that is right and copied is worth 0; one that is wrong, or says no answer, and helps all the same is worth more.
    """

    name: str = "better"
    asks: frozenset[Asks] = frozenset({"refine", "solo"})
    alone: bool = False

    def value(self, feedback: Feedback) -> float | None:
        """None where one of the three is unscored."""
        gain, weak = feedback.gain, feedback.weak.worth
        if gain is None or weak is None or feedback.solo.worth is None:
            return None
        return gain - max(0.0, weak - feedback.solo.worth)


def worth(
    signal: Signal,
    feedback: Feedback,
    draft: Draft,
    price_per_word: float = 0.0,
    toll: Callable[[str], float] | None = None,
) -> float | None:
    """A draft's value by the signal, less the price of its length; None where it cannot be told.

    ``toll``: what else is taken off for a text. Words as F1 counts them (characters in scripts without spaces): unlike tokens, the
    same whichever model wrote them.
    """
    value = signal.value(feedback)
    text = draft.text or ""
    if value is not None and price_per_word:
        value -= price_per_word * len(units(text))
    return value if value is None or toll is None else value - toll(text)


SIGNALS: Registry[Signal] = Registry(
    "signal",
    "cowest.signals",
    {s.name: s for s in (Gain(), DraftScore(), Outcome(), Better())},
    ("name", "asks", "alone", "value"),
)
