r"""The answer in a model's text: what follows the last ``Answer:``, mapped to a class where there are classes.

One row: ``"K lowers D's limit to 30.\n**Answer:** No."`` with labels yes / no / maybe -> ``"no"``.

Model text is untrusted: nothing is guessed. A marked answer that names no class, or several at once, is no answer
(None), and so is an unmarked text with two different classes in it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

MARKER = "Answer:"
"""How models are asked to mark their answer, and how targets mark it."""

SHORT_LINE_WORDS = 12
"""An unmarked open answer is taken only from a single line of at most this many words."""

# Not inside a word ("nonanswer:"), but inside markdown: "**Answer:**", "__Answer__:", and with a full-width colon.
_MARKER = re.compile(r"(?<![^\W_])answer[ \t*_`]{0,8}[:\uff1a]", re.IGNORECASE)
# "So the answer is 4 hours." holds the answer "4 hours"; only for open answers, where no marker is.
_LEAD_IN = re.compile(
    r"(?:so|thus|hence|therefore)?,?\s*(?:the|my)\s+(?:final\s+)?answer\s+(?:is|would be)[\s:]+", re.IGNORECASE
)
_QUOTES = "\"'`*_\u201c\u201d\u2018\u2019\u00ab\u00bb\u201e"
_WRAPPING = _QUOTES + "()[]{}<>.,;:!?"
# Between two classes these make a choice of neither: "yes or no", "yes/no".
_JOINED = re.compile(r"[\s,/|&]*(?:\b(?:or|and)\b)?[\s,/|&]*", re.IGNORECASE)


def extract_answer(text: str, labels: Sequence[str] = ()) -> str | None:
    """The answer in ``text``: one of ``labels`` where there are any, else a short text; None where there is none."""
    marked = marked_answer(text)
    if labels:
        table = _label_table(tuple(labels))
        return table.match(marked) if marked is not None else table.only(text)
    answer = _clean(_short_line(text) if marked is None else marked)
    return answer or None


def marked_answer(text: str) -> str | None:
    """The first non-blank line after the last marker ("" if nothing follows it); None without a marker."""
    end = -1
    for match in _MARKER.finditer(text):
        end = match.end()
    if end < 0:
        return None
    # "**Answer:** 42" leaves "** 42": markdown that closes around the marker is not a line of its own
    lines = (line.strip() for line in text[end:].splitlines())
    return next((line for line in lines if line.strip("*_`")), "")


def label_key(label: str) -> str:
    """What labels are compared by: case, width, spacing (an underscore is one) and wrapping punctuation folded away."""
    folded = " ".join(unicodedata.normalize("NFKC", label).casefold().replace("_", " ").split())
    return folded.strip(_WRAPPING + " ") or folded


def _short_line(text: str) -> str:
    lines = text.strip().splitlines()
    if len(lines) != 1 or len(lines[0].split()) > SHORT_LINE_WORDS:
        return ""
    lead = _LEAD_IN.match(lines[0])
    return lines[0][lead.end() :] if lead else lines[0]


def _clean(answer: str) -> str:
    """Without surrounding space, quotes and markdown, and without a final period."""
    before = None
    while before != answer:
        before, answer = answer, answer.strip().strip(_QUOTES).rstrip(".")
    return answer


class _LabelTable:
    """The labels of a task, prepared for matching."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self._by_key = {label_key(label): label for label in labels}
        # longest first, so that "very bad" is not read as "very"
        keys = sorted(self._by_key, key=len, reverse=True)
        alternatives = "|".join(re.escape(key).replace(r"\ ", r"\s+") for key in keys)
        self._word = re.compile(rf"(?<![\w'\u2019-])(?:{alternatives})(?![\w'\u2019]|-\w)")
        # "a" or "2" in running text is an article or a number, not a choice
        self._findable = all(len(key) > 1 and not key.isdigit() for key in keys)

    def match(self, answer: str) -> str | None:
        """The label that a marked answer is or begins with; None when it names none, or two side by side."""
        key = label_key(answer)
        if key in self._by_key:
            return self._by_key[key]
        first = self._word.match(key)
        if first is None:
            return None
        label = self._label(first.group())
        rest = key[first.end() :]
        if label.casefold() in {"a", "i"} and re.match(r"\s+\w", rest):
            return None  # "A patient may ..." is a sentence, not the choice A
        joined = _JOINED.match(rest)
        other = self._word.match(rest, joined.end()) if joined and joined.group().strip() else None
        return None if other and self._label(other.group()) != label else label

    def only(self, text: str) -> str | None:
        """The one label that occurs in an unmarked text as a whole word; None when none or several do."""
        key = label_key(text)
        if key in self._by_key:
            return self._by_key[key]
        if not self._findable:
            return None
        found = {self._label(match.group()) for match in self._word.finditer(key)}
        return found.pop() if len(found) == 1 else None

    def _label(self, matched: str) -> str:
        return self._by_key[" ".join(matched.split())]


@lru_cache(maxsize=256)
def _label_table(labels: tuple[str, ...]) -> _LabelTable:
    return _LabelTable(labels)
