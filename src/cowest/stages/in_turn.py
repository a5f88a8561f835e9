"""The weak model's turn (``draft.turn``) for the stages: what came before it, and the frames that ask for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cowest.assembly.context import Context
from cowest.assembly.turns import turn_of, turn_prompts
from cowest.run.freshness import Depends
from cowest.stages import depends
from cowest.stages.rounds import OPENINGS, Round
from cowest.systems.interactions.turn import TurnFrames
from cowest.types import Record, Usage


class Opening(Record):
    """The ``texts`` before a query's turn, in the order in which they came.

    None of them: the strong model asked nothing (or was cut off, or ``error`` says why it failed), and there is no such turn.
    """

    example_id: str
    texts: tuple[str, ...]
    truncated: bool = False
    truncated_context: bool = False
    error: str | None = None
    usage: Usage = Usage()
    latency_s: float = 0.0


def in_turn(context: Context, round_: Round, guessed: Mapping[str, Sequence[str]] | None = None) -> Context:
    """The context in which a round's stages ask for the turn that the recipe trains, of the queries that come to it.

    ``guessed``: what stands before it in place of the round's file, for an estimate.
    """
    turn = turn_of(context)
    if turn is None:
        return context
    before = guessed
    if before is None:
        rows = context.run.file(round_.file(OPENINGS), Opening).load()
        before = {row.example_id: row.texts for row in rows if row.texts}
    return replace(context, frames=TurnFrames(context.frames, turn, before), has_turn=before.keys())


def turn_depends(context: Context) -> Depends:
    """What the turn follows from, beside the texts before it; nothing for a draft."""
    kind = context.config.draft.turn
    if kind == "draft":
        return Depends({"draft.turn": kind}, {"draft.turn": "draft"})
    found = depends.value("draft.turn", kind) | depends.prompt("the turn", *turn_prompts(context))
    questions = depends.value("table.questions", context.config.comparison.questions)
    return found | questions if kind == "reply" else found
