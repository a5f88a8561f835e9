"""The seams of the system. Upper layers and plug-ins meet here and nowhere else."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

from cowest.types import (
    Completion,
    Example,
    Feedback,
    Message,
    ModelRef,
    Passage,
    Prediction,
    RouteDecision,
    RouteFacts,
    Sampling,
    Score,
    Usage,
)


@runtime_checkable
class ChatModel(Protocol):
    """Anything that answers a conversation: a local checkpoint, an HTTP endpoint, a script.

    ``generate`` may be awaited concurrently; an implementation batches or limits as it sees fit. It raises
    :class:`cowest.errors.ModelCallError` when no answer could be had, and never returns an empty text.
    """

    @property
    def name(self) -> str:
        """How the model is called in results and logs; holds no secret."""
        ...

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion: ...

    async def aclose(self) -> None:
        """Release connections or memory. May be called twice."""
        ...


@runtime_checkable
class StreamingChatModel(ChatModel, Protocol):
    """A model that tells its text while it writes it."""

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[str | Completion, None]:
        """Pieces of the text, at least one, then the whole as ``generate`` gives it.

        Raises as that does; close it to free the model.
        """
        ...


@runtime_checkable
class ManyChatModel(ChatModel, Protocol):
    """A model that may be able to give several samples for one request (OpenAI's ``n``): the prompt is then paid for once.

    ``many`` tells whether it can, as it was opened: a wrapper has the method in any case, and says what its inner model says.
    """

    @property
    def many(self) -> bool: ...

    async def generate_many(self, messages: Sequence[Message], sampling: Sampling, n: int) -> Sequence[Completion]:
        """``n`` (at least 1) independent samples in order. Raises ModelCallError when fewer came back."""
        ...


class Engine(Protocol):
    """Where weights answer, apart from where they come from: in this process, behind a server that it starts."""

    def open(self, ref: ModelRef, *, device: str, dtype: str, batch_size: int) -> ChatModel:
        """A model that answers with these weights until it is closed; ``batch_size`` is the most that are generated together."""
        ...


@runtime_checkable
class RoomyChatModel(ChatModel, Protocol):
    """A model that knows its window."""

    def room(self, messages: Sequence[Message]) -> int | None:
        """Tokens that its window leaves for an answer to these messages (negative: they alone do not fit); None: no limit.

        Raises ModelCallError ``chat_template`` for messages that it cannot take.
        """
        ...


@runtime_checkable
class HoldingChatModel(ChatModel, Protocol):
    """A model whose answers can be held to a grammar (``types.Held``)."""

    def can_hold(self, grammar: str) -> None:
        """Raise ModelCallError ``bad_schema`` or ``no_grammar``, or MissingExtraError, for one that they cannot be held to."""
        ...


class Budget(Protocol):
    """Asked before each attempt that may cost something; holds the most that it can cost until the call is entered."""

    async def reserve(self, most: Usage, beside: Sequence[int] = ()) -> int:
        """The reservation's number. Waits while others' answers may still leave room, then raises BudgetExceededError.

        ``beside``: what the call holds already for attempts that may have been paid. It stays held until the call ends, so
        that to wait for it would be to wait for ever.
        """
        ...


class Frames(Protocol):
    """How a query is put to each model; ``collaboration/prompts.py`` has the defaults.

    What came before the query (``example.turns``) goes before it, by :func:`cowest.models.turns.in_conversation`.
    """

    def draft(self, example: Example) -> tuple[Message, ...]: ...

    def solo(self, example: Example) -> tuple[Message, ...]: ...

    def refine(self, example: Example, draft: str) -> tuple[Message, ...]: ...


class DraftFormat(Protocol):
    """What the weak model writes as a draft."""

    @property
    def name(self) -> str: ...

    @property
    def instruction(self) -> str:
        """What it is told to write, after the query."""
        ...

    def completion(self, target: str, example: Example) -> str | None:
        """What SFT teaches it to write; ``target`` is the task's rationale and marked answer. None where nothing fits."""
        ...


Asks = Literal["solo", "refine"]
"""Requests behind a feedback: the strong model alone, and with the draft."""


class Signal(Protocol):
    """What a draft is worth: by it drafts are paired, or learned from one by one."""

    @property
    def name(self) -> str:
        """How a recipe calls it (``pairs.signal``); a signal that values otherwise should have another name."""
        ...

    @property
    def asks(self) -> frozenset[Asks]:
        """The requests that it needs; what is not asked for is unscored in the feedback."""
        ...

    @property
    def alone(self) -> bool:
        """Whether it tunes the weak model to answer alone, and checkpoints are chosen by that; else by the collaboration."""
        ...

    def value(self, feedback: Feedback) -> float | None:
        """A draft's worth, higher is better; None where it cannot be told. Values are compared within one query."""
        ...


class SelfRagPrompts(Protocol):
    """The judgements that Self-RAG asks a model for; each is answered with yes or no."""

    def should_retrieve(self, example: Example) -> tuple[Message, ...]: ...

    def relevant(self, example: Example, passage: Passage) -> tuple[Message, ...]: ...

    def supported(self, example: Example, passage: Passage, answer: str) -> tuple[Message, ...]: ...


class BaselineFrames(SelfRagPrompts, Protocol):
    """How the baselines put a query to a model; ``systems/prompts.py`` has the defaults."""

    def zero_shot(self, example: Example) -> tuple[Message, ...]:
        """Answer at once, without reasoning."""
        ...

    def chain_of_thought(self, example: Example) -> tuple[Message, ...]: ...

    def self_refine(self, example: Example, answer: str) -> tuple[Message, ...]:
        """Criticise one's own answer and mend it, in one reply."""
        ...

    def predicted(self, example: Example, label: str, confidence: float | None) -> tuple[Message, ...]:
        """SuperICL: the query with a tuned model's prediction; ``confidence`` in [0, 1] where it is known."""
        ...

    def choose(self, example: Example, drafts: Sequence[str]) -> tuple[Message, ...]:
        """Which of the drafts, by number from 1, helps most."""
        ...


class InteractionFrames(Protocol):
    """What the models are asked in the turns of an interaction; ``systems/interactions/frames.py`` has the defaults.

    A text of a model that is '' did not fit the window, and is left out.
    """

    def critique(self, example: Example, draft: str) -> tuple[Message, ...]:
        """Strong: what does the draft lack?"""
        ...

    def revise(self, example: Example, draft: str, critique: str) -> tuple[Message, ...]:
        """Weak: the draft anew."""
        ...

    def advise(self, example: Example, attempt: str) -> tuple[Message, ...]:
        """Weak: advice on the strong model's attempt."""
        ...

    def decide(self, example: Example, attempt: str, advice: str) -> tuple[Message, ...]:
        """Strong: the answer, after attempt and advice."""
        ...

    def consult(self, example: Example, questions: int) -> tuple[Message, ...]:
        """Strong: the answer, or a question to the weak model; at most so many of them."""
        ...

    def reply(self, reply: str, left: int) -> str:
        """The turn to the strong model with the weak one's reply; ``left`` questions may follow."""
        ...

    def consulted(self, example: Example, question: str) -> tuple[Message, ...]:
        """Weak: a reply to the strong model's question."""
        ...

    def several(self, example: Example, drafts: Sequence[tuple[str, str]]) -> tuple[Message, ...]:
        """Strong: the answer, with several drafts as (who wrote it, its text)."""
        ...


class Retriever(Protocol):
    """Finds passages. Blocking, and safe to call from several threads."""

    def search(self, query: str, k: int) -> Sequence[Passage]:
        """The at most ``k`` best passages, best first; none for a query in which there is nothing to look for."""
        ...


class Task(Protocol):
    """A dataset with its instructions, its answer format and its metrics.

    ``metrics`` names the task's metrics, the main one first; ``score`` gives the per-query value of the main one.
    """

    @property
    def name(self) -> str: ...

    @property
    def metrics(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of a classification task; empty for open answers."""
        ...

    @property
    def instruction(self) -> str:
        """What the model is asked to do and how the answer is to be marked (``Answer: ...``)."""
        ...

    def examples(self, split: str) -> Sequence[Example]:
        """The examples of ``train``, ``validation`` or ``test``, in a fixed order."""
        ...

    def target(self, example: Example) -> str:
        """The SFT target: the rationale, then the marked reference answer; '' for a question that has neither."""
        ...

    def extract(self, text: str, example: Example) -> str | None:
        """The answer in a model's text, or None where there is none."""
        ...


class Scorer(Protocol):
    """E: how good is an answer to x? Never guesses: an unscorable text gets ``value=None`` and a reason."""

    async def score(self, example: Example, text: str | None) -> Score: ...


class System(Protocol):
    """Everything that can be evaluated or served: CoWest, a baseline, a model alone."""

    @property
    def name(self) -> str: ...

    async def answer(self, example: Example) -> Prediction: ...


Hear = Callable[[str], None]
"""Gets a text in pieces."""


@runtime_checkable
class StreamingSystem(System, Protocol):
    """A system that tells its answer while its last call writes it."""

    async def tell(self, example: Example, hear: Hear) -> Prediction:
        """As ``answer``; what ``hear`` gets is the beginning of the prediction's text, or all of it, or nothing of it."""
        ...


class Tracker(Protocol):
    """Where numbers go while they arise: losses, validation scores, counts of a stage. Beside the reporter, which is for people."""

    def log(self, stage: str, values: Mapping[str, float], step: int | None = None) -> None:
        """Values by name; ``step`` where they come of a training step, or of the checkpoint after it."""
        ...


@runtime_checkable
class Route(Protocol):
    """Who answers a query. A pure choice: it asks no model, and the same query and facts give the same decision."""

    @property
    def name(self) -> str:
        """How the route is called in results and by a server."""
        ...

    async def choose(self, query: Example, facts: RouteFacts) -> RouteDecision:
        """The decision. The query's references are unknown to a server, and no route may read them."""
        ...


class Reporter(Protocol):
    """Where progress goes. Never stdout: results are there."""

    def start(self, label: str, total: int | None, done: int = 0) -> None: ...

    def advance(self, n: int = 1) -> None: ...

    def finish(self) -> None: ...

    def info(self, text: str) -> None: ...
