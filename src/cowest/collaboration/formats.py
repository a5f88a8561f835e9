"""Draft formats: what the weak model writes. The paper compares three; packages add others (entry points ``cowest.formats``)."""

from __future__ import annotations

from dataclasses import dataclass

from cowest.protocols import DraftFormat
from cowest.recipe.registry import Registry
from cowest.types import Example


@dataclass(frozen=True, slots=True)
class Direct:
    """The answer alone."""

    name: str = "direct"
    instruction: str = "Give the answer only, as 'Answer: ...'."

    def completion(self, target: str, example: Example) -> str | None:
        """The marked reference answer; None where there is none."""
        return f"Answer: {example.references[0]}" if example.references else None


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What one needs to know, and no answer; it is learned from rationales."""

    name: str = "knowledge"
    instruction: str = "Write down the domain knowledge that is needed to answer. Do not answer."

    def completion(self, target: str, example: Example) -> str | None:
        """The rationale."""
        return example.rationale


@dataclass(frozen=True, slots=True)
class ChainOfThought:
    """An explanation, then the answer."""

    name: str = "chain_of_thought"
    instruction: str = "Explain briefly what you know that matters here, then end with 'Answer: ...'."

    def completion(self, target: str, example: Example) -> str | None:
        """The whole target; None for a question without rationale and answer."""
        return target or None


FORMATS: Registry[DraftFormat] = Registry(
    "draft format",
    "cowest.formats",
    {f.name: f for f in (Direct(), Knowledge(), ChainOfThought())},
    ("name", "instruction", "completion"),
)
