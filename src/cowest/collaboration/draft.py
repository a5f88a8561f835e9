"""Step 2: y ~ pi_w(.|x), the weak model's draft."""

from __future__ import annotations

from cowest.collaboration.calls import CallFailed, Tally
from cowest.errors import ModelCallError
from cowest.models.window import Window
from cowest.protocols import ChatModel, Frames, ManyChatModel
from cowest.types import Completion, Draft, Example, Sampling


def draft_id(example: Example, index: int) -> str:
    """The id of a query's ``index``-th draft."""
    return f"{example.id}#{index}"


async def ask_for_draft(
    tally: Tally,
    weak: ChatModel,
    frames: Frames,
    example: Example,
    sampling: Sampling,
    window: Window | None = None,
    step: str = "draft",
) -> Completion:
    """The weak model's draft, which is the tally's from then on. Raises CallFailed."""
    done = await tally.ask(weak, frames.draft(example), sampling, step, window)
    tally.draft = done.text
    return done


async def draft(weak: ChatModel, frames: Frames, example: Example, index: int, sampling: Sampling) -> Draft:
    """Sample one draft. A failed call becomes a draft with ``text=None`` and the reason."""
    try:
        done = await ask_for_draft(Tally(), weak, frames, example, sampling, step="")
    except CallFailed as error:
        return _failed(example, index, str(error))
    return _draft(example, index, done)


async def drafts(weak: ManyChatModel, frames: Frames, example: Example, n: int, sampling: Sampling) -> list[Draft]:
    """Sample a query's ``n`` drafts together, from a model that can give several for one prompt."""
    try:
        done = await weak.generate_many(frames.draft(example), sampling, n)
    except ModelCallError as error:
        return [_failed(example, k, f"{error.kind}: {error}") for k in range(n)]
    return [_draft(example, k, completion) for k, completion in enumerate(done)]


def _failed(example: Example, index: int, reason: str) -> Draft:
    return Draft(id=draft_id(example, index), example_id=example.id, index=index, text=None, error=reason)


def _draft(example: Example, index: int, done: Completion) -> Draft:
    return Draft(
        id=draft_id(example, index),
        example_id=example.id,
        index=index,
        text=done.text,
        usage=done.usage,
        latency_s=done.latency_s,
    )
