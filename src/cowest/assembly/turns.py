"""The weak model's turn that a recipe trains (``draft.turn``), and whether it can."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cowest.assembly.build import build_interaction_frames
from cowest.assembly.context import Context
from cowest.errors import ConfigError
from cowest.systems.calls import Tally
from cowest.systems.interactions.turn import AdviseTurn, ReplyTurn, ReviseTurn, Turn
from cowest.systems.registry import TURN_ROWS
from cowest.types import Message


def turn_of(context: Context, fitting: bool = True) -> Turn | None:
    """The turn, ``fitting`` the windows of training; None for a draft. Raises ConfigError as build_interaction_frames."""
    c, kind = context.config, context.config.draft.turn
    if kind == "draft":
        return None
    turns = build_interaction_frames(c, context.task, context.objects.format)
    weak = context.weak.window(c.draft.sampling.max_tokens) if fitting else None
    strong = context.strong.window(c.feedback.sampling.max_tokens) if fitting else None
    if kind == "advise":
        return AdviseTurn(turns, weak, strong)
    if kind == "revise":
        return ReviseTurn(context.frames, turns, weak, strong)
    return ReplyTurn(turns, c.comparison.questions, weak, strong)


_STAND_INS: Final[Mapping[str, tuple[str, ...]]] = {
    "advise": ("ATTEMPT",),
    "revise": ("DRAFT", "CRITIQUE"),
    "reply": ("QUESTION",),
}


def turn_prompts(context: Context) -> tuple[tuple[Message, ...], ...]:
    """What the models are asked in the turn and before it, with names for the texts in it; none for a draft."""
    turn, kind = turn_of(context, fitting=False), context.config.draft.turn
    if turn is None:
        return ()
    turns = build_interaction_frames(context.config, context.task, context.objects.format)
    first = context.task.examples("train")[0]
    begin = {
        "advise": context.frames.solo(first),
        "revise": (*context.frames.draft(first), *turns.critique(first, "DRAFT")),
        "reply": turns.consult(first, context.config.comparison.questions),
    }[kind]
    before = _STAND_INS[kind]
    return begin, tuple(turn.asked(first, before, Tally())), tuple(turn.after(first, before, "SAID", Tally()))


def check_turn(context: Context) -> None:
    """Raise ConfigError, before anything is paid, where a recipe cannot train its weak model for the turn that it names."""
    c, name = context.config, f"draft.turn: {context.config.draft.turn}"
    if c.draft.turn == "draft":
        return
    if c.draft.formats:
        raise ConfigError(f"{name}: draft.formats mixes formats of drafts, and this is no draft; leave formats unset")
    if context.signal.alone:
        raise ConfigError(
            f"{name}: pairs.signal: {context.signal.name} takes the score of what the weak model wrote by itself, and that is "
            f"no answer here; take collaboration, or outcome"
        )
    try:
        turn_of(context, fitting=False)
    except ConfigError as error:
        raise ConfigError(f"{name} ({TURN_ROWS[c.draft.turn]}): {error}") from None
