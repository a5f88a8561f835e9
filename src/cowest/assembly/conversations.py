"""Conversations that do not fit the models' windows: their earliest turns go, in training and validation, and it is counted.

Drafts, refinements, SFT rows and preference pairs of a question are made from one example, so that it is shortened once for all of
them. Test questions are not: each system fits them to the window of the model that it asks, and its predictions say so
(``truncated_context``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from cowest.assembly.context import Context
from cowest.errors import ConfigError
from cowest.models.window import Window, without_earliest
from cowest.tasks.base import OtherTurns, notes_of
from cowest.types import Example, Message

_FITTED = ("train", "validation")


def with_fitting_turns(context: Context) -> Context:
    """The context with a task whose conversations fit, and a note of how many lost turns; the same where none does.

    Raises ConfigError for frames of a script that leave the turns out.
    """
    task = context.task
    every = [e for split in (*_FITTED, "test") for e in task.examples(split) if e.turns]
    if not every:
        return context
    _check_shown(context, every[0])
    rooms = _rooms(context)
    some = [e for split in _FITTED for e in task.examples(split) if e.turns]
    shorter = {e.id: fitting.turns for e in some if len((fitting := fitted(e, rooms)).turns) < len(e.turns)}
    if not shorter:
        return context
    note = (
        f"{len(shorter):,} of {len(some):,} conversations of training and validation are without their earliest turns, which do "
        "not fit a model's window"
    )
    context.reporter.info(f"{context.name or task.name}: {note}")
    return replace(context, task=OtherTurns(task, (*notes_of(task), note), shorter))


Room = tuple[Window, Callable[[Example], Sequence[Message]]]
"""A model's window, and how it is asked."""


def fitted(example: Example, rooms: Sequence[Room]) -> Example:
    """The example without its earliest turns, until each model's prompt fits or no answered turn is left before the question."""
    while not all(window.fits(ask(example)) for window, ask in rooms):
        # What the window would drop of the prompt is dropped of the turns: a question stands in for the one that is framed.
        fewer = without_earliest((*example.turns, Message(role="user", content=example.input)))
        if fewer is None:
            return example
        example = example.model_copy(update={"turns": fewer[:-1]})
    return example


def _rooms(context: Context) -> list[Room]:
    c, draft, answer = context.config, context.config.draft.sampling, context.config.feedback.sampling
    weak, strong = context.weak.window(draft.max_tokens), context.strong.window(answer.max_tokens)
    rooms: list[Room] = [(weak, frames.draft) for _, frames in context.ways] if weak is not None else []
    if strong is not None:
        # A draft has at most draft.sampling.max_tokens tokens of the weak model, and about as many of the strong one's.
        most = Window(strong.count, max(1, strong.tokens - c.draft.sampling.max_tokens))
        rooms.append((most, lambda example: context.frames.refine(example, "")))
    return rooms


def _check_shown(context: Context, example: Example) -> None:
    for name, asked in (("draft", context.frames.draft(example)), ("solo", context.frames.solo(example))):
        text = "\n".join(message.content for message in asked)
        if any(turn.content not in text for turn in example.turns):
            raise ConfigError(
                f"frames.{name} leaves out the turns before question {example.id}; put them before what it asks: "
                "cowest.models.turns.in_conversation(example.turns, messages)"
            )
