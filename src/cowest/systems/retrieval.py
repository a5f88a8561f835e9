"""Retrieval-augmented answering: passages of the domain's training texts go before the query."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from cowest.models.window import Window
from cowest.protocols import ChatModel, Retriever
from cowest.systems.calls import Ask, Tally, predict
from cowest.types import Completion, Example, Message, Passage, Prediction, Sampling


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Lewis et al. 2020 (arXiv 2005.11401) without training: the ``passages`` best passages for the query, then the query.

    Departures: the retriever is not tuned with the model, and all passages are in one prompt instead of one answer for each.
    With no hit the query is asked as it is. With a ``window``, passages that do not fit are left out by its rule.
    """

    model: ChatModel
    retriever: Retriever
    ask: Ask
    sampling: Sampling
    passages: int
    name: str
    window: Window | None = None

    async def answer(self, example: Example) -> Prediction:
        """One answer with passages; a failed call gives ``text=None`` and the reason."""
        return await predict(example, self.name, self._steps)

    async def _steps(self, example: Example, tally: Tally) -> Completion:
        found = await search(self.retriever, example.input, self.passages)
        messages = asked_with(self.ask, example, found, tally, self.window)
        return await tally.ask(self.model, messages, self.sampling, window=self.window)


async def search(retriever: Retriever, query: str, k: int) -> Sequence[Passage]:
    """Search in a thread: a dense retriever runs a model, and others' calls go on meanwhile."""
    return await asyncio.to_thread(retriever.search, query, k)


def with_passages(example: Example, texts: Sequence[str]) -> Example:
    """A copy whose context is the passages, best first, and then its own context, each on lines of its own."""
    parts = [*texts, example.context or ""]
    context = "\n".join(part.strip() for part in parts if part.strip())
    return example.model_copy(update={"context": context or None})


def asked_with(
    ask: Ask, example: Example, found: Sequence[Passage], tally: Tally, window: Window | None
) -> Sequence[Message]:
    """What is asked with these passages in the context, or with as many of them as fit the window."""
    texts = tuple(passage.text for passage in found)
    if window is not None:
        texts, cut = window.fit_passages(texts, lambda kept: ask(with_passages(example, kept)))
        tally.truncated_context |= cut
    return ask(with_passages(example, texts))
