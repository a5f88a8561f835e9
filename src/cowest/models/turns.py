"""Conversations for models that know no system role, or that insist on user and assistant by turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cowest.types import Message


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
