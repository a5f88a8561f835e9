"""What is read from a source: rows with their place, one after another, so that any number of them needs the same memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

SPLIT_NAMES: Final[Mapping[str, str]] = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation", "development": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""What sources call their splits."""


@dataclass(frozen=True, slots=True)
class Raw:
    """A row as it stands in the source; ``number`` is its line, or its row where the source has no lines."""

    where: str
    number: int
    values: Mapping[str, object]

    @property
    def place(self) -> str:
        """``FILE:LINE``."""
        return f"{self.where}:{self.number}"


@dataclass(frozen=True)
class Part:
    """A file, or a split of a dataset. ``open`` begins at its first row each time; it raises DataError.

    ``split`` is what the source says these rows are for; ``names`` are the class names behind the numbers of a column.
    """

    where: str
    split: str | None
    open: Callable[[], Iterator[Raw]]
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def split_of(name: str) -> str | None:
    """The split that a file or a dataset's split is named after: ``dev-00000-of-00002`` is validation; None for none."""
    word = name.casefold()
    for mark in ".-_ ":
        word = word.split(mark)[0]
    return SPLIT_NAMES.get(word)
