"""What the interactions share: a turn with the texts of models in it that fits the window, and several drafts of one query."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cowest.models.window import Window
from cowest.protocols import ChatModel, Frames
from cowest.systems.calls import Series, Tally
from cowest.types import Completion, Example, Message, Sampling


def fitting(
    tally: Tally, window: Window | None, texts: Sequence[str], ask: Callable[[Sequence[str]], Sequence[Message]]
) -> Sequence[Message]:
    """What ``ask`` makes of the texts, or of as many as fit the window: the last go first, '' in their place.

    What is left out is told in the tally.
    """
    kept = tuple(texts)
    if window is not None:
        kept, cut = window.fit_passages(kept, lambda some: ask(_padded(some, len(texts))))
        tally.truncated_context |= cut
    return ask(_padded(kept, len(texts)))


def _padded(texts: Sequence[str], size: int) -> Sequence[str]:
    return (*texts, *("" for _ in range(size - len(texts))))


async def sampled_drafts(
    tally: Tally,
    weak: ChatModel,
    frames: Frames,
    example: Example,
    sampling: Sampling,
    samples: int,
    seed: int,
    window: Window | None = None,
) -> tuple[str, ...]:
    """So many sampled drafts, equal ones once, in the order they came; failed ones are left out. Raises CallFailed without any.

    What they are depends on seed and query alone, so that all rows that draw several draw the same.
    """
    series, asked = Series(seed, "best-of-k", example.id), frames.draft(example)
    found: Sequence[Completion] = await tally.sample(weak, asked, sampling, series, samples, "draft", window)
    drafts: dict[str, str] = {}
    for done in found:
        drafts.setdefault(done.text.strip(), done.text)
    return tuple(drafts.values())
