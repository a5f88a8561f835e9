"""Self-RAG: the model itself judges whether to look something up, what of it matters, and whether it bears the answer out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cowest.models.window import Window
from cowest.protocols import ChatModel, Retriever, SelfRagPrompts
from cowest.systems.calls import Ask, Tally, predict
from cowest.systems.retrieval import asked_with, search
from cowest.tasks.answers import extract_answer
from cowest.types import Completion, Example, Message, Passage, Prediction, Sampling


@dataclass(frozen=True, slots=True)
class SelfRag:
    """Asai et al. 2023 (arXiv 2310.11511), with prompted judgements in place of trained reflection tokens.

    Retrieve? If not, the query is answered as it is. Of the ``passages`` passages each, best first: relevant? Then the query is
    answered with that passage in the context: supported? The first supported answer is the answer; else the first answer with
    a relevant passage; else, where none is relevant or none was found, the answer without one.

    Departures: the paper trains the model to write its judgements as tokens, weighs them by their probabilities, judges usefulness
    too, and judges again for each sentence, with all passages side by side. Here a judgement is a yes or no in words, once for
    the whole answer, and passages are taken one after the other, which spares the calls for those behind the first good
    one. A judgement that cannot be read counts as yes. Every call is needed: when one fails, so does the query.
    """

    model: ChatModel
    retriever: Retriever
    ask: Ask
    judge: SelfRagPrompts
    sampling: Sampling
    passages: int
    name: str
    window: Window | None = None

    async def answer(self, example: Example) -> Prediction:
        """The first supported answer; ``error`` says which call failed and why."""
        return await predict(example, self.name, self._steps)

    async def _steps(self, example: Example, tally: Tally) -> Completion:
        first: Completion | None = None
        for passage in await self._found(example, tally):
            if not await self._relevant(example, passage, tally):
                continue
            messages = asked_with(self.ask, example, [passage], tally, self.window)
            done = await tally.ask(self.model, messages, self.sampling, "answer", self.window)
            if await self._supported(example, passage, done.text, tally):
                return done
            first = first or done
        return first or await tally.ask(self.model, self.ask(example), self.sampling, "answer", self.window)

    async def _found(self, example: Example, tally: Tally) -> Sequence[Passage]:
        if not await self._yes(self.judge.should_retrieve(example), "retrieve?", tally):
            return ()
        return await search(self.retriever, example.input, self.passages)

    async def _relevant(self, example: Example, passage: Passage, tally: Tally) -> bool:
        about = self._about(passage, lambda p: self.judge.relevant(example, p), tally)
        return await self._yes(about, "relevant?", tally)

    async def _supported(self, example: Example, passage: Passage, answer: str, tally: Tally) -> bool:
        about = self._about(passage, lambda p: self.judge.supported(example, p, answer), tally)
        return await self._yes(about, "supported?", tally)

    async def _yes(self, messages: Sequence[Message], step: str, tally: Tally) -> bool:
        said = await tally.ask(self.model, messages, self.sampling, step, self.window)
        return extract_answer(said.text, ("yes", "no")) != "no"

    def _about(self, passage: Passage, ask: Callable[[Passage], Sequence[Message]], tally: Tally) -> Sequence[Message]:
        """A judgement of the passage, which is cut where the whole does not fit the window."""
        if self.window is None:
            return ask(passage)

        def shortened(kept: Sequence[str]) -> Sequence[Message]:
            return ask(passage.model_copy(update={"text": "".join(kept)}))

        kept, cut = self.window.fit_passages((passage.text,), shortened)
        tally.truncated_context |= cut
        return shortened(kept)
