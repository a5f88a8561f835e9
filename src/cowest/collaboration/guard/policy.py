"""A policy: from what is known of a query to who answers it, or who is asked next. Numbers only, kept as JSON."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from cowest.collaboration.guard.evidence import ARMS, Arm, Evidence, features
from cowest.types import Record

FREE: Arm = "weak"
"""The arm that has always answered: it costs no call of the strong model."""
STATES: tuple[tuple[Arm, ...], ...] = (("weak",), ("weak", "strong"), ("weak", "both"), ("weak", "strong", "both"))
"""Who may have answered when it is decided how to go on."""


def state_name(known: Collection[Arm]) -> str:
    """How a state is called in a file."""
    return "+".join(arm for arm in ARMS if arm in known)


class Predictor(Record):
    """Logistic regression: the expected score of an arm's answer is 1 / (1 + exp(-(bias + weights . x)))."""

    bias: float
    weights: tuple[float, ...]

    def expected(self, x: Sequence[float]) -> float:
        """In (0, 1); ``x`` are standardised features."""
        z = self.bias + sum(w * value for w, value in zip(self.weights, x, strict=True))
        return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


class Judgement(Record):
    """What is expected of each arm in one state: the features' names, how they are standardised, a predictor an arm.

    A feature that cannot be told for a query counts as its mean.
    """

    names: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    arms: dict[Arm, Predictor]

    def standardised(self, found: Mapping[str, float | None]) -> list[float]:
        """The features in units of their standard deviations on the learning queries."""
        return [
            0.0 if (value := found.get(name)) is None else (value - mean) / scale
            for name, mean, scale in zip(self.names, self.means, self.scales, strict=True)
        ]

    def expected(self, found: Mapping[str, float | None]) -> dict[Arm, float]:
        """The expected score of each arm."""
        x = self.standardised(found)
        return {arm: predictor.expected(x) for arm, predictor in self.arms.items()}


class Judgements(Record):
    """What is expected in each state, and what the arms cost.

    ``costs``: the mean cost of an arm's calls to the strong model, in units of the dearest; ``base`` is the model alone that was
    better on the learning queries.
    """

    labels: tuple[str, ...] = ()
    states: dict[str, Judgement]
    costs: dict[Arm, float]
    base: Arm


class Candidate(Record):
    """A policy over judgements, in units of the score.

    ``only``: this arm always, whatever is expected. Else ``margin``: how much better than the base another arm has to be expected
    to be; ``price``: what a call as dear as the dearest arm's is worth.
    """

    only: Arm | None = None
    margin: float = Field(default=0.0, ge=0)
    price: float = Field(default=0.0, ge=0)


ASKED: dict[tuple[Arm, ...], str] = {
    (): "weak_is_sure",
    ("strong",): "asked_strong",
    ("both",): "asked_both",
    ("strong", "both"): "asked_strong_and_both",
}
"""The reason of a decision: which calls to the strong model were made before it."""
WEAK_FAILED, STRONG_FAILED = "weak_failed", "strong_failed"
CALLS: dict[str, int] = {reason: len(asked) for asked, reason in ASKED.items()} | {WEAK_FAILED: 1}
"""How many those were."""


class Step(NamedTuple):
    """An arm that is taken for the answer (``done``), or asked next."""

    arm: Arm
    done: bool


def reason_of(evidence: Evidence) -> str:
    """Of a decision on this evidence."""
    return ASKED[tuple(arm for arm in ARMS if arm in evidence.arms and arm != FREE)]


def next_step(judged: Judgements, candidate: Candidate, evidence: Evidence) -> Step:
    """What to do, once the arms of ``evidence`` have answered. It asks no arm twice, and so ends after two."""
    known = tuple(arm for arm in ARMS if arm in evidence.arms)
    if candidate.only is not None:
        return Step(candidate.only, candidate.only in known)
    judgement = judged.states[state_name(known)]
    expected = judgement.expected(features(evidence, known, judged.labels))
    return choose(judged, candidate, known, expected)


def choose(judged: Judgements, candidate: Candidate, known: Collection[Arm], expected: Mapping[Arm, float]) -> Step:
    """The arm of the highest expected score less its price; of equals one that has answered, then the cheaper."""
    bonus = candidate.margin

    def worth(arm: Arm) -> tuple[float, bool, float]:
        paid = 0.0 if arm in known else candidate.price * judged.costs[arm]
        return expected[arm] + (bonus if arm == judged.base else 0.0) - paid, arm in known, -judged.costs[arm]

    best = max(ARMS, key=worth)
    return Step(best, best in known)


def walk(
    judged: Judgements, candidate: Candidate, expected: Mapping[str, Mapping[Arm, float]]
) -> tuple[Arm, tuple[Arm, ...]]:
    """Who answers a query, and who would have been asked for it; ``expected`` is by state, of what would be known there."""
    known: tuple[Arm, ...] = (FREE,)
    if candidate.only is not None:
        return candidate.only, () if candidate.only == FREE else (candidate.only,)
    while True:
        step = choose(judged, candidate, known, expected[state_name(known)])
        if step.done:
            return step.arm, known[1:]
        known = (*known, step.arm)


class Certificate(Record):
    """What is promised of one policy, and what was seen of it on the certifying queries.

    ``p`` is that of the hypothesis that it loses more than the risk; ``kept`` says whether it was rejected in its turn. ``score``
    and ``calls`` (to the strong model, of a query) are means there; ``answered`` is the share of queries that each arm answers.
    """

    candidate: Candidate
    kept: bool
    p: float
    score: float
    calls: float
    cost: float
    answered: dict[Arm, float]


class Guard(Record):
    """What a calibration has come to: all that is needed to route a query, and what is promised.

    ``alone`` has the mean score of each arm on the certifying queries, ``tried`` every candidate in the order of the tests;
    ``reference`` the features of the calibration queries before any paid call (shape: queries, names; None: could not be told),
    against which served queries are compared. ``weak`` and ``drafter`` say which weak model answers alone, and which drafts.
    """

    risk: float
    delta: float
    judged: Judgements
    guarded: Certificate
    cascade: Certificate
    tried: tuple[Certificate, ...]
    alone: dict[Arm, float]
    learned_from: int
    certified_on: int
    left_out: int = 0
    enough: int | None = None
    weak: Literal["base", "sft"]
    drafter: Literal["base", "sft", "aligned"]
    samples: int = Field(ge=0)
    confidence: bool
    reference: tuple[tuple[float | None, ...], ...] = ()

    @property
    def promised(self) -> bool:
        """Whether anything is. Where not, both rows are the model alone that did better on all calibration queries."""
        return self.guarded.kept

    def certificate(self, name: str) -> Certificate:
        """Of the row ``guarded`` or ``cascade``, or one of these in a variant (``cascade@NAME``)."""
        return self.cascade if name.partition("@")[0] == "cascade" else self.guarded
