"""FLARE: look something up when the next sentence is uncertain."""

from __future__ import annotations

from dataclasses import dataclass

from cowest.errors import ConfigError
from cowest.models.window import Window
from cowest.protocols import ChatModel, Retriever
from cowest.systems.calls import Ask, CallFailed, Tally, predict
from cowest.systems.confidence import sentences_of
from cowest.systems.retrieval import asked_with, search
from cowest.types import Completion, Example, Prediction, Sampling


@dataclass(frozen=True, slots=True)
class Flare:
    """Jiang et al. 2023 (arXiv 2305.06983), FLARE-direct with masked sentences as queries.

    The model answers. The first sentence with a token less probable than ``threshold`` is, without its unsure words, the query
    for ``passages`` passages (where no word is left, the question is), and the answer is written again with them in the context.
    Sentences up to that one are then settled; the next unsure one after them is looked up in the same way, at most ``rounds``
    times in all. Where nothing is found, the sentence is settled as it is.

    Departures: the paper continues the text after the settled sentences; chat APIs cannot in general, so the whole answer is
    written again, and its wording before the unsure sentence may change. Words are masked instead of tokens, whose
    fragments no retriever knows, and tokens without a letter or digit are never unsure. The paper's few-shot examples are
    ``ask``'s affair.

    A model that gives no log-probabilities (reasoning models, many servers) cannot be used: the query fails with kind
    ``no_logprobs``, after its first call, and a stage stops soon when all queries do. Raises ConfigError for settings that
    would never look anything up.
    """

    model: ChatModel
    retriever: Retriever
    ask: Ask
    sampling: Sampling
    passages: int
    threshold: float
    rounds: int
    name: str
    window: Window | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"{self.name}: threshold is {self.threshold}; it is a probability above 0 and at most 1")
        if self.rounds < 1 or self.passages < 1:
            raise ConfigError(f"{self.name}: rounds is {self.rounds}, passages {self.passages}; both are at least 1")

    async def answer(self, example: Example) -> Prediction:
        """The last answer written; ``error`` when a call failed or the model gives no log-probabilities."""
        return await predict(example, self.name, self._steps)

    async def _steps(self, example: Example, tally: Tally) -> Completion:
        sampling = self.sampling.model_copy(update={"logprobs": self.sampling.logprobs or 0})
        done = await tally.ask(self.model, self.ask(example), sampling, "answer", self.window)
        settled = 0
        for _ in range(self.rounds):
            sentences = sentences_of(done)
            if sentences is None:
                raise CallFailed(f"no_logprobs: {self.model.name} gives no log-probabilities, which FLARE needs")
            unsure = (i for i, s in enumerate(sentences) if i >= settled and s.unsure(self.threshold))
            index = next(unsure, None)
            if index is None:
                break
            settled = index + 1
            query = sentences[index].without(self.threshold) or example.input
            found = await search(self.retriever, query, self.passages)
            if found:
                messages = asked_with(self.ask, example, found, tally, self.window)
                done = await tally.ask(self.model, messages, sampling, "answer again", self.window)
        return done
