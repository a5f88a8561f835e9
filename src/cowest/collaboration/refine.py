"""Steps 3 and 4: y* ~ pi_s(.|x, y) with a draft, and z ~ pi_s(.|x) alone."""

from __future__ import annotations

from cowest.errors import ModelCallError
from cowest.protocols import ChatModel, Frames
from cowest.types import Draft, Example, Message, Refinement, Sampling


async def refine(strong: ChatModel, frames: Frames, example: Example, draft: Draft, sampling: Sampling) -> Refinement:
    """The strong model's answer with the draft; ``draft.text`` must not be None (raises ValueError)."""
    if draft.text is None:
        raise ValueError(f"draft {draft.id} has no text ({draft.error}); there is nothing to refine")
    return await _ask(strong, frames.refine(example, draft.text), example, draft.id, sampling)


async def solo(strong: ChatModel, frames: Frames, example: Example, sampling: Sampling) -> Refinement:
    """The strong model's answer without a draft, once per query."""
    return await _ask(strong, frames.solo(example), example, None, sampling)


async def _ask(
    strong: ChatModel, messages: tuple[Message, ...], example: Example, draft_id: str | None, sampling: Sampling
) -> Refinement:
    try:
        done = await strong.generate(messages, sampling)
    except ModelCallError as error:
        return Refinement(example_id=example.id, draft_id=draft_id, text=None, error=f"{error.kind}: {error}")
    return Refinement(
        example_id=example.id,
        draft_id=draft_id,
        text=done.text,
        truncated=done.finish_reason == "length",
        usage=done.usage,
        latency_s=done.latency_s,
    )
