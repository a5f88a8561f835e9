r"""What models wrap an answer in, taken off again: LaTeX, tags, markdown, quotes, a note of confidence, an introduction.

One row: ``r"**$\boxed{\text{no}}$**."`` -> ``"no"``.
"""

from __future__ import annotations

import re
from typing import Final

from cowest.scoring.scripts import SPACELESS
from cowest.tasks.words import LEAD_INS, OPTIONS, SPACELESS_LEAD_INS, SPACELESS_OPTIONS

QUOTES: Final = (
    "\"'`*_\u201c\u201d\u2018\u2019\u00ab\u00bb\u201e\u201a\u2039\u203a"
    "\u300c\u300d\u300e\u300f\u300a\u300b\u3008\u3009\u3010\u3011"
)
"""Quotation marks and markdown's."""
SENTENCE_ENDS: Final = ".\u3002\uff0e\uff61\u0964\u0965\u06d4\u0589\u1362\u17d4\u104b"
"""Full stops of many scripts."""
BREAKS: Final = ",;:!?\u3001\uff0c\uff1b\uff1a\uff01\uff1f\u060c\u061b\u061f"
"""What else ends a clause."""

_TAGS: Final = re.compile(
    r"</?(?:answer|final_?answer|ans|output|response|solution|result|final|[biup]|em|strong|code|span|mark)(?:\s[^<>]{0,60})?/?>",
    re.IGNORECASE,
)
_COMMAND: Final = re.compile(
    r"\\(?:boxed|fbox|mbox|hbox|text|text(?:bf|it|tt|rm|sf|normal)|math(?:rm|bf|it|sf|tt|bb|cal|normal)|operatorname\*?|emph|underline"
    r"|bm|boldsymbol|ensuremath|displaystyle|d?t?frac\{[^{}]*\}|sqrt)\s*\{([^{}]*)\}"
)
_MATH: Final = re.compile(r"\\\((.*?)\\\)|\\\[(.*?)\\\]|\$\$(.+?)\$\$", re.DOTALL)
# As pandoc reads it: "$5 to $10" are prices.
_INLINE_MATH: Final = re.compile(r"(?<![\\$\w])\$(?! )([^$\n]+?)(?<![\s\\])\$(?![\d$])")
_SYMBOLS: Final = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\(?:left|right|displaystyle|quad|qquad)(?![a-zA-Z])", ""),
        (r"\\([%$#&_{}])", r"\1"),
        (r"\{,\}", ","),
        (r"\\[,;:! ]", " "),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])|\\circ(?![a-zA-Z])", "\u00b0"),
        (r"\\leq?(?:slant)?(?![a-zA-Z])", "\u2264"),
        (r"\\geq?(?:slant)?(?![a-zA-Z])", "\u2265"),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\neq?(?![a-zA-Z])", "\u2260"),
        (r"\\approx(?![a-zA-Z])", "\u2248"),
        (r"\\sim(?![a-zA-Z])", "~"),
        (r"\\pm(?![a-zA-Z])", "\u00b1"),
        (r"\\times(?![a-zA-Z])", "\u00d7"),
        (r"\\cdot(?![a-zA-Z])", "\u00b7"),
        (r"\\pi(?![a-zA-Z])", "π"),
        (r"\\infty(?![a-zA-Z])", "\u221e"),
        (r"\^\{([^{}]*)\}", r"^\1"),
    )
)
_CONFIDENCE: Final = re.compile(
    r"[\s,;.(\[\u2013\u2014-]*\b(?:confidence|certainty|probability)(?: level| score)?\s*(?:[:=]|is)\s*"
    r"(?:\d|high|low|medium|very|moderate).{0,60}$"
    r"|[\s,;.(\[\u2013\u2014-]+(?:with |at |i am |i['\u2019]m )?(?:about |around |~ ?)?\d{1,3}(?:\.\d+)? ?% "
    r"(?:confiden(?:t|ce)|certain(?:ty)?|sure)"
    r"[)\].\s]*$",
    re.IGNORECASE | re.DOTALL,
)
CONFIDENCE_LINE: Final = re.compile(
    r"^[ \t*_(\[]*(?:my )?(?:confidence|certainty|probability|konfidenz|sicherheit|confiance|confianza|confian\u00e7a|fiducia"
    r"|уверенность|置信度|信心|確信度|信頼度|신뢰도|확신도)(?: level| score)?[*_ \t]*[:=\uff1a].{0,60}$",
    re.IGNORECASE | re.MULTILINE,
)
"""A line of its own that says how sure the model is."""

_MOST_LAYERS: Final = 8
_MOST_BOXES: Final = 50


def unwrapped(answer: str) -> str:
    """The answer without LaTeX, tags, quotes and markdown around (or, LaTeX and tags, within) it."""
    for _ in range(_MOST_LAYERS):
        before, answer = answer, _TAGS.sub("", answer).strip()
        if "\\" in answer or "$" in answer:
            answer = _without_latex(answer)
        answer = _unquoted(_outer(answer.strip())).strip()
        if answer == before:
            break
    return answer


def without_confidence(answer: str) -> str:
    """The answer without a note of confidence behind it."""
    found = _CONFIDENCE.search(answer)
    return answer[: found.start()] if found and answer[: found.start()].strip() else answer


def boxed(text: str) -> list[tuple[int, str]]:
    r"""Where each ``\boxed{...}`` of a text begins, and what is in it; braces may be nested."""
    found = []
    for match in list(re.finditer(r"\\f?boxed\s*\{", text))[-_MOST_BOXES:]:  # the last one counts
        depth, at = 1, match.end()
        end = min(len(text), at + 2000)
        while at < end and depth:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        if not depth:
            found.append((match.start(), text[match.end() : at - 1]))
    return found


def _outer(answer: str) -> str:
    """Without a pair of double brackets or braces around the whole: "[[B]]", "{B}"."""
    for opening, closing in (("[[", "]]"), ("{", "}")):
        if answer.startswith(opening) and answer.endswith(closing) and len(answer) > len(opening + closing):
            return answer[len(opening) : -len(closing)]
    return answer


def _unquoted(answer: str) -> str:
    """Without quotation marks at the ends; behind a digit a mark that nothing opened is a unit (12", 40')."""
    bare = answer.lstrip(QUOTES)
    if bare == answer and re.search(r"\d['\"]+$", answer):
        return answer
    return bare.rstrip(QUOTES)


def _without_latex(text: str) -> str:
    text = _MATH.sub(lambda m: next(g for g in m.groups() if g is not None), text)
    text = _INLINE_MATH.sub(r"\1", text)
    text = re.sub(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2", text)
    text = re.sub(r"\\sqrt\s*\{([^{}]*)\}", "\u221a\\1", text)
    text = _COMMAND.sub(r"\1", text)
    for pattern, new in _SYMBOLS:
        text = pattern.sub(new, text)
    return text


LEAD_IN: Final = re.compile(rf"(?:(?<![^\W_])(?:{LEAD_INS})|(?:{SPACELESS_LEAD_INS}))\s*[:\uff1a]?\s*", re.IGNORECASE)
"""An unmarked answer's introduction, such as "the answer is": what follows is the answer."""
_PRONOUN: Final = re.compile(
    r"(?:so|thus|hence|therefore)?,?\s*(?:it|this|that)(?:\s+is|['\u2019]s|\s+would\s+be)\s+(?!not\b)", re.IGNORECASE
)
_NOUN: Final = re.compile(
    rf"(?:(?:the|an?)\s+)?(?:(?:correct|right|best|final)\s+)?(?:(?:{OPTIONS})(?=[\s(:#*\"']|[{SPACELESS}])\s*[:#]?|{SPACELESS_OPTIONS})\s*",
    re.IGNORECASE,
)
_CONNECTIVE: Final = re.compile(r"(?:so|thus|hence|therefore|then|finally)\b,?\s+", re.IGNORECASE)
_NOT_BUT: Final = re.compile(
    r"(?:not|nicht|no|pas|non)\s+[^.;\n]{1,40}?,?\s+(?:but|sondern|sino|mais|ma)(?:\s+rather)?\s+", re.IGNORECASE
)
_SURELY: Final = re.compile(
    r"(?:(?:an?\s+)?(?:definite(?:ly)?|clear(?:ly)?|certain(?:ly)?|surely|obviously|absolutely|simply|almost|most|likely|probably|overall"
    r"|mostly|indeed|firm|resounding)\b,?\s+){1,3}",
    re.IGNORECASE,
)
# "la B", "die C": other languages put an article before the letter of a choice.
_ARTICLE: Final = re.compile(
    r"(?:la|le|el|il|l['\u2019]|die|der|das|de|het|az?)\s*(?=[*(]*[A-Z](?![^\W_]))|l['\u2019](?=[^\W_]{4})"
)


def introduced(answer: str) -> list[str]:
    """The answer without "the answer is", "it is", "option" and the like before it; nothing where none is."""
    found = []
    rest = answer
    for pattern in (_CONNECTIVE, LEAD_IN, _PRONOUN, _NOT_BUT, _SURELY, _ARTICLE, _NOUN):
        match = pattern.match(rest)
        if match and rest[match.end() :].strip():
            rest = rest[match.end() :]
            found.append(rest)
    return found
