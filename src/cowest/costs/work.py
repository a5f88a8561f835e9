"""Quantities between bounds, and the kinds of calls that are counted by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from cowest.assembly.sources import Source
from cowest.ledger.ledger import call_of
from cowest.stages.rounds import in_round
from cowest.types import Example, Message, Record, Request, Sampling

T = TypeVar("T")


class Range(Record):
    """A quantity whose expected value lies between two bounds."""

    low: float
    expected: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(low=self.low + other.low, expected=self.expected + other.expected, high=self.high + other.high)

    def __mul__(self, other: Range) -> Range:
        return Range(low=self.low * other.low, expected=self.expected * other.expected, high=self.high * other.high)

    def less(self, n: int) -> Range:
        """With ``n`` of them done; never below 0."""
        return Range(low=max(0, self.low - n), expected=max(0, self.expected - n), high=max(0, self.high - n))


ZERO = Range(low=0, expected=0, high=0)


@dataclass(frozen=True, slots=True)
class Work:
    """A kind of call: how many are to come, what their prompts look like, how long an answer can be.

    ``already`` answers are there. ``drafts`` are known ones that go into the prompts; ``samples`` answers come of one call.
    ``drafting``: the answers are drafts of the weak model. ``number``: of the round. ``live``: never in
    batches, whatever the mode of its stage. ``written``: tokens that an answer is expected to have, where it is not like a target.
    """

    stage: str
    calls_for: str
    model: Source
    calls: Range
    already: int
    queries: Sequence[Example]
    prompt: Callable[[Example, str], Sequence[Message]]
    sampling: Sampling
    drafted: Sampling | None = None
    drafts: Sequence[str] = ()
    samples: int = 1
    drafting: bool = False
    number: int = 1
    live: bool = False
    written: int | None = None

    @property
    def made_in(self) -> str:
        """The name of the stage that makes these calls."""
        return in_round(self.stage, self.number)


def spread(items: Sequence[T], n: int = 20) -> Sequence[T]:
    """At most ``n`` of them, evenly."""
    return [items[i * len(items) // min(n, len(items))] for i in range(min(n, len(items)))]


def bought(model: Source, requests: Sequence[Request], paid: frozenset[str]) -> tuple[int, int]:
    """Of these requests, equal ones being one: how many calls are to come, and how many answers are among ``paid``."""
    keys = {call_of(model.name, r.messages, r.sampling, model.extra, None).key for r in requests}
    there = len(keys & paid)
    return len(keys) - there, there


def exactly(n: float) -> Range:
    """A quantity that is known."""
    return Range(low=n, expected=n, high=n)
