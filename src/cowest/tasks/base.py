"""A task held in memory: all that a dataset needs to be drafted for, refined, tuned on and scored.

Tasks own their instruction and answer format (``Answer: ...``). Most are a ``SimpleTask`` made by a loader::

    SimpleTask("capitals", OPEN_METRICS, labels=(), instruction=open_instruction(), splits={"test": examples})
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cowest.errors import ConfigError, DataError
from cowest.protocols import Task
from cowest.tasks.answers import MARKER, extract_answer, label_key
from cowest.tasks.jsonl_rows import overlap_key
from cowest.types import Example, Message

SPLITS = ("train", "validation", "test")
OPEN_METRICS = ("em", "f1")
"""Metrics of a task with open answers, the main one first."""
SQUAD_METRICS = ("squad_em", "squad_f1")
"""The same by SQuAD's official script to the letter, for benchmarks that are scored by it."""
CLASS_METRICS = ("accuracy", "macro_f1")
"""Metrics of a classification task, the main one first; they need labels."""


def open_instruction() -> str:
    """The default instruction for open answers."""
    return f'Answer the question. Reason briefly, then end with a line "{MARKER} ..." that holds only the answer.'


def class_instruction(labels: Sequence[str]) -> str:
    """The default instruction for classes; lists them."""
    listed = ", ".join(labels)
    return (
        f"Answer with one of: {listed}. Reason briefly, then end with a line "
        f'"{MARKER} ..." that holds exactly one of them.'
    )


@dataclass(frozen=True)
class SimpleTask:
    """A ``Task`` from its parts; ``splits`` maps a split's name to its examples in a fixed order.

    ``notes`` are what a user must know of the data (cut rationales, leaked questions), each with its count.

    Raises:
        ConfigError: no metrics, a class metric without labels, or labels that cannot be told apart in a text.
    """

    name: str
    metrics: tuple[str, ...]
    labels: tuple[str, ...]
    instruction: str
    splits: Mapping[str, tuple[Example, ...]]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the parts against each other."""
        if not self.metrics:
            raise ConfigError(f"task {self.name!r}: metrics is empty; name at least one, the main one first")
        needing = [metric for metric in self.metrics if metric in CLASS_METRICS and not self.labels]
        if needing:
            raise ConfigError(f"task {self.name!r}: metric {needing[0]!r} needs labels; give labels or use em, f1")
        seen: dict[str, str] = {}
        for label in self.labels:
            key = label_key(label)
            if not key or key in seen:
                what = f"labels {seen[key]!r} and {label!r} read alike" if key else "a label is empty"
                raise ConfigError(f"task {self.name!r}: {what}; give each class its own name")
            seen[key] = label

    def examples(self, split: str) -> Sequence[Example]:
        """The examples of a split, in a fixed order.

        Raises:
            DataError: the task has no such split.
        """
        if split not in self.splits:
            have = ", ".join(self.splits) or "none"
            raise DataError(f"task {self.name!r} has no {split!r} split (it has: {have}); give the task a file for it")
        return self.splits[split]

    def target(self, example: Example) -> str:
        """The example's own target; else its rationale, then the marked first reference, as far as they are there, or ''."""
        if example.target is not None:
            return example.target
        if not example.references:
            return (example.rationale or "").rstrip()
        answer = f"{MARKER} {example.references[0]}"
        return f"{example.rationale.rstrip()}\n{answer}" if example.rationale else answer

    def extract(self, text: str, example: Example) -> str | None:
        """The answer in a model's text: one of the labels, or of the example's own choices, or a short open answer."""
        return extract_answer(text, self.labels or example.choices)


@dataclass(frozen=True)
class WrappedTask:
    """A task with other examples; everything else is the inner task's."""

    inner: Task
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.inner.metrics

    @property
    def labels(self) -> tuple[str, ...]:
        return self.inner.labels

    @property
    def instruction(self) -> str:
        return self.inner.instruction

    def examples(self, split: str) -> Sequence[Example]:
        return self.inner.examples(split)

    def target(self, example: Example) -> str:
        return self.inner.target(example)

    def extract(self, text: str, example: Example) -> str | None:
        return self.inner.extract(text, example)


@dataclass(frozen=True)
class ExtendedTask(WrappedTask):
    """A task with more training examples, which come first."""

    extra: tuple[Example, ...]

    def examples(self, split: str) -> Sequence[Example]:
        found = self.inner.examples(split)
        return (*self.extra, *found) if split == "train" else found


CALIBRATION = "calibration"
"""The split of questions that train nothing and choose nothing, for `cowest guard`."""


@dataclass(frozen=True)
class ReservedTask(WrappedTask):
    """A task of which some training examples (by their ids) are in a split of their own.

    ``alike`` are others that ask the same, and train nothing either.
    """

    reserved: frozenset[str]
    alike: frozenset[str] = frozenset()

    def examples(self, split: str) -> Sequence[Example]:
        if split == CALIBRATION:
            return [e for e in self.inner.examples("train") if e.id in self.reserved]
        found = self.inner.examples(split)
        away = self.reserved | self.alike
        return [e for e in found if e.id not in away] if split == "train" else found


def reserving(task: Task, n: int, seed: int) -> Task:
    """The task with ``n`` of its training questions, drawn by the seed, kept for calibration; the task itself for 0.

    A training question that is asked again under another id does not train, either, where one of them is kept: the promise is
    about queries that the models have not learned. Raises DataError where it has not as many to spare.
    """
    if not n:
        return task
    train = {e.id: overlap_key(e) for e in task.examples("train")}
    reserved = frozenset(random.Random(seed).sample(list(train), n)) if n < len(train) else frozenset(train)
    kept = {train[id_] for id_ in reserved}
    alike = frozenset(id_ for id_, asked in train.items() if asked in kept and id_ not in reserved)
    if len(reserved) + len(alike) >= len(train):
        raise DataError(f"task.calibration: {n} of {len(train)} training questions would leave none to train on")
    again = f"{len(alike)} training questions ask what a calibration question asks, and are left out of training"
    return ReservedTask(task, (*notes_of(task), *((again,) if alike else ())), reserved, alike)


@dataclass(frozen=True)
class OtherContexts(WrappedTask):
    """A task whose questions have other contexts, by their id; None takes a context away.

    ``documents`` are texts of the user's, shown or not, that may be sent to nobody who does not see the context.
    """

    contexts: Mapping[str, str | None]
    documents: tuple[str, ...] = ()

    def examples(self, split: str) -> Sequence[Example]:
        return tuple(
            e.model_copy(update={"context": self.contexts[e.id]}) if e.id in self.contexts else e
            for e in self.inner.examples(split)
        )


@dataclass(frozen=True)
class OtherTurns(WrappedTask):
    """A task whose conversations have other turns before the question, by its id, in training and validation."""

    turns: Mapping[str, tuple[Message, ...]]

    @property
    def documents(self) -> tuple[str, ...]:
        return getattr(self.inner, "documents", ())

    def examples(self, split: str) -> Sequence[Example]:
        found = self.inner.examples(split)
        if split == "test":
            return found
        return tuple(e.model_copy(update={"turns": self.turns[e.id]}) if e.id in self.turns else e for e in found)


class Measured:
    """A task by another main metric beside its own."""

    def __init__(self, inner: Task, metric: str) -> None:
        self.name, self.labels, self.instruction = inner.name, inner.labels, inner.instruction
        self.metrics = (metric, *(own for own in inner.metrics if own != metric))
        self.examples, self.target, self.extract = inner.examples, inner.target, inner.extract
        self.documents: tuple[str, ...] = getattr(inner, "documents", ())


def notes_of(task: Task) -> tuple[str, ...]:
    """What a user must know of a task's data, each with its count; a plug-in's own kind of task has none."""
    return task.notes if isinstance(task, SimpleTask | WrappedTask) else ()
