"""How a query is put to the lab's tiny models: as short as it gets, since they know no English beyond the lab's."""

from __future__ import annotations

from dataclasses import dataclass

from cowest.types import Example, Message


@dataclass(frozen=True, slots=True)
class LabFrames:
    """Implements :class:`cowest.protocols.Frames`. The strong model was pretrained on exactly these messages."""

    def draft(self, example: Example) -> tuple[Message, ...]:
        return (Message(role="user", content=_query(example)),)

    def solo(self, example: Example) -> tuple[Message, ...]:
        return (Message(role="user", content=_query(example)),)

    def refine(self, example: Example, draft: str) -> tuple[Message, ...]:
        return (Message(role="user", content=f"{_query(example)}\nDraft: {draft}"),)


def _query(example: Example) -> str:
    return f"{example.context}\n{example.input}" if example.context else example.input
