"""What feedback takes that asks for drafts until a query has its contrast (``feedback.adaptive``), before it has begun."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cowest.assembly.context import Context
from cowest.collaboration.adaptive import Said, ordered
from cowest.costs.work import ZERO, Range, Work
from cowest.stages import asks
from cowest.types import Draft, Example


def until_contrast(
    context: Context, queries: Sequence[Example], drafts: Sequence[Draft] | None, solo: Work, refine: Work, done: bool
) -> tuple[Work, Work]:
    """The calls for answers alone and with drafts, given what all of them would take.

    At most every draft that is like no other of its query, within the limit. Likely two of each query and, as nothing is known of
    their answers, half of the others. At least none: an answer may be right alone where rule ``paper`` counts, or drafts be alike.
    ``drafts``: None where they are not there; ``done``: the stage is.
    """
    if done:
        return replace(solo, calls=ZERO), replace(refine, calls=ZERO)
    each = asks.calls_each(context)
    asked, apart = len(queries), [] if drafts is None else _apart(context, queries, drafts)
    most, alone = refine.calls.high, solo.calls
    if drafts is not None:
        asked = len(apart)
        most = min(most, sum(apart) * each)
        alone = Range(low=0, expected=min(alone.expected, asked * each), high=min(alone.high, asked * each))
    likely = min(refine.calls.expected, most)
    likely = (likely + min(2 * asked * each, likely)) / 2
    refined = Range(low=0, expected=likely, high=most)
    limit = context.config.feedback.calls
    if limit is not None:
        left = max(0, limit - solo.already - refine.already)
        share = min(1.0, left / max(1.0, alone.expected + refined.expected))
        alone, refined = _within(alone, left, share), _within(refined, left, share)
    return replace(solo, calls=alone.model_copy(update={"low": 0.0})), replace(refine, calls=refined)


def _within(calls: Range, left: float, share: float) -> Range:
    return Range(low=0, expected=calls.expected * share, high=min(calls.high, left))


def _apart(context: Context, queries: Sequence[Example], drafts: Sequence[Draft]) -> list[int]:
    """How many drafts are unlike each other, of the queries that have two or more such."""
    by_query: dict[str, list[Said]] = {e.id: [] for e in queries}
    examples = {e.id: e for e in queries}
    for draft in drafts:
        text = draft.text or ""
        said = Said(draft.id, text, context.task.extract(text, examples[draft.example_id]))
        by_query[draft.example_id].append(said)
    found = [len(ordered(said, context.config.feedback.alike)[0]) for said in by_query.values()]
    return [n for n in found if n > 1]
