"""What the systems share: a prediction from calls that are added up, and fail as data."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from cowest.collaboration.calls import CallFailed as CallFailed
from cowest.collaboration.calls import Series as Series
from cowest.collaboration.calls import Tally as Tally
from cowest.models.answer import is_cut
from cowest.types import Completion, Example, Message, Prediction

Ask = Callable[[Example], Sequence[Message]]
"""How a query is put to a model."""


async def predict(
    example: Example,
    system: str,
    steps: Callable[[Example, Tally], Awaitable[Completion]],
    hear: Callable[[str], None] | None = None,
) -> Prediction:
    """The prediction of a system whose ``steps`` end in the completion that holds the answer.

    When a step raises CallFailed, ``text`` is None and ``error`` says why (where it was cut off at max_tokens, ``truncated``
    does); what the calls before it took is kept. ``hear`` gets the answer's pieces, where its steps end in ``Tally.answer``.
    """
    tally = Tally(hear=hear)
    text, thinking, truncated, failure = None, None, False, None
    try:
        final = await steps(example, tally)
        text, thinking, truncated = final.text, final.thinking, is_cut(final)
    except CallFailed as error:
        thinking, truncated, failure = error.thinking, error.cut, error.error
    return Prediction(
        example_id=example.id,
        system=system,
        text=text,
        thinking=thinking,
        truncated=truncated,
        truncated_context=tally.truncated_context,
        draft=tally.draft,
        draft_thinking=tally.draft_thinking,
        error=failure,
        usage=tally.usage,
        latency_s=tally.latency_s,
    )
