"""The weak model's turn in an interaction: how it is asked, after what came before, and what the strong model is asked after it.

The systems are made of these, and training asks in the same words (:class:`TurnFrames`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cowest.models.tools import call_text
from cowest.models.window import Window
from cowest.protocols import Frames, InteractionFrames
from cowest.systems.calls import Tally
from cowest.systems.interactions.frames import ASK
from cowest.systems.interactions.turns import fitting
from cowest.types import Example, Message


class Turn(Protocol):
    """One of the weak model's turns. ``before`` are the texts that came before it; what of them did not fit, the tally is told."""

    @property
    def weak_window(self) -> Window | None: ...

    @property
    def strong_window(self) -> Window | None: ...

    def asked(self, example: Example, before: Sequence[str], tally: Tally) -> Sequence[Message]:
        """The weak model's turn."""
        ...

    def after(self, example: Example, before: Sequence[str], said: str, tally: Tally) -> Sequence[Message]:
        """The strong model's, when the weak one has ``said`` something."""
        ...


@dataclass(frozen=True, slots=True)
class ReviseTurn:
    """``before``: the weak model's draft, and what the strong one says that it lacks."""

    frames: Frames
    turns: InteractionFrames
    weak_window: Window | None = None
    strong_window: Window | None = None

    def asked(self, example: Example, before: Sequence[str], tally: Tally) -> Sequence[Message]:
        """Where not both fit, the critique stays: without it there is nothing to revise by."""
        draft, lacks = before
        return fitting(tally, self.weak_window, (lacks, draft), lambda t: self.turns.revise(example, t[1], t[0]))

    def after(self, example: Example, before: Sequence[str], said: str, tally: Tally) -> Sequence[Message]:
        """As with any draft."""
        return fitting(tally, self.strong_window, (said,), lambda t: self.frames.refine(example, t[0]))


@dataclass(frozen=True, slots=True)
class AdviseTurn:
    """``before``: the strong model's attempt."""

    turns: InteractionFrames
    weak_window: Window | None = None
    strong_window: Window | None = None

    def asked(self, example: Example, before: Sequence[str], tally: Tally) -> Sequence[Message]:
        """The attempt is cut where it does not fit."""
        return fitting(tally, self.weak_window, before, lambda t: self.turns.advise(example, t[0]))

    def after(self, example: Example, before: Sequence[str], said: str, tally: Tally) -> Sequence[Message]:
        """Where not both fit, the advice stays: what it made of the question alone, the strong model can make again."""
        (attempt,) = before
        return fitting(tally, self.strong_window, (said, attempt), lambda t: self.turns.decide(example, t[1], t[0]))


@dataclass(frozen=True, slots=True)
class ReplyTurn:
    """``before``: the strong model's question, of at most ``questions``. After the reply to it there is no other."""

    turns: InteractionFrames
    questions: int
    weak_window: Window | None = None
    strong_window: Window | None = None

    def asked(self, example: Example, before: Sequence[str], tally: Tally) -> Sequence[Message]:
        """The question is cut where it does not fit."""
        return fitting(tally, self.weak_window, before, lambda t: self.turns.consulted(example, t[0]))

    def after(self, example: Example, before: Sequence[str], said: str, tally: Tally) -> Sequence[Message]:
        """The conversation as it then is, the last turn telling the strong model to answer."""
        (question,) = before
        return conversation(self.turns, example, self.questions, [(question, said)], 0)


def conversation(
    turns: InteractionFrames, example: Example, questions: int, said: Sequence[tuple[str, str]], left: int
) -> list[Message]:
    """The strong model's turns with its questions and the replies, so many being ``left`` after the last of them."""
    found = [*turns.consult(example, questions)]
    for after, (question, reply) in zip(range(left + len(said) - 1, left - 1, -1), said, strict=True):
        found += [
            Message(role="assistant", content=call_text(ASK, question)),
            Message(role="user", content=turns.reply(reply, after)),
        ]
    return found


@dataclass(frozen=True, slots=True)
class TurnFrames:
    """Implements :class:`cowest.protocols.Frames` with the turn in the place of a draft, and of its refinement what comes after.

    So the stages that draw, refine, score and pair drafts do the same with revisions, advice and replies. ``before`` has what came
    before the turn, by the query's id; a query that it lacks has no such turn (KeyError).
    """

    inner: Frames
    turn: Turn
    before: Mapping[str, Sequence[str]]

    def draft(self, example: Example) -> tuple[Message, ...]:
        """What the weak model is asked."""
        asked = self.turn.asked(example, self.before[example.id], Tally())
        return _fitted(asked, self.turn.weak_window)

    def solo(self, example: Example) -> tuple[Message, ...]:
        """What the strong model is asked alone."""
        return self.inner.solo(example)

    def refine(self, example: Example, draft: str) -> tuple[Message, ...]:
        """What the strong model is asked after that."""
        asked = self.turn.after(example, self.before[example.id], draft, Tally())
        return _fitted(asked, self.turn.strong_window)


def _fitted(messages: Sequence[Message], window: Window | None) -> tuple[Message, ...]:
    return tuple(messages) if window is None else window.fit_turns(messages).messages
