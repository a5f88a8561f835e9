"""Making a prompt fit a model's window by a stated rule, and saying whether anything was left out.

The rule: the query, its instruction and a system message always stay. Of the turns before the query (in-context examples, then
those of its conversation) the earliest go first, a question and its answer together. Of retrieved passages the lowest-ranked go
first; when not even the best one fits whole, it ends at the last sentence that fits, or else at the last word. What still does not
fit is left as it is: the model's own error (``too_long``) says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cowest.models.tokens import prompt_tokens
from cowest.types import Message

SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
"""What separates sentences, or lines."""
_WORD_END = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Fitted:
    """Messages that fit, if anything could make them; ``cut`` tells whether something was left out."""

    messages: tuple[Message, ...]
    cut: bool


@dataclass(frozen=True, slots=True)
class Window:
    """What a prompt may take: ``tokens`` is the model's window less the room for the answer (max_tokens).

    ``count`` counts a text's tokens (:func:`cowest.models.tokens.token_counter`); what the chat format adds is reckoned in.
    """

    count: Callable[[str], int]
    tokens: int

    def fits(self, messages: Sequence[Message]) -> bool:
        """Whether the messages fit."""
        return prompt_tokens(self.count, messages) <= self.tokens

    def fit_turns(self, messages: Sequence[Message]) -> Fitted:
        """Without the earliest turns before the query, until the rest fits."""
        found = tuple(messages)
        while not self.fits(found) and (fewer := without_earliest(found)) is not None:
            found = fewer
        return Fitted(found, len(found) < len(messages))

    def fit_passages(
        self, passages: Sequence[str], ask: Callable[[Sequence[str]], Sequence[Message]]
    ) -> tuple[tuple[str, ...], bool]:
        """The passages (best first) with which ``ask`` fits, and whether something was left out.

        In-context examples are the first to go, since the passages were looked up for this very query.
        """

        def fits(kept: Sequence[str]) -> bool:
            return self.fits(self.fit_turns(ask(kept)).messages)

        kept = tuple(passages)
        while len(kept) > 1 and not fits(kept):
            kept = kept[:-1]
        if not kept or fits(kept):
            return kept, len(kept) < len(passages)
        for end in (SENTENCE_END, _WORD_END):
            if (shorter := _longest(kept[0], end, lambda text: fits((text,)))) is not None:
                return (shorter,), True
        return (), True


def without_earliest(messages: Sequence[Message]) -> tuple[Message, ...] | None:
    """Without the first turns up to an answer, system turns kept; None where only the query is left."""
    after = next((i + 1 for i, turn in enumerate(messages) if turn.role == "assistant"), None)
    if after is None or after == len(messages):
        return None
    return (*(turn for turn in messages[:after] if turn.role == "system"), *messages[after:])


def _longest(text: str, end: re.Pattern[str], fits: Callable[[str], bool]) -> str | None:
    """The longest beginning of ``text`` up to an ``end`` that fits, found by bisection; None where none does."""
    ends = [match.start() for match in end.finditer(text) if text[: match.start()].strip()]
    low, high = 0, len(ends)  # the first `low` beginnings fit
    while low < high:
        middle = (low + high + 1) // 2
        if fits(text[: ends[middle - 1]]):
            low = middle
        else:
            high = middle - 1
    return text[: ends[low - 1]] if low else None
