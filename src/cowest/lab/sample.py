"""One training conversation of the lab's models."""

from __future__ import annotations

from dataclasses import dataclass

from cowest.types import Message


@dataclass(frozen=True, slots=True)
class Sample:
    """One training conversation; ``kind`` names what it exercises, for the accuracy log."""

    kind: str
    messages: tuple[Message, ...]
    reply: str
    answer: str
