"""Step 2: y ~ pi_w(.|x), the weak model's draft."""

from __future__ import annotations

from cowest.errors import ModelCallError
from cowest.protocols import ChatModel, Frames, ManyChatModel
from cowest.types import Completion, Draft, Example, Sampling


def draft_id(example: Example, index: int) -> str:
    """The id of a query's ``index``-th draft."""
    return f"{example.id}#{index}"


async def draft(weak: ChatModel, frames: Frames, example: Example, index: int, sampling: Sampling) -> Draft:
    """Sample one draft. A failed call becomes a draft with ``text=None`` and the reason."""
    identity = draft_id(example, index)
    try:
        done = await weak.generate(frames.draft(example), sampling)
    except ModelCallError as error:
        return Draft(id=identity, example_id=example.id, index=index, text=None, error=f"{error.kind}: {error}")
    return _draft(example, index, done)


async def drafts(weak: ManyChatModel, frames: Frames, example: Example, n: int, sampling: Sampling) -> list[Draft]:
    """Sample a query's ``n`` drafts together, from a model that can give several for one prompt."""
    try:
        done = await weak.generate_many(frames.draft(example), sampling, n)
    except ModelCallError as error:
        reason = f"{error.kind}: {error}"
        return [
            Draft(id=draft_id(example, k), example_id=example.id, index=k, text=None, error=reason) for k in range(n)
        ]
    return [_draft(example, k, completion) for k, completion in enumerate(done)]


def _draft(example: Example, index: int, done: Completion) -> Draft:
    return Draft(
        id=draft_id(example, index),
        example_id=example.id,
        index=index,
        text=done.text,
        usage=done.usage,
        latency_s=done.latency_s,
    )
