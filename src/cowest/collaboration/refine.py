"""Steps 3 and 4: y* ~ pi_s(.|x, y) with a draft, and z ~ pi_s(.|x) alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from cowest.collaboration.calls import CallFailed, Tally
from cowest.collaboration.expect import NOTHING, Expect, likelihood
from cowest.models.answer import is_cut
from cowest.models.window import Window
from cowest.protocols import ChatModel, Frames
from cowest.types import Completion, Draft, Example, Given, Likelihood, Message, Refinement, Sample, Sampling


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


async def refine(
    strong: ChatModel, frames: Frames, example: Example, draft: Draft, sampling: Sampling, expect: Expect = NOTHING
) -> Refinement:
    """The strong model's answer with the draft; ``draft.text`` must not be None (raises ValueError)."""
    text, tally = draft.text, Tally()
    if text is None:
        raise ValueError(f"draft {draft.id} has no text ({draft.error}); there is nothing to refine")

    async def ask(one: Sampling) -> Completion:
        return await ask_to_refine(tally, strong, frames, example, text, one, step="")

    return await _answered(ask, tally, example, draft.id, sampling, expect)


async def solo(
    strong: ChatModel, frames: Frames, example: Example, sampling: Sampling, expect: Expect = NOTHING
) -> Refinement:
    """The strong model's answer without a draft, once per query."""
    tally = Tally()

    async def ask(one: Sampling) -> Completion:
        return await tally.ask(strong, frames.solo(example), one)

    return await _answered(ask, tally, example, None, sampling, expect)


async def _answered(
    ask: Callable[[Sampling], Awaitable[Completion]],
    tally: Tally,
    example: Example,
    draft_id: str | None,
    sampling: Sampling,
    expect: Expect,
) -> Refinement:
    """The answer, and what is asked for beside it; that only after it, since a call that fails would fail again."""
    try:
        done = await ask(sampling)
    except CallFailed as error:
        return _failed(example, draft_id, error, tally)
    answer = _refinement(example, draft_id, done)
    if expect.classes is not None:
        return answer.model_copy(update={"classes": expect.classes(done, example)})
    beside: dict[str, object] = {}
    if expect.readings is not None:
        each = expect.readings(done, example)
        beside["likelihoods"] = tuple(await asyncio.gather(*(_likelihood(ask, one) for one in each)))
    if expect.samples:
        beside["samples"] = tuple(await asyncio.gather(*(_sample(ask, one) for one in expect.samples)))
    if not beside:
        return answer
    return answer.model_copy(update={**beside, "usage": tally.usage, "latency_s": tally.latency_s})


async def _likelihood(ask: Callable[[Sampling], Awaitable[Completion]], one: Given) -> Likelihood:
    try:
        done = await ask(one)
    except CallFailed as error:
        return Likelihood(reference=one.given, value=None, error=error.error)
    value = likelihood(done)
    return Likelihood(reference=one.given, value=value, error="no log-probabilities" if value is None else None)


async def _sample(ask: Callable[[Sampling], Awaitable[Completion]], sampling: Sampling) -> Sample:
    try:
        done = await ask(sampling)
    except CallFailed as error:
        return Sample(text=None, truncated=error.cut, error=error.error)
    return Sample(text=done.text, truncated=is_cut(done))


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
