"""How a query is put to the lab's tiny models: as short as it gets, since they know no English beyond the lab's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cowest.models.turns import in_conversation
from cowest.types import Example, Message, Passage

NO_LAB_TURNS: Final = (
    "a lab world's tiny models know a query, its context and one draft, and no other turn (but collab_consult's, in the domain "
    "lineage with lab:strong-asks); take another kind of task, or give prompts.draft, solo and refine for models that do"
)


@dataclass(frozen=True, slots=True)
class LabFrames:
    """Implements :class:`cowest.protocols.Frames`. The strong model was pretrained on exactly these messages."""

    def draft(self, example: Example) -> tuple[Message, ...]:
        return _plain(example)

    def solo(self, example: Example) -> tuple[Message, ...]:
        return _plain(example)

    def refine(self, example: Example, draft: str) -> tuple[Message, ...]:
        return _plain(example, f"\nDraft: {draft}")


@dataclass(frozen=True, slots=True)
class LabInteractionFrames:
    """Implements :class:`cowest.protocols.InteractionFrames` as far as ``lab:strong-asks`` follows: it asks, and reads the reply.

    It is told how many questions are left. The weak model is asked each as a question of its own. The other turns are text that
    no lab model has ever seen: their rows are refused (:data:`NO_LAB_TURNS`).
    """

    def consult(self, example: Example, questions: int) -> tuple[Message, ...]:
        return _plain(example, _left(questions))

    def reply(self, reply: str, left: int) -> str:
        return f"{reply}{_left(left)}"

    def consulted(self, example: Example, question: str) -> tuple[Message, ...]:
        return _plain(example.model_copy(update={"input": question}))

    def critique(self, example: Example, draft: str) -> tuple[Message, ...]:
        return _plain(example, f"\nDraft: {draft}\nLacks?")

    def revise(self, example: Example, draft: str, critique: str) -> tuple[Message, ...]:
        return _plain(example, f"\nDraft: {draft}\nLacks: {critique}")

    def advise(self, example: Example, attempt: str) -> tuple[Message, ...]:
        return _plain(example, f"\nAttempt: {attempt}\nAdvice?")

    def decide(self, example: Example, attempt: str, advice: str) -> tuple[Message, ...]:
        return _plain(example, f"\nAttempt: {attempt}\nAdvice: {advice}")

    def several(self, example: Example, drafts: Sequence[tuple[str, str]]) -> tuple[Message, ...]:
        return _plain(example, "".join(f"\nDraft: {draft}" for _, draft in drafts))


def _left(questions: int) -> str:
    return f"\nAsk: {questions}"


@dataclass(frozen=True, slots=True)
class LabBaselineFrames:
    """Implements :class:`cowest.protocols.BaselineFrames` as far as the lab's models can follow.

    They know three forms: the query, context and query, query and draft. A first answer and a predicted label are put to
    them as a draft; they know no confidence, and no difference between zero-shot and chain of thought. ``choose`` and
    Self-RAG's judgements are plain text that they have never seen and will not understand: what they answer is noise, which those
    systems take by their rule for an unreadable answer (the first draft; yes).
    """

    def zero_shot(self, example: Example) -> tuple[Message, ...]:
        return LabFrames().solo(example)

    def chain_of_thought(self, example: Example) -> tuple[Message, ...]:
        return LabFrames().solo(example)

    def self_refine(self, example: Example, answer: str) -> tuple[Message, ...]:
        return LabFrames().refine(example, answer)

    def predicted(self, example: Example, label: str, confidence: float | None) -> tuple[Message, ...]:
        return LabFrames().refine(example, f"Answer: {label}")

    def choose(self, example: Example, drafts: Sequence[str]) -> tuple[Message, ...]:
        numbered = "".join(f"\nDraft {number}: {draft}" for number, draft in enumerate(drafts, 1))
        return _plain(example, f"{numbered}\nWhich draft?")

    def should_retrieve(self, example: Example) -> tuple[Message, ...]:
        return _plain(example, "\nLook it up? yes or no")

    def relevant(self, example: Example, passage: Passage) -> tuple[Message, ...]:
        return _plain(example, f"\nPassage: {passage.text}\nRelevant? yes or no")

    def supported(self, example: Example, passage: Passage, answer: str) -> tuple[Message, ...]:
        return _plain(example, f"\nPassage: {passage.text}\nClaim: {answer}\nSupported? yes or no")


def _plain(example: Example, text: str = "") -> tuple[Message, ...]:
    return in_conversation(example.turns, (Message(role="user", content=_query(example) + text),))


def _query(example: Example) -> str:
    return f"{example.context}\n{example.input}" if example.context else example.input
