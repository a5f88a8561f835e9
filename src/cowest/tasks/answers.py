r"""The answer in a model's text: what follows the last ``Answer:``, mapped to a class where there are classes.

One row: ``"K lowers D's limit to 30.\n**Answer:** No."`` with labels yes / no / maybe -> ``"no"``.

Model text is untrusted: nothing is guessed. Hidden thinking is not read, nor what comes after the end of the model's turn. A
marked answer that names no class, or several at once, is no answer (None), and so is an unmarked text with two different
classes in it, a class that is denied, and a refusal.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from cowest.models.thinking import split_thinking
from cowest.scoring.scripts import is_spaceless, units
from cowest.tasks.labels import label_key, label_table, refuses
from cowest.tasks.markers import marked_answer, own_turn
from cowest.tasks.wrapping import CONFIDENCE_LINE, LEAD_IN, SENTENCE_ENDS, introduced, unwrapped, without_confidence

__all__ = ["MARKER", "SHORT_LINE_WORDS", "extract_answer", "label_key", "marked_answer"]

MARKER = "Answer:"
"""How models are asked to mark their answer, and how targets mark it."""

SHORT_LINE_WORDS = 12
"""An unmarked open answer is taken only from a single line of at most this many words (two characters of a script without
spaces count as one)."""


def extract_answer(text: str, labels: Sequence[str] = ()) -> str | None:
    """The answer in ``text``: one of ``labels`` where there are any, else a short text; None where there is none."""
    seen = split_thinking(text).visible
    if seen is None:
        return None
    read = partial(_read, labels=tuple(labels))
    return read(own_turn(seen, lambda before: read(before) is not None))


def _read(text: str, labels: tuple[str, ...]) -> str | None:
    marked = marked_answer(text)
    if labels:
        table = label_table(labels)
        return table.match(marked) if marked is not None else table.only(CONFIDENCE_LINE.sub("", text))
    if marked is None:
        line = _unmarked(text)
        return None if refuses(line) else _clean(line) or None
    answer = _clean(marked)
    return None if not answer or refuses(answer) else answer


def _unmarked(text: str) -> str:
    """The short line that a text is, or the one at its end that says "the answer is"."""
    lines = CONFIDENCE_LINE.sub("", text).strip().splitlines()
    last = lines[-1].strip() if lines else ""
    short = _length(last) <= SHORT_LINE_WORDS
    if len(lines) > 1:
        return last if short and any(LEAD_IN.match(rest) for rest in (last, *introduced(last))) else ""
    return last if short else ""


def _length(line: str) -> float:
    return sum(0.5 if is_spaceless(unit[0]) else 1 for unit in units(line))


def _clean(answer: str) -> str:
    """Without what is around it, what introduces it, a note of confidence and a final stop."""
    before = None
    while before != answer:
        before, answer = answer, unwrapped(without_confidence(answer)).rstrip(SENTENCE_ENDS).strip()
    said = [rest for rest in introduced(answer) if LEAD_IN.search(answer[: len(answer) - len(rest)])]
    return _clean(said[0]) if said else answer
