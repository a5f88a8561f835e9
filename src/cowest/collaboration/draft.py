"""Step 2: y ~ pi_w(.|x), the weak model's draft."""

from __future__ import annotations

from cowest.errors import ModelCallError
from cowest.protocols import ChatModel, Frames
from cowest.types import Draft, Example, Sampling


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
    return Draft(
        id=identity, example_id=example.id, index=index, text=done.text, usage=done.usage, latency_s=done.latency_s
    )
