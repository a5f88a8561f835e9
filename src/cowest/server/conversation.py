"""How a conversation is put to each model: the last user turn goes into the recipe's frames, everything else stays.

What is text in the turns before it are the example's ``turns``, which the frames put before the question as in a run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from cowest.models.turns import in_conversation, role_of, split_system, spoken
from cowest.protocols import Frames
from cowest.server.request import Body, ChatRequest, parts_of, text_of
from cowest.types import Example, Message

_CONTROL: Final = re.compile(  # invisible: C0 and C1 but tab and newline, zero width, bidi controls, Unicode's "tag" letters
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]"
)
_JOINERS: Final = re.compile("[\u200c\u200d](?=[\x00-\x7f])|(?<=[\x00-\x7f])[\u200c\u200d]")
_TURN_MARKS: Final = re.compile(
    r"<(?=\||\uff5c|/?s>|/?(start|end)_of_turn|/?bos>|/?eos>|<SYS|</SYS|/?(system|user|assistant|tool|im_start|im_end)\b)|"
    r"\[(?=/?INST\]|/?SYSTEM_PROMPT\]|/?TOOL_)",
    re.IGNORECASE,
)

_SUSPECT: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f<\\[]")  # of ASCII, the only characters that the others could find


def tamed(draft: str) -> str:
    """A draft without what could make it more than text: chat templates' own marks are broken up, invisible characters go.

    The strong model's server may render the conversation as one string and read ``<|im_end|>`` in it as the end of a turn.
    """
    if draft.isascii() and not _SUSPECT.search(draft):
        return draft
    text = _JOINERS.sub("", _CONTROL.sub("", draft.replace("\r\n", "\n")))
    return _TURN_MARKS.sub("(", text)


@dataclass(frozen=True, slots=True)
class Conversation:
    """The turns of a request. ``turn`` is the index of the last user turn; -1 where there is none with text."""

    messages: list[Body]
    turn: int
    example: Example

    @property
    def has_question(self) -> bool:
        """Whether there is anything to draft for."""
        return self.turn >= 0

    @property
    def in_tool_loop(self) -> bool:
        """Whether the question was answered with calls of tools already: its draft was put in before the first of them."""
        return any(
            message["role"] in ("tool", "function") or message.get("tool_calls") or message.get("function_call")
            for message in self.messages[self.turn + 1 :]
        )

    def for_weak(self, frames: Frames) -> tuple[Message, ...]:
        """The draft frame after the earlier turns. Those of tools are left out; neighbours of one role are one.

        The weak model reads text alone: of images and the like it is told that they are there.
        """
        if not any(parts_of(message) for message in self.messages):
            return frames.draft(self.example)
        earlier = spoken((str(m["role"]), _noted(m)) for m in self.messages[: max(self.turn, 0)])
        text = _noted(self.messages[self.turn]) if self.has_question else self.example.input
        return frames.draft(self.example.model_copy(update={"input": text, "turns": earlier}))

    def as_draft(self, frames: Frames) -> list[Body]:
        """The same as JSON, where the weak model alone is asked."""
        return _bodies(self.for_weak(frames))

    def with_draft(self, frames: Frames, draft: str) -> list[Body]:
        """The strong model's messages where there is a draft."""
        return self._framed(lambda example: frames.refine(example, tamed(draft)))

    def alone(self, frames: Frames) -> list[Body]:
        """The strong model's messages where there is none."""
        return self._framed(frames.solo) if self.has_question else self.messages

    def _framed(self, frame: Callable[[Example], Sequence[Message]]) -> list[Body]:
        earlier, turn = self.messages[: self.turn], self.messages[self.turn]
        if earlier == _bodies(self.example.turns):
            *before, last = frame(self.example)
            head = _bodies(before)
        else:  # images, calls of tools, names: what the example cannot hold stays as it came
            *before, last = frame(self.example.model_copy(update={"turns": ()}))
            head = _after(earlier, before)
        return [
            *head,
            {**turn, "content": _with_text(turn.get("content"), last.content)},
            *self.messages[self.turn + 1 :],
        ]


def conversation(request: ChatRequest, id_: str) -> Conversation:
    """The conversation of a request; ``id_`` becomes its example's."""
    users = [i for i, message in enumerate(request.messages) if message["role"] == "user"]
    turn = users[-1] if users else -1
    text = text_of(request.messages[turn]) if users else ""
    asked = Example(
        id=id_,
        input=text,
        turns=spoken((str(message["role"]), text_of(message)) for message in request.messages[: max(turn, 0)]),
        context=request.extension.context,
        references=("",),  # unknown here; frames never read it
        choices=tuple(request.extension.choices),
    )
    return Conversation(request.messages, turn if text.strip() else -1, asked)


def _noted(message: Body) -> str:
    """A message's text with a note of what else is in it."""
    parts = parts_of(message)
    if not parts:
        return text_of(message)
    told = " and ".join(f"{n} {name}{'s' if n > 1 else ''}" for name, n in parts.items())
    return f"{text_of(message)}\n\n[{told} attached here, which you cannot see; the model after you can]".lstrip()


def _bodies(messages: Sequence[Message]) -> list[Body]:
    return [{"role": m.role, "content": m.content} for m in messages]


def _after(earlier: Sequence[Body], framed: Sequence[Message]) -> list[Body]:
    """A frame's messages after turns that are more than text; their system turns become one, as in ``in_conversation``."""
    added, rest = split_system(framed)
    if added and earlier and role_of(str(earlier[0]["role"])) == "system" and text_of(earlier[0]).strip():
        first = Message(role="system", content=text_of(earlier[0]))
        (system,) = in_conversation((first,), added)
        earlier = [{**earlier[0], "content": _with_text(earlier[0].get("content"), system.content)}, *earlier[1:]]
        added = ()
    return [*_bodies(added), *earlier, *_bodies(rest)]


def _with_text(content: JsonValue, text: str) -> JsonValue:
    """``text`` in place of the content's text parts, at the first one's place; images and other parts stay."""
    if not isinstance(content, list):
        return text
    parts: list[JsonValue] = []
    placed = False
    for part in content:
        if not (isinstance(part, dict) and part.get("type") == "text"):
            parts.append(part)
        elif not placed:
            parts.append({**part, "text": text})
            placed = True
    return parts
