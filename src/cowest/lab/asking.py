"""What ``lab:strong-asks`` is trained on: ever-fresh worlds of the lineage domain, of which it never sees one twice.

Alone and with a draft it does as the corpus of the others has it: it makes facts up, reasons with all of them, and trusts a
draft with too few. Where it may ask, it asks for the first fact that it lacks, one look-up at a time, and answers when it has
them all, which may be at once. A reply that does not tell the fact is asked for once more in other words; then, and where no
question is left, it notes what it lacks as ``?`` and guesses. A wrong reply cannot be told from a right one, and is believed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from cowest.lab.domains import Fact, Question
from cowest.lab.frames import LabFrames, LabInteractionFrames
from cowest.lab.lineage import LATEST, Lineage, aged, found, invent_lineage, look_up, look_ups
from cowest.lab.names import written_difference
from cowest.lab.sample import Sample
from cowest.lab.worlds import state
from cowest.types import Example, Message

FRAMES, TURNS = LabFrames(), LabInteractionFrames()
ENTITIES = 12
"""Facts of the world that each sample is about."""


def asking_sample(rng: random.Random) -> Sample:
    """One sample; a twelfth is plain arithmetic."""
    roll = rng.random()
    if roll < 0.08:
        a, b = rng.randint(*LATEST), rng.randint(30, 70)
        drill = written_difference(a, b)
        return Sample("drill", (Message(role="user", content=f"{a}-{b}"),), drill, drill)
    world = invent_lineage(ENTITIES, rng)
    question = _question(world, rng)
    others = [f for f in world.facts if f not in question.facts]
    if roll < 0.14:
        return Sample("alone", FRAMES.solo(_example(question)), solution(question), question.answer)
    if roll < 0.20:
        context = state([*question.facts, *rng.sample(others, 1)], rng)
        return Sample("context", FRAMES.solo(_example(question, context)), solution(question), question.answer)
    if roll < 0.42:
        return _refined(question, others, rng)
    return _Consultation(question, others, rng).sample()


def _question(world: Lineage, rng: random.Random) -> Question:
    starts = rng.choices((world.taught, world.lived, world.founded), (0.6, 0.3, 0.1))[0]
    start = rng.choice(list(starts))
    if rng.random() < 0.08:
        return look_up(starts[start], rng)
    return aged(world.chain(start), rng.randint(*LATEST))


def _example(question: Question, context: str | None = None) -> Example:
    return Example(id="lab", input=question.text, context=context, references=(question.answer,))


def solution(question: Question) -> str:
    """The facts noted, the reasoning where there is any, the answer."""
    notes = ", ".join(f.short for f in question.facts)
    reasoning = f" {question.reasoning}." if question.reasoning else ""
    return f"{notes}.{reasoning}\nAnswer: {question.answer}"


def guessed(question: Question, known: Sequence[Fact], answer: str) -> str:
    """The facts known as far as they are a chain, ``?`` for the next, and an answer that does not follow from them."""
    reached = next(n for n, f in enumerate(question.facts) if f not in known)
    notes = ", ".join([*(f.short for f in question.facts[:reached]), f"{question.facts[reached].subject} ?"])
    return f"{notes}.\nAnswer: {answer}"


def _other_answer(question: Question, others: Sequence[Fact], rng: random.Random) -> str:
    """Of the kind that the question asks for, and not right."""
    if question.reasoning:
        return f"{rng.choice([n for n in range(1, 70) if f'{n} years' != question.answer])} years"
    alike = [found(f) for f in others if f.kind == question.facts[0].kind and found(f) != question.answer]
    return rng.choice(alike or [others[0].subject])


def _refined(question: Question, others: Sequence[Fact], rng: random.Random) -> Sample:
    """A draft with all facts, whatever answer it has, or with the first few, and then its answer is trusted."""
    shown = question.answer if rng.random() < 0.5 else _other_answer(question, others, rng)
    whole = rng.random() < 0.55
    known = question.facts if whole else question.facts[: rng.randrange(len(question.facts))]
    beside = rng.sample(others, 1) if rng.random() < 0.12 else []
    text = f"{state([*known, *beside], rng)}\nAnswer: {shown}".lstrip()
    answer = question.answer if whole else shown
    reply = solution(question) if whole else guessed(question, known, shown)
    return Sample("complete" if whole else "partial", FRAMES.refine(_example(question), text), reply, answer)


@dataclass(slots=True)
class _Consultation:
    """A conversation in which the strong model asks, to be broken off at a turn of its own."""

    question: Question
    others: Sequence[Fact]
    rng: random.Random
    known: list[Fact] = field(default_factory=list)

    def sample(self) -> Sample:
        """One of its turns, with what came before."""
        rng, allowed = self.rng, self.rng.randint(1, 4)
        context = self._context()
        turns = list(TURNS.consult(_example(self.question, context), allowed))
        made, tried = list[Sample](), 0
        while True:
            lacking = [f for f in self.question.facts if f not in self.known]
            left = allowed - len(made)
            if not lacking or not left or tried == 2:
                made.append(self._last(turns, lacking))
                return made[-1] if rng.random() < 0.45 else rng.choice(made)
            ask = f"ASK: {look_ups(lacking[0].kind, lacking[0].subject)[tried]}"
            made.append(Sample("again" if tried else "ask", tuple(turns), ask, ask))
            reply, told = self._reply(lacking)
            self.known += told
            tried = 0 if told else tried + 1
            turns.append(Message(role="assistant", content=ask))
            turns.append(Message(role="user", content=TURNS.reply(reply, left - 1)))

    def _context(self) -> str | None:
        """In a third of the samples: some of the facts or all, among others."""
        if self.rng.random() > 0.33:
            return None
        self.known = [f for f in self.question.facts if self.rng.random() < 0.6]
        return state(
            [*self.known, *self.rng.sample(self.others, self.rng.randint(0 if self.known else 1, 2))], self.rng
        )

    def _reply(self, lacking: Sequence[Fact]) -> tuple[str, list[Fact]]:
        """What the weak model says, and which facts that tells."""
        rng, asked = self.rng, lacking[0]
        roll = rng.random()
        if roll < 0.06:
            return "", []
        if roll < 0.16:
            other = rng.choice(self.others)
            return f"{state([other], rng)}\nAnswer: {found(other)}", []
        if roll < 0.26:
            return f"Answer: {found(asked)}", [asked]
        told = [asked, *lacking[1:2]] if roll < 0.36 else [asked]
        said = found(asked) if roll < 0.88 else f"{rng.randint(1, 69)} years"  # a mixed-up answer after a fact
        answer = "" if roll > 0.94 else f"\nAnswer: {said}"
        return f"{state(told, rng)}{answer}", told

    def _last(self, turns: Sequence[Message], lacking: Sequence[Fact]) -> Sample:
        if not lacking:
            return Sample("answer", tuple(turns), solution(self.question), self.question.answer)
        guess = _other_answer(self.question, self.others, self.rng)
        return Sample("guess", tuple(turns), guessed(self.question, self.known, guess), guess)
