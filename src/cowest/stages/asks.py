"""What stages ask models: pure functions of recipe and data, for the stages that ask and the estimate that counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cowest.assembly.context import Context
from cowest.collaboration.calls import Series
from cowest.run.identity import derive_seed, fingerprint
from cowest.stages.rounds import Round
from cowest.systems.interactions.consult import asking
from cowest.types import Draft, Example, Message, Request, Sampling

ALTERNATIVES: Final = 5
"""Alternatives of each token whose log-probabilities are asked for, where the recipe does not say: what most endpoints give."""


def draft_series(context: Context, round_: Round, example: Example, attempt: int = 0) -> Series:
    """The seeds of a training query's drafts: they follow from the recipe's seed, the query, the draft's index and the attempt."""
    again: tuple[str | int, ...] = ("again", attempt) if attempt else ()
    return Series(context.config.seed, *round_.seed("draft"), example.id, *again)


def draft_sampling(context: Context, round_: Round, example: Example, index: int, attempt: int = 0) -> Sampling:
    """How a draft is drawn by a request of its own; each further ``attempt`` goes up the ladder."""
    settings = context.config.draft
    sampling = settings.sampling
    if settings.ladder:
        rung = settings.ladder[(index + attempt) % len(settings.ladder)]
        sampling = sampling.model_copy(update={"temperature": rung})
    return draft_series(context, round_, example, attempt).nth(sampling, index)


def solo_requests(context: Context, example: Example) -> list[Request]:
    """The strong model alone, and the samples beside it; the same in every round, so that they are paid for once."""
    return _requests(context, context.frames.solo(example), "solo", example.id, example)


def draft_key(draft: Draft) -> str:
    """Equal for equal drafts of a query, whose refinement is one call."""
    return fingerprint(draft.example_id, draft.text)


def refine_requests(context: Context, example: Example, draft: Draft) -> list[Request]:
    """The strong model with a draft, and the samples beside it; ``draft.text`` is there."""
    asked = context.frames.refine(example, draft.text or "")
    requests = _requests(context, asked, "refine", draft_key(draft), example)
    if context.config.draft.turn != "reply":
        return requests
    # It has asked, and is told to answer: as the system has it.
    return [one.model_copy(update={"sampling": asking(one.sampling, False)}) for one in requests]


def calls_each(context: Context) -> int:
    """Requests of the strong model behind one answer of its feedback; readings, which follow from the answer, come to these."""
    settings = context.config.feedback
    return 1 + (settings.samples if settings.expect == "samples" else 0)


def classes_of(context: Context, example: Example) -> tuple[str, ...]:
    """What can be answered: the task's classes, or the question's own; nothing where answers are open."""
    return context.task.labels or example.choices


def readings_each(context: Context, example: Example) -> int:
    """The most references that are read in the place of one answer of the strong model: of open answers, where it can."""
    if context.config.feedback.expect != "logprobs" or classes_of(context, example) or not context.strong.reads_given:
        return 0
    return len({reference.strip() for reference in example.references} - {""})


def _requests(context: Context, messages: Sequence[Message], what: str, key: str, example: Example) -> list[Request]:
    """The answer that is scored, then its samples."""
    settings, seed = context.config.feedback, context.config.seed
    first = settings.sampling.model_copy(update={"seed": derive_seed(seed, what, key)})
    if settings.expect == "logprobs" and not readings_each(context, example):
        first = first.model_copy(update={"logprobs": first.logprobs or ALTERNATIVES})
    drawn = settings.sampling.model_copy(update={"temperature": settings.sample_temperature})
    series = Series(seed, what, "sample", key)
    samples = [series.nth(drawn, index) for index in range(calls_each(context) - 1)]
    return [Request(messages=tuple(messages), sampling=sampling) for sampling in (first, *samples)]
