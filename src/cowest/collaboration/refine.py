"""Steps 3 and 4: y* ~ pi_s(.|x, y) with a draft, and z ~ pi_s(.|x) alone."""

from __future__ import annotations

from collections.abc import Sequence

from cowest.collaboration.calls import CallFailed, Tally
from cowest.models.answer import is_cut
from cowest.models.window import Window
from cowest.protocols import ChatModel, Frames
from cowest.types import Completion, Draft, Example, Message, Refinement, Sampling


async def ask_to_refine(
    tally: Tally,
    strong: ChatModel,
    frames: Frames,
    example: Example,
    draft: str,
    sampling: Sampling,
    window: Window | None = None,
    step: str = "refine",
) -> Completion:
    """The strong model's answer with the draft, which is cut as a passage is where it does not fit. Raises CallFailed."""

    def asked(kept: Sequence[str]) -> Sequence[Message]:
        return frames.refine(example, "".join(kept))

    kept: Sequence[str] = (draft,)
    if window is not None:
        kept, cut = window.fit_passages(kept, asked)
        tally.truncated_context |= cut
    return await tally.ask(strong, asked(kept), sampling, step, window)


async def refine(strong: ChatModel, frames: Frames, example: Example, draft: Draft, sampling: Sampling) -> Refinement:
    """The strong model's answer with the draft; ``draft.text`` must not be None (raises ValueError)."""
    if draft.text is None:
        raise ValueError(f"draft {draft.id} has no text ({draft.error}); there is nothing to refine")
    tally = Tally()
    try:
        done = await ask_to_refine(tally, strong, frames, example, draft.text, sampling, step="")
    except CallFailed as error:
        return _failed(example, draft.id, error, tally)
    return _refinement(example, draft.id, done)


async def solo(strong: ChatModel, frames: Frames, example: Example, sampling: Sampling) -> Refinement:
    """The strong model's answer without a draft, once per query."""
    tally = Tally()
    try:
        done = await tally.ask(strong, frames.solo(example), sampling)
    except CallFailed as error:
        return _failed(example, None, error, tally)
    return _refinement(example, None, done)


def _failed(example: Example, draft_id: str | None, failure: CallFailed, tally: Tally) -> Refinement:
    return Refinement(
        example_id=example.id,
        draft_id=draft_id,
        text=None,
        thinking=failure.thinking,
        truncated=failure.cut,
        error=failure.error,
        usage=tally.usage,
        latency_s=tally.latency_s,
    )


def _refinement(example: Example, draft_id: str | None, done: Completion) -> Refinement:
    return Refinement(
        example_id=example.id,
        draft_id=draft_id,
        text=done.text,
        thinking=done.thinking,
        truncated=is_cut(done),
        usage=done.usage,
        latency_s=done.latency_s,
    )
