"""Consult: the strong model asks the weak one as a tool, when it wants to, and so often at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cowest.errors import ConfigError
from cowest.models.tools import find_call
from cowest.models.window import Window
from cowest.protocols import ChatModel, Hear, InteractionFrames
from cowest.systems.calls import Tally, predict
from cowest.systems.interactions.frames import ASK
from cowest.systems.interactions.turn import ReplyTurn, conversation
from cowest.tasks.answers import marked_answer
from cowest.types import Completion, Example, Message, Prediction, Sampling, Tooled


@dataclass(frozen=True, slots=True)
class Consult:
    """Tool use as in ReAct (Yao et al. 2022, arXiv 2210.03629), the weak model being the only tool, ``questions`` calls at most.

    A model that asks nothing has answered with its first call; one that has asked so often is told to answer, and what it says then
    is its answer whatever it is. So there are at most ``questions`` calls of the weak model and one more of the strong one. Where
    the endpoint has tool calls the question is one (:mod:`cowest.models.tools`), else a line ``ASK: ...`` before any answer.
    Raises ConfigError for less than one question.
    """

    weak: ChatModel
    strong: ChatModel
    turns: InteractionFrames
    draft_sampling: Sampling
    answer_sampling: Sampling
    questions: int
    name: str
    weak_window: Window | None = None
    strong_window: Window | None = None

    def __post_init__(self) -> None:
        """Check the setting."""
        if self.questions < 1:
            raise ConfigError(f"{self.name}: questions is {self.questions}; at least 1 is needed")

    async def answer(self, example: Example) -> Prediction:
        """Each call is needed; ``error`` says which one failed and why. ``draft`` is what the weak model replied, if asked."""
        return await predict(example, self.name, self._steps)

    async def tell(self, example: Example, hear: Hear) -> Prediction:
        """See StreamingSystem."""
        return await predict(example, self.name, self._steps, hear)

    async def _steps(self, example: Example, tally: Tally) -> Completion:
        said: list[tuple[str, str]] = []
        turn = ReplyTurn(self.turns, self.questions, self.weak_window)
        while True:
            left = self.questions - len(said)
            sampling = asking(self.answer_sampling, left > 0)
            # Without a window of its own: what comes before the last turn here is the query.
            done = await tally.answer(
                self.strong,
                self._asked(example, said, tally),
                sampling,
                "answer" if said else "consult",
                until=_may_still_ask if left else None,
            )
            question = question_in(done.text) if left and not tally.told else None
            if question is None:
                return done
            read = turn.asked(example, (question,), tally)
            reply = await tally.ask(self.weak, read, self.draft_sampling, "reply", self.weak_window)
            said.append((question, reply.text))
            tally.draft = "\n\n".join(text for _, text in said)

    def _asked(self, example: Example, said: Sequence[tuple[str, str]], tally: Tally) -> Sequence[Message]:
        """The conversation so far; where it does not fit, without its earliest questions."""
        begin, turns = 0, self._turns(example, said, 0)
        while self.strong_window is not None and begin + 1 < len(said) and not self.strong_window.fits(turns):
            begin += 1
            turns = self._turns(example, said, begin)
        tally.truncated_context |= begin > 0
        return turns

    def _turns(self, example: Example, said: Sequence[tuple[str, str]], begin: int) -> Sequence[Message]:
        return conversation(self.turns, example, self.questions, said[begin:], self.questions - len(said))


def _may_still_ask(text: str) -> bool:
    """Whether a text that is still written may come to a question: none that has answered already does."""
    return marked_answer(text) is None


def asking(sampling: Sampling, may_ask: bool) -> Tooled:
    """How the strong model is sampled where it may ask the weak one, or may ask no more."""
    return Tooled(**sampling.model_dump(), tool=ASK, may_call=may_ask)


async def first_question(
    tally: Tally, strong: ChatModel, turns: InteractionFrames, example: Example, sampling: Sampling, questions: int
) -> tuple[str, ...]:
    """What comes before the first reply: the question; nothing where the strong model answers at once. Raises CallFailed."""
    done = await tally.ask(strong, turns.consult(example, questions), asking(sampling, True), "consult")
    question = question_in(done.text)
    return () if question is None else (question,)


def question_in(text: str) -> str | None:
    """What a text asks; None for one that answers first."""
    found = find_call(ASK, text)
    return None if found is None or marked_answer(found[0]) is not None else found[1]
