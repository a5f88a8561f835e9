"""Step 2: y ~ pi_w(.|x), the weak model's draft."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence

from cowest.collaboration.calls import CallFailed, Tally, failed_call
from cowest.errors import ModelCallError
from cowest.models.answer import HiddenAnswerError, is_cut, visible
from cowest.models.window import Window
from cowest.protocols import ChatModel, Frames, ManyChatModel
from cowest.scoring.normal import answer_key
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
    tally.draft, tally.draft_thinking = done.text, done.thinking
    return done


async def draft(weak: ChatModel, frames: Frames, example: Example, index: int, sampling: Sampling) -> Draft:
    """Sample one draft. A failed call becomes a draft with ``text=None`` and the reason."""
    tally = Tally()
    try:
        done = await ask_for_draft(tally, weak, frames, example, sampling, step="")
    except CallFailed as error:
        return _failed(example, index, error, tally)
    return _draft(example, index, done)


async def drafts(weak: ManyChatModel, frames: Frames, example: Example, n: int, sampling: Sampling) -> list[Draft]:
    """Sample a query's ``n`` drafts together, from a model that can give several for one prompt."""
    try:
        done = await weak.generate_many(frames.draft(example), sampling, n)
    except ModelCallError as error:
        return [_failed(example, k, failed_call(error), Tally()) for k in range(n)]
    return [seen(example, k, weak.name, completion) for k, completion in enumerate(done)]


async def unlike(
    made: Sequence[Draft], again: Callable[[int, int], Awaitable[Draft]], tries: int, settled: Collection[int] = ()
) -> list[Draft]:
    """A query's drafts in order, each that says the same as an earlier one drawn again, ``tries`` times at most.

    ``again(index, attempt)`` draws the attempt-th (from 1) in a draft's place; what fails leaves it as it is. Drafts whose index
    is ``settled`` stay. What is drawn depends on the drafts before alone, and so on no timing.
    """
    kept, said = list[Draft](), set[tuple[str, str]]()
    for draft in made:
        for attempt in range(1, 1 + (0 if draft.index in settled else tries)):
            if draft.text is None or answer_key(draft.text) not in said:
                break
            other = await again(draft.index, attempt)
            took = {"usage": draft.usage + other.usage, "latency_s": draft.latency_s + other.latency_s}
            draft = (draft if other.text is None else other).model_copy(update={**took, "redrawn": attempt})
        kept.append(draft)
        if draft.text is not None:
            said.add(answer_key(draft.text))
    return kept


def alike(made: Sequence[Draft]) -> int:
    """How many drafts say the same as an earlier one of their query."""
    said = [(draft.example_id, answer_key(draft.text)) for draft in made if draft.text is not None]
    return len(said) - len(set(said))


def seen(example: Example, index: int, weak: str, done: Completion) -> Draft:
    """What the model ``weak`` has sent, as a draft: without its thinking, and with no text where there was nothing else."""
    try:
        return _draft(example, index, visible(done, weak))
    except HiddenAnswerError as error:
        return _failed(example, index, failed_call(error), Tally(usage=done.usage, latency_s=done.latency_s))


def _failed(example: Example, index: int, failure: CallFailed, tally: Tally) -> Draft:
    return Draft(
        id=draft_id(example, index),
        example_id=example.id,
        index=index,
        text=None,
        thinking=failure.thinking,
        truncated=failure.cut,
        error=failure.error,
        usage=tally.usage,
        latency_s=tally.latency_s,
    )


def _draft(example: Example, index: int, done: Completion) -> Draft:
    return Draft(
        id=draft_id(example, index),
        example_id=example.id,
        index=index,
        text=done.text,
        thinking=done.thinking,
        truncated=is_cut(done),
        usage=done.usage,
        latency_s=done.latency_s,
    )
