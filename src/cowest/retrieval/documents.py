"""The documents of a task: the texts of its training examples, cut into passages. Test texts are never among them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from cowest.errors import DataError
from cowest.models.window import SENTENCE_END
from cowest.protocols import Task
from cowest.types import Example

MAX_CHARS = 1200
"""About 300 tokens of English: five passages fit any chat model's window beside the query."""


@dataclass(frozen=True, slots=True)
class Document:
    """One passage; ``id`` is the example's, with ``/2``, ``/3`` and so on for its further passages."""

    id: str
    text: str


def documents_of(task: Task, max_chars: int = MAX_CHARS) -> tuple[Document, ...]:
    """The passages of a task's training examples, in their order; equal texts (letter case and spacing aside) once.

    An example's text is its context and its rationale; where it has neither, question and target. A text of more than ``max_chars``
    characters is split at ends of sentences (or lines), so that each passage is as long as it may be; a longer sentence is
    split between words, a longer word within.

    Raises DataError where nothing is left to search.
    """
    found: dict[str, Document] = {}
    for example in task.examples("train"):
        for number, text in enumerate(split_text(_text(task, example), max_chars), 1):
            key = " ".join(text.casefold().split())
            found.setdefault(key, Document(example.id if number == 1 else f"{example.id}/{number}", text))
    check_documents(tuple(found.values()), f"task {task.name!r}: its training examples hold no text")
    return tuple(found.values())


def check_documents(documents: tuple[Document, ...], why: str = "none was given") -> None:
    """Raise DataError for an index over nothing, before anything is paid for."""
    if not documents:
        raise DataError(
            f"there are no documents to search ({why}); leave the retrieval rows out, or give training texts"
        )


def _text(task: Task, example: Example) -> str:
    known = [part.strip() for part in (example.context, example.rationale) if part and part.strip()]
    return "\n".join(known) or f"{example.input.strip()}\n{task.target(example).strip()}"


def split_text(text: str, max_chars: int) -> Iterator[str]:
    """Passages of at most ``max_chars`` characters (at least 1); none for a blank text. Raises ValueError."""
    if max_chars < 1:
        raise ValueError(f"max_chars is {max_chars}; at least 1 is needed")
    passage = ""
    for piece in _pieces(text.strip(), max_chars):
        if len(passage) + len(piece) > max_chars:
            if passage.strip():
                yield passage.strip()
            passage = ""
        passage += piece
    if passage.strip():
        yield passage.strip()


def _pieces(text: str, max_chars: int) -> Iterator[str]:
    """Sentences with what separates them; longer ones word by word, longer words in parts."""
    for sentence in _parts(text, SENTENCE_END):
        if len(sentence) <= max_chars:
            yield sentence
            continue
        for word in _parts(sentence, re.compile(r"\s+")):
            yield from (word[i : i + max_chars] for i in range(0, len(word), max_chars))


def _parts(text: str, end: re.Pattern[str]) -> Iterator[str]:
    start = 0
    for match in end.finditer(text):
        yield text[start : match.end()]
        start = match.end()
    if start < len(text):
        yield text[start:]
