"""The field ``messages`` of a row: a conversation as chat models take it, whose last user turn is the question.

``[{"role": "system" | "user" | "assistant", "content": TEXT}, ...]``. It ends with the question, or with the assistant's answer to
it. Nothing is mended in silence: a conversation that chat templates would refuse, or of which a part would be lost, is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from cowest.models.turns import role_of
from cowest.tasks.row_errors import RowError, kind_of, suggestion
from cowest.types import Message

_ROLES: Final = ("system", "user", "assistant")
_TOOLS: Final = ("tool", "function")


@dataclass(frozen=True, slots=True)
class Conversed:
    """``turns`` came before ``question``; ``reply`` is the assistant's text at the end, where there is one."""

    turns: tuple[Message, ...]
    question: str
    reply: str | None


def conversed(value: object) -> Conversed:
    """What a row's ``messages`` hold. Raises RowError, which names the turn by its index from 0."""
    if not isinstance(value, list) or not value:
        raise RowError(
            f'"messages" is {kind_of(value)}; give a list of turns, such as {{"role": "user", "content": "..."}}'
        )
    turns = [_turn(turn, f'"messages"[{i}]') for i, turn in enumerate(value)]
    for i, (one, other) in enumerate(pairwise(turns), start=1):
        if one.role == other.role:
            raise RowError(f'"messages"[{i}] is a second {other.role} turn in a row; join both into one')
    replied = turns[-1].role == "assistant"
    asked = turns[:-1] if replied else turns
    if not asked or asked[-1].role != "user":
        last = f'"messages" ends with a turn of {turns[-1].role}' + (" that follows no question" if replied else "")
        raise RowError(f"{last}; end with the user's question, or with the assistant's answer to it")
    return Conversed(tuple(asked[:-1]), asked[-1].content, turns[-1].content if replied else None)


def _turn(value: object, where: str) -> Message:
    if not isinstance(value, dict):
        raise RowError(f'{where} is {kind_of(value)}; give an object with "role" and "content"')
    for key, item in value.items():
        if key not in ("role", "content") and item not in (None, [], {}):
            raise RowError(
                f'{where} has "{str(key)[:60]}", which would be lost; leave it out (turns have "role" and "content")'
            )
    name = value.get("role")
    if not isinstance(name, str):
        raise RowError(f'{where}."role" is {kind_of(name)}; give one of {", ".join(_ROLES)}')
    role = role_of(name)
    if role is None:
        fix = "leave out turns of tools" if name in _TOOLS else f"give one of {', '.join(_ROLES)}"
        raise RowError(f'{where}."role" is {name[:60]!r}; {fix}{suggestion(name, _ROLES)}')
    text = _text(value.get("content"), f'{where}."content"')
    if not text.strip():
        raise RowError(f'{where}."content" is empty; write what was said, or leave the turn out')
    return Message(role=role, content=text)


def _text(content: object, where: str) -> str:
    """A text, or a list of text parts, one a line."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RowError(f"{where} is {kind_of(content)}; give a string")
    texts = []
    for i, part in enumerate(content):
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else None
            what = f"of type {str(kind)[:60]!r}" if kind is not None else kind_of(part)
            raise RowError(
                f'{where}[{i}] is {what}; only text can be kept: give {{"type": "text", "text": "..."}} or a string'
            )
        texts.append(text)
    return "\n".join(texts)
