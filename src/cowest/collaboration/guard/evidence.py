"""What is known of a query before the next call is paid, as numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from pydantic import Field

from cowest.scoring.normal import answer_key
from cowest.types import Example, Record, Usage

Arm = Literal["weak", "strong", "both"]
"""Who answers: the weak model alone, the strong one alone, the strong one with the weak one's draft."""
ARMS: tuple[Arm, ...] = ("weak", "strong", "both")
MOST_CLASSES = 12
"""With more classes than these, which one the weak model says is no feature."""


class Said(Record):
    """A text of a model, as far as it is evidence.

    ``confidence`` is the mean probability of the tokens of its answer, ``sureness`` of all its tokens (geometric); None where the
    model gave no log-probabilities. ``answer`` is None where none was found, ``words`` how long it is.
    """

    answer: str | None = None
    confidence: float | None = Field(default=None, ge=0, le=1)
    sureness: float | None = Field(default=None, ge=0, le=1)
    words: int = Field(default=0, ge=0)


class Evidence(Record):
    """What has been said of a query so far. ``agreement``: share of further samples of the weak model that answer alike.

    ``draft`` is the text that the strong model would get; ``arms`` are those who have answered (the weak model always has).
    """

    question_words: int = Field(ge=0)
    context_words: int = Field(default=0, ge=0)
    agreement: float | None = Field(default=None, ge=0, le=1)
    draft: Said
    arms: dict[Arm, Said]


class Answered(Record):
    """A calibration query that every arm has answered: the evidence, each arm's score in [0, 1] and strong calls."""

    example_id: str
    evidence: Evidence | None = None
    scores: dict[Arm, float] = Field(default_factory=dict)
    usage: dict[Arm, Usage] = Field(default_factory=dict)
    label: str | None = None
    error: str | None = None


def same(one: str | None, other: str | None) -> float | None:
    """Whether two answers are equal, as exact match compares them; None where one is missing."""
    return None if one is None or other is None else float(answer_key(one) == answer_key(other))


def agreement(answer: str | None, others: Sequence[str | None]) -> float | None:
    """The share of ``others`` that are this answer; None where there are none."""
    return sum(bool(same(answer, other)) for other in others) / len(others) if others else None


def words_of(example: Example) -> tuple[int, int]:
    """Words of the question and of its context."""
    return len(example.input.split()), len((example.context or "").split())


def features(evidence: Evidence, known: Collection[Arm], labels: Sequence[str] = ()) -> dict[str, float | None]:
    """The numbers by name, of what is known once the arms ``known`` have answered. None: it cannot be told for this query."""
    weak, draft = evidence.arms["weak"], evidence.draft
    found: dict[str, float | None] = {
        "weak confidence": weak.confidence,
        "weak sureness": weak.sureness,
        "weak agreement": evidence.agreement,
        "weak answers": float(weak.answer is not None),
        "draft confidence": draft.confidence,
        "draft sureness": draft.sureness,
        "draft is weak": same(draft.answer, weak.answer),
        "draft words": math.log1p(draft.words),
        "question words": math.log1p(evidence.question_words),
        "context words": math.log1p(evidence.context_words),
    }
    if 1 < len(labels) <= MOST_CLASSES:
        found |= {f"weak says {label}": same(weak.answer, label) or 0.0 for label in labels}
    for arm in ARMS[1:]:
        if arm in known:
            found |= _of_arm(arm, evidence)
    if {"strong", "both"} <= set(known):
        found["strong is both"] = same(evidence.arms["strong"].answer, evidence.arms["both"].answer)
    return found


def _of_arm(arm: Arm, evidence: Evidence) -> Mapping[str, float | None]:
    it = evidence.arms[arm]
    return {
        f"{arm} answers": float(it.answer is not None),
        f"{arm} confidence": it.confidence,
        f"{arm} sureness": it.sureness,
        f"{arm} is weak": same(it.answer, evidence.arms["weak"].answer),
        f"{arm} is draft": same(it.answer, evidence.draft.answer),
    }
