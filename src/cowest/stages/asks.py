"""What stages ask models: pure functions of recipe and data, for the stages that ask and the estimate that counts."""

from __future__ import annotations

from cowest.assembly.context import Context
from cowest.collaboration.calls import Series
from cowest.run.identity import derive_seed, fingerprint
from cowest.stages.rounds import Round
from cowest.types import Draft, Example, Request, Sampling


def draft_series(context: Context, round_: Round, example: Example) -> Series:
    """The seeds of a training query's drafts: they follow from the recipe's seed, the query and the draft's index."""
    return Series(context.config.seed, *round_.seed("draft"), example.id)


def solo_request(context: Context, example: Example) -> Request:
    """The strong model alone; the same in every round, so that it is paid for once."""
    seed = derive_seed(context.config.seed, "solo", example.id)
    return Request(messages=context.frames.solo(example), sampling=_seeded(context.config.feedback.sampling, seed))


def draft_key(draft: Draft) -> str:
    """Equal for equal drafts of a query, whose refinement is one call."""
    return fingerprint(draft.example_id, draft.text)


def refine_request(context: Context, example: Example, draft: Draft) -> Request:
    """The strong model with a draft; ``draft.text`` is there."""
    seed = derive_seed(context.config.seed, "refine", draft_key(draft))
    sampling = _seeded(context.config.feedback.sampling, seed)
    return Request(messages=context.frames.refine(example, draft.text or ""), sampling=sampling)


def _seeded(sampling: Sampling, seed: int) -> Sampling:
    return sampling.model_copy(update={"seed": seed})
