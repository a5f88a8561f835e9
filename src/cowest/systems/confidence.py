"""How sure a model was of what it wrote: the probabilities of its tokens, where it tells them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from cowest.models.window import SENTENCE_END
from cowest.types import Completion


@dataclass(frozen=True, slots=True)
class Span:
    """Characters ``start`` to ``end`` of a text, and the probability of the token that they are."""

    start: int
    end: int
    probability: float


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence and its tokens, of which those without a letter or digit are left out."""

    text: str
    tokens: tuple[Span, ...]

    def without(self, threshold: float) -> str:
        """The sentence less every word in which a token is less probable than ``threshold``."""
        unsure = [t for t in self.tokens if t.probability < threshold]
        words = re.finditer(r"\S+", self.text)
        return " ".join(w.group() for w in words if not any(t.start < w.end() and w.start() < t.end for t in unsure))

    def unsure(self, threshold: float) -> bool:
        """Whether one of the tokens is less probable than ``threshold``."""
        return any(t.probability < threshold for t in self.tokens)


def tokens_of(done: Completion) -> tuple[str, tuple[Span, ...]] | None:
    """The text as its tokens spell it, and the tokens; None where the model gave no log-probabilities."""
    if not done.logprobs:
        return None
    spans, at = [], 0
    for token in done.logprobs:
        spans.append(Span(at, at + len(token.token), math.exp(token.logprob)))
        at += len(token.token)
    return "".join(token.token for token in done.logprobs), tuple(spans)


def sentences_of(done: Completion) -> list[Sentence] | None:
    """The sentences (or lines) of a text with their tokens; None where the model gave no log-probabilities."""
    found = tokens_of(done)
    if found is None:
        return None
    text, tokens = found
    spelled = [t for t in tokens if re.search(r"\w", text[t.start : t.end])]
    return [
        Sentence(
            text[start:end],
            tuple(
                Span(max(t.start - start, 0), min(t.end, end) - start, t.probability)
                for t in spelled
                if t.start < end and start < t.end
            ),
        )
        for start, end in _sentences(text)
    ]


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for match in SENTENCE_END.finditer(text):
        if text[start : match.start()].strip():
            yield start, match.start()
        start = match.end()
    if text[start:].strip():
        yield start, len(text)


def confidence_of(done: Completion, answer: str) -> float | None:
    """The mean probability of the tokens that spell the answer where it occurs last in the text, in any letter case.

    None where the model gave no log-probabilities, or the answer's letters are not in the text.
    """
    found = tokens_of(done)
    if found is None:
        return None
    text, tokens = found
    places = [m.span() for m in re.finditer(re.escape(answer), text, re.IGNORECASE)]
    if not places:
        return None
    start, end = places[-1]
    sure = [t.probability for t in tokens if t.start < end and start < t.end]
    return sum(sure) / len(sure) if sure else None
