"""Who sees the context of a query: both models, one of them, or neither (``task.context_for``).

What is hidden from a model is taken away where its requests are made: in the frames, and in the task and the queries that a system
gets. A strong model that may not see the context gets of the user's documents what the draft says of them, and nothing else: no
passage, no training example's context, and no rationale that quotes one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

from cowest.protocols import BaselineFrames, Frames, InteractionFrames, Scorer, System, Task
from cowest.recipe.tasks import ContextFor
from cowest.tasks.base import SPLITS
from cowest.types import Example, Message, Passage, Prediction, Score

Side = Literal["weak", "strong"]
QUOTE = 40
"""Characters: a text that shares so many in a row with another one quotes it."""


def sees(side: Side, who: ContextFor) -> bool:
    """Whether the model of this side is shown the context."""
    return who in ("both", side)


def hidden(example: Example) -> Example:
    """The query without its context."""
    return example if example.context is None else example.model_copy(update={"context": None})


class Quotations:
    """Finds what quotes one of ``texts``; letter case and spacing aside."""

    def __init__(self, texts: Iterable[str], length: int = QUOTE) -> None:
        self._length, self._step = length, length // 3
        self._texts = list(dict.fromkeys(map(_plain, texts)))
        # Whatever is `length` long and copied holds a piece of two steps that starts at a multiple of a step: only those are kept.
        self._pieces = defaultdict[str, list[int]](list)
        for number, text in enumerate(self._texts):
            for at in range(0, len(text) - 2 * self._step + 1, self._step):
                self._pieces[text[at : at + 2 * self._step]].append(number)

    def quoted(self, text: str) -> str | None:
        """The first piece of ``text`` that is in one of the texts, as it is compared; None where there is none."""
        plain, size = _plain(text), 2 * self._step
        for at in range(len(plain) - size + 1):
            for number in self._pieces.get(plain[at : at + size], ()):
                for start in range(max(0, at - self._length + size), at + 1):
                    piece = plain[start : start + self._length]
                    if len(piece) == self._length and piece in self._texts[number]:
                        return piece
        return None


def carried(context: str, draft: str, words: int = 8) -> float:
    """The share of a context's distinct sequences of so many words that are in a draft, in [0, 1]; case and spacing aside."""
    there, written = _sequences(context, words), _sequences(draft, words)
    return len(there & written) / len(there) if there else 0.0


def _sequences(text: str, words: int) -> set[tuple[str, ...]]:
    split = text.casefold().split()
    return {tuple(split[i : i + words]) for i in range(len(split) - words + 1)}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


class UnseenContext:
    """A task as the strong model may see it: no context, and no rationale that quotes a context or a document."""

    def __init__(self, inner: Task) -> None:
        self._inner = inner
        self.name, self.labels, self.metrics = inner.name, inner.labels, inner.metrics
        self.instruction, self.extract = inner.instruction, inner.extract
        self._shown: dict[str, Example] = {}

    def examples(self, split: str) -> Sequence[Example]:
        """The split's questions, without what may not be seen."""
        return [self.shown(e) for e in self._inner.examples(split)]

    def target(self, example: Example) -> str:
        """The target, of which a rationale is a part only where it quotes nothing."""
        return self._inner.target(self.shown(example))

    def shown(self, example: Example) -> Example:
        """The question without its context, and without a rationale or target that quotes one."""
        if example.id not in self._shown:
            found = hidden(example)
            texts = {"rationale": found.rationale, "target": found.target}
            quoting = [name for name, text in texts.items() if text is not None and self._quotations.quoted(text)]
            self._shown[example.id] = found.model_copy(update=dict.fromkeys(quoting)) if quoting else found
        return self._shown[example.id]

    @cached_property
    def _quotations(self) -> Quotations:
        contexts = [e.context for split in SPLITS for e in self._inner.examples(split) if e.context]
        return Quotations([*contexts, *getattr(self._inner, "documents", ())])


class _Same:
    """A task by its identity: what is equal need not be hashable."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __hash__(self) -> int:
        return id(self.task)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.task is self.task


@lru_cache(maxsize=8)  # finding quotations reads all contexts once: not again for every row of a table
def _unseen(same: _Same) -> UnseenContext:
    return UnseenContext(same.task)


def task_for(side: Side, task: Task, who: ContextFor) -> Task:
    """The task as a system sees it that sends its examples to the model of this side."""
    return task if sees(side, who) else _unseen(_Same(task))


@dataclass(frozen=True, slots=True)
class SightedFrames:
    """Frames that show the context to whom ``who`` names."""

    inner: Frames
    who: ContextFor

    def draft(self, example: Example) -> tuple[Message, ...]:
        """What the weak model is asked."""
        return self.inner.draft(example if sees("weak", self.who) else hidden(example))

    def solo(self, example: Example) -> tuple[Message, ...]:
        """What the strong model is asked without a draft."""
        return self.inner.solo(example if sees("strong", self.who) else hidden(example))

    def refine(self, example: Example, draft: str) -> tuple[Message, ...]:
        """What the strong model is asked with a draft."""
        return self.inner.refine(example if sees("strong", self.who) else hidden(example), draft)


def sighted(frames: Frames, who: ContextFor) -> Frames:
    """The frames by ``who`` sees the context."""
    return frames if who == "both" else SightedFrames(frames, who)


class BlindBaselines:
    """Baseline frames that show no context: all of them are put to the strong model."""

    def __init__(self, inner: BaselineFrames) -> None:
        self._inner = inner

    def zero_shot(self, example: Example) -> tuple[Message, ...]:
        return self._inner.zero_shot(hidden(example))

    def chain_of_thought(self, example: Example) -> tuple[Message, ...]:
        return self._inner.chain_of_thought(hidden(example))

    def self_refine(self, example: Example, answer: str) -> tuple[Message, ...]:
        return self._inner.self_refine(hidden(example), answer)

    def predicted(self, example: Example, label: str, confidence: float | None) -> tuple[Message, ...]:
        return self._inner.predicted(hidden(example), label, confidence)

    def choose(self, example: Example, drafts: Sequence[str]) -> tuple[Message, ...]:
        return self._inner.choose(hidden(example), drafts)

    def should_retrieve(self, example: Example) -> tuple[Message, ...]:
        return self._inner.should_retrieve(hidden(example))

    def relevant(self, example: Example, passage: Passage) -> tuple[Message, ...]:
        return self._inner.relevant(hidden(example), passage)

    def supported(self, example: Example, passage: Passage, answer: str) -> tuple[Message, ...]:
        return self._inner.supported(hidden(example), passage, answer)


class SightedInteractions:
    """The turns of an interaction, each shown the context as its model is by ``who``."""

    def __init__(self, inner: InteractionFrames, who: ContextFor) -> None:
        self._inner, self._who = inner, who

    def critique(self, example: Example, draft: str) -> tuple[Message, ...]:
        return self._inner.critique(self._for("strong", example), draft)

    def revise(self, example: Example, draft: str, critique: str) -> tuple[Message, ...]:
        return self._inner.revise(self._for("weak", example), draft, critique)

    def advise(self, example: Example, attempt: str) -> tuple[Message, ...]:
        return self._inner.advise(self._for("weak", example), attempt)

    def decide(self, example: Example, attempt: str, advice: str) -> tuple[Message, ...]:
        return self._inner.decide(self._for("strong", example), attempt, advice)

    def consult(self, example: Example, questions: int) -> tuple[Message, ...]:
        return self._inner.consult(self._for("strong", example), questions)

    def reply(self, reply: str, left: int) -> str:
        return self._inner.reply(reply, left)

    def consulted(self, example: Example, question: str) -> tuple[Message, ...]:
        return self._inner.consulted(self._for("weak", example), question)

    def several(self, example: Example, drafts: Sequence[tuple[str, str]]) -> tuple[Message, ...]:
        return self._inner.several(self._for("strong", example), drafts)

    def _for(self, side: Side, example: Example) -> Example:
        return example if sees(side, self._who) else hidden(example)


class BlindSystem:
    """A system that never has the context: what it looks up itself it may put in its place."""

    def __init__(self, inner: System) -> None:
        self._inner, self.name = inner, inner.name

    async def answer(self, example: Example) -> Prediction:
        """The inner system's answer to the question alone."""
        return await self._inner.answer(hidden(example))


class BlindScorer:
    """A scorer (a judge, another model) that is shown no context."""

    def __init__(self, inner: Scorer) -> None:
        self._inner = inner

    async def score(self, example: Example, text: str | None) -> Score:
        """The inner scorer's score."""
        return await self._inner.score(hidden(example), text)
