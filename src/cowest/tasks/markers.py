r"""Where a text says its answer, and where it stops being the answer to the question asked.

Read as markers: ``Answer:`` and its like in some sixty languages, headings, ``<answer>`` tags, a JSON field, ``\boxed{}``. Not
read: a marker within a sentence ("the reason for this answer: ..."), and all that comes once a model goes on with a turn of its own
making ("Question: ...", ``<|im_end|>``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from cowest.models.turns import TURN_TOKEN
from cowest.tasks.words import (
    MARKER_ADJECTIVES,
    MARKERS,
    NO_MARKERS,
    NO_MARKERS_SPACELESS,
    QUESTIONS,
    SPACELESS_MARKERS,
)
from cowest.tasks.wrapping import boxed

_WORD: Final = (
    rf"(?:(?<![^\W_])(?:{MARKERS})|(?:{SPACELESS_MARKERS}))(?:[ \t]+(?:{MARKER_ADJECTIVES}))?"
    r"(?:[ \t]*\([^()\n]{1,40}\)|[ \t]+#?\d{1,3})?"
)
_MARKUP: Final = r"[ \t*_`\"'\u201d\]]{0,8}"
_MARKER: Final = re.compile(rf"{_WORD}{_MARKUP}[:\uff1a\ufe55\ufe13]", re.IGNORECASE)
# A heading without a colon, and "Answer - B" or "Answer = B" where it begins a line.
_HEADING: Final = re.compile(
    rf"^[ \t]*(?:#{{1,6}}[ \t]*|\*\*|__)[ \t*_]*(?:(?:the|final|correct|my)[ \t]+){{0,3}}{_WORD}[ \t*_#]*$",
    re.IGNORECASE | re.MULTILINE,
)
_DASHED: Final = re.compile(
    rf"^[ \t*_#]*(?:(?:the|final|correct|my)[ \t]+){{0,3}}{_WORD}[*_]*[ \t]*(?:[-=]?>|\u2192|[=\u2013\u2014]|-(?=\s))",
    re.IGNORECASE | re.MULTILINE,
)
_TAG: Final = re.compile(r"<(?:final_?)?answer>|\[ANSWER\]", re.IGNORECASE)

_CLOSING_TAG: Final = re.compile(r"</(?:final_?)?answer>|\[/ANSWER\]", re.IGNORECASE)
_JSON_NAME: Final = re.compile(r'"\s*:$')
_JSON_VALUE: Final = re.compile(r'"((?:[^"\\]|\\.)*)"\s*[,}].*|(-?\d[\d.eE+-]*|true|false)\s*[,}].*')

_NO_MARKER_BEFORE: Final = re.compile(rf"(?:{NO_MARKERS_SPACELESS})[ \t]*$")
_SENTENCE_START: Final = re.compile(
    r"[.!?:;\u3002\uff01\uff1f\uff1a\uff1b\u0964\u2026\u2014]\s|[\u3002\uff01\uff1f]|\n"
)
_WORDS: Final = re.compile(r"[^\W\d_][\w'\u2019]*")

_LEADING_TURN: Final = re.compile(rf"\s*(?:{TURN_TOKEN})\s*(?:(?:assistant|model)\b)?\s*")
_TURN: Final = re.compile(TURN_TOKEN)
_NEXT: Final = re.compile(
    r"^[ \t]*(?:[-=]{3,}[ \t]*\n[ \t]*)?(?:[#*_>]{1,6}[ \t]*)?(?:(?:next|new|another|example)[ \t]+)?"
    rf"(?:{QUESTIONS})[ \t]*(?:(?:[#(]?\d{{1,4}}\)?)?[ \t*_]{{0,4}}[:\uff1a]|[#(]?\d{{1,4}}[).][ \t])",
    re.IGNORECASE | re.MULTILINE,
)
_NEXT_INLINE: Final = re.compile(r"(?<=\S)[ \t]+(?:Question|Q|Input|User|Human)[ \t]*\d{0,3}:(?=\s)")
_MOST_TURNS: Final = 20


def own_turn(text: str, answers: Callable[[str], bool]) -> str:
    """The text without what comes after the end of the model's turn.

    That is a token of a chat template after some text, or the header of a next question after a text that ``answers`` says
    holds an answer already: before that a model may say the question over.
    """
    begin = 0
    while (lead := _LEADING_TURN.match(text, begin)) is not None:
        begin = lead.end()
    end = _TURN.search(text, begin)
    text = text[begin : end.start() if end else len(text)]
    for header, _ in zip(_NEXT.finditer(text), range(_MOST_TURNS), strict=False):
        before = text[: header.start()]
        if before.strip() and answers(before):
            return before
    for header, _ in zip(_NEXT_INLINE.finditer(text), range(_MOST_TURNS), strict=False):
        before = text[: header.start()]
        if marked_answer(before) and answers(before):
            return before
    return text


def marked_answer(text: str) -> str | None:
    """The first non-blank line after the last marker ("" if nothing follows it); None without a marker."""
    end = max(_ends(text), default=-1)
    content, line_end = _first_line(text, end) if end >= 0 else (None, -1)
    boxes = [(at, inner) for at, inner in boxed(text) if at >= line_end]
    return boxes[-1][1].strip() if boxes else content


def _ends(text: str) -> Iterator[int]:
    """Where what is marked begins, for every marker."""
    for pattern in (_HEADING, _DASHED, _TAG):
        for match in pattern.finditer(text):
            yield match.end()
    for match in _MARKER.finditer(text):
        if _introduces(text, match.start()):
            yield match.end()


def _introduces(text: str, at: int) -> bool:
    """Whether a marker gives an answer: the words before it in its sentence do not say otherwise."""
    before = text[max(0, at - 120) : at]
    starts = [m.end() for m in _SENTENCE_START.finditer(before)]
    before = before[starts[-1] :] if starts else before
    if _NO_MARKER_BEFORE.search(before):
        return False
    return not any(word.casefold() in NO_MARKERS for word in _WORDS.findall(before)[-3:])


def _first_line(text: str, begin: int) -> tuple[str, int]:
    """The first line from ``begin`` on that says something, and where it ends.

    "**Answer:** 42" leaves "** 42": markdown that closes around the marker, or a line of it, is not a line of its own.
    """
    at = begin
    for line in text[begin:].splitlines(keepends=True):
        at += len(line)
        if re.sub(r"\\[\[(]|```\w*|[$*_`#\-=\s]", "", line) or re.fullmatch(r"\s*(?:[-+=#*]|==)\s*", line):
            closed = _CLOSING_TAG.search(line)
            bare = (line[: closed.start()] if closed else line).strip()
            if bare.startswith("}"):  # of "\\boxed{\\text{Answer: } 5}"
                bare = bare.lstrip("} ")
                bare = bare.removesuffix("}") if bare.count("}") > bare.count("{") else bare
            field = _JSON_VALUE.match(bare) if _JSON_NAME.search(text, max(0, begin - 10), begin) else None
            return (next(g for g in field.groups() if g is not None) if field else bare, at)
    return "", len(text)
