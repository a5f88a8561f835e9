"""SuperICL: a tuned small model's prediction as a plug-in for the strong model's in-context learning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cowest.models.window import Window
from cowest.protocols import ChatModel
from cowest.systems.calls import Ask, Tally, predict
from cowest.systems.confidence import confidence_of
from cowest.types import Completion, Example, Message, Prediction, Sampling

AskWithPrediction = Callable[[Example, str, float | None], Sequence[Message]]
"""How a query is put with the predicted label and its confidence in [0, 1] (None: unknown)."""


@dataclass(frozen=True, slots=True)
class SuperIcl:
    """Xu et al. 2023 (arXiv 2305.08848): the tuned weak model's label and confidence beside the query.

    The in-context examples, each with the weak model's prediction for it too, are ``ask_strong``'s affair. The confidence is the
    mean probability of the tokens that spell the label; a weak model that gives no log-probabilities has none, and the prompt
    then says nothing of it. A weak text in which no answer is found is shown as it is, without a confidence.

    Departures: the paper's small model is a classifier whose softmax is the confidence; a generative one has the probability of
    what it wrote, given the rationale that it wrote before. The paper asks for an explanation only where the strong model
    overrides the label; here ``ask_strong`` decides. The strong model never sees the weak one's rationale: that is what
    sets this row apart from the collaboration.
    """

    weak: ChatModel
    strong: ChatModel
    ask_weak: Ask
    ask_strong: AskWithPrediction
    extract: Callable[[str, Example], str | None]
    draft_sampling: Sampling
    answer_sampling: Sampling
    name: str
    window: Window | None = None
    weak_window: Window | None = None

    async def answer(self, example: Example) -> Prediction:
        """The strong model's answer; ``draft`` is the weak model's whole text."""
        return await predict(example, self.name, self._steps)

    async def _steps(self, example: Example, tally: Tally) -> Completion:
        sampling = self.draft_sampling.model_copy(update={"logprobs": self.draft_sampling.logprobs or 0})
        weak = await tally.ask(self.weak, self.ask_weak(example), sampling, "draft", self.weak_window)
        tally.draft, tally.draft_thinking = weak.text, weak.thinking
        label, confidence = predicted(weak, self.extract(weak.text, example))
        messages = self.ask_strong(example, label, confidence)
        return await tally.ask(self.strong, messages, self.answer_sampling, window=self.window)


def predicted(weak: Completion, answer: str | None) -> tuple[str, float | None]:
    """The label to show and its confidence, for the query and in the same way for the in-context examples."""
    return (weak.text.strip(), None) if answer is None else (answer, confidence_of(weak, answer))
