"""Conversations: what came before a query, and models that know no system role or insist on user and assistant by turns.

A run's frames and the server put earlier turns before a query by one function, :func:`in_conversation`, so that a model that was
trained on conversations is served as it was trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from cowest.types import Message, Role

_ROLES: Final[dict[str, Role]] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""OpenAI's newer models call the system role ``developer``."""


def role_of(name: str) -> Role | None:
    """A role by the name that a client or a file gives it; None for those of tools, and for unknown ones."""
    return _ROLES.get(name)


def spoken(turns: Iterable[tuple[str, str]]) -> tuple[Message, ...]:
    """Turns from (role, text): those of tools and blank ones are left out, neighbours of one role become one."""
    found = ((role_of(role), text) for role, text in turns)
    return tuple(
        _joined([Message(role=role, content=text) for role, text in found if role is not None and text.strip()])
    )


def in_conversation(before: Sequence[Message], framed: Sequence[Message]) -> tuple[Message, ...]:
    """A framed query after the turns ``before`` it, which stay turns of their own.

    The system turns at the beginning of both become one, the conversation's text first. A user turn right before a framed one
    becomes its beginning, as two of one role in a row are refused by many models.
    """
    if not before:
        return tuple(framed)
    own, turns = split_system(before)
    added, query = split_system(framed)
    head = _joined([*own, *added])
    return (*head, *_joined([*turns, *query]))


def split_system(messages: Sequence[Message]) -> tuple[Sequence[Message], Sequence[Message]]:
    """The system turns at the beginning, and the rest."""
    start = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    return messages[:start], messages[start:]


def told(turns: Sequence[Message]) -> str:
    """Turns as one text, for who judges or reads a conversation and takes no part in it."""
    return "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in turns)


def merged(messages: Sequence[Message]) -> Sequence[Message]:
    """The system turns' text before the first user turn's, and neighbours of one role as one turn."""
    system = "\n\n".join(m.content for m in messages if m.role == "system")
    turns = _joined([m for m in messages if m.role != "system"])
    if not system:
        return turns
    for i, message in enumerate(turns):
        if message.role == "user":
            turns[i] = _with_text(message, f"{system}\n\n{message.content}")
            return turns
    return [Message(role="user", content=system), *turns]


def _joined(messages: Sequence[Message]) -> list[Message]:
    turns: list[Message] = []
    for message in messages:
        if turns and turns[-1].role == message.role:
            turns[-1] = _with_text(message, f"{turns[-1].content}\n\n{message.content}")
        else:
            turns.append(message)
    return turns


def _with_text(message: Message, text: str) -> Message:
    return message.model_copy(update={"content": text})


TURN_TOKEN: Final = (
    r"<\|[a-zA-Z0-9_]{2,30}\|>|<\uff5c[^<>\uff5c]{2,40}\uff5c>|</?s>|<(?:start|end)_of_[a-z]{2,12}>|<turn\||<\|turn>"
    r"|<(?:bos|eos|pad|end|[Ee][Oo][TDMA]|endoftext)>|\[/?INST\]|\[(?:EOS|DONE|end_of_text)\]|\[\|[a-z_]{2,30}\|\]"
    r"|<\|[a-z_]{2,30}\|?\s*\Z"
)
"""The tokens with which chat templates begin and end a turn, where a server leaves them in a text; a regular expression."""
