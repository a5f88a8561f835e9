"""The form in which open answers are compared: SQuAD's, with what carries meaning in a number or a name kept.

One row: ``"The 4,200 m."`` -> ``"4200 m"``.

SQuAD's evaluation (Rajpurkar et al. 2016) has lower case, no punctuation, no articles, single spaces, which makes ``<42``, ``~42``
and ``42%`` the same as ``42``, and ``10-20`` the same as ``1020``. Here a mark that changes what a number or name says is kept:

- signs, also typographic (``-5``), comparisons and approximations (``<42``, ``>=``, ``~``), percent, powers, primes (feet, inches)
  after a number;
- what joins two numbers: ranges (any dash is one), decimal point or comma, ``/``, ``:``, ``*``;
- ``+`` and ``#`` after a letter or digit (``C++``, ``C#``, ``18+``), a minus after one or two letters (``A-``, ``AB-``).

Separators of thousands go (``1,000``, ``1.000.000``, ``1'000``, ``1 000``), a decimal comma becomes a point. A currency's sign
goes, but two different ones are two different answers.
"""

from __future__ import annotations

import re
import string
import unicodedata
from typing import Final

_ARTICLES: Final = frozenset({"a", "an", "the"})
_SIGNS: Final = str.maketrans(
    dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d", "-")
    | {"\u2044": "/", "\u2215": "/", "\u00d7": "*", "\u066b": ".", "\u066c": ",", "\u066a": "%"}
    | dict.fromkeys("\u2248\u223c\u2243\u2245\u02dc", "~")
    | {"\u2266": "\u2264", "\u2a7d": "\u2264", "\u2267": "\u2265", "\u2a7e": "\u2265"}
)
_MONEY: Final = "$\u00a2-\u00a5\u058f\u060b\u09f2\u09f3\u0af1\u0bf9\u0e3f\u17db\u20a0-\u20c0\ufdfc"
_RAISED: Final = "\u2070\u00b9\u00b2\u00b3\u2074-\u2079"
# Before Unicode's folding, which would make 10\u2075 105 and 1\u00bd 11/2.
_BEFORE_FOLDING: Final = (
    (re.compile(rf"(?<=\d)(?=[\u207a\u207b]?[{_RAISED}])(?<![{_RAISED}])"), "^"),
    (re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e])"), " "),
    (re.compile(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<=\d)\s?\u00ba"), "\u00b0"),
    (re.compile(r"(?<=\d)(?:\u2026|\.{2,3})(?=\d)"), "-"),
    (re.compile(r"(?<!\w)[%\u066a]\s?(\d[\d.,\u066b]*\d|\d)(?![\d%])"), r"\1%"),
)  # fmt: skip
_REWRITTEN: Final = (
    (re.compile(r"(?<=\d)[\u2014\u2015](?=\d)"), "-"),
    (re.compile(r"<="), "\u2264"),
    (re.compile(r">="), "\u2265"),
    (re.compile(r"\s?(?<![!=])=(?!=)(?:\s=(?!=))*\s?"), " "),
    (re.compile(r"(?<=\d)\s*\u00b1\s*(?=\d)|\u00b1\s+(?=\d)"), "\u00b1"),
    (re.compile(r"(?<=\d)(\s?\u00b0)\s+(?=[cfk]\b)"), r"\1"),
    (re.compile(r"(?<=\d)'(?=\s?\d{1,2}(?:\.\d+)?(?:\"|''|\u2032\u2032)?(?!\w))"), "\u2032"),
    (re.compile(r"(\u2032\s?\d{1,2}(?:\.\d+)?)(?:\"|'')"), "\\1\u2032\u2032"),
    (re.compile(r"^([^\"]*\d)\"([^\"]*)$"), "\\1\u2032\u2032\\2"),  # a lone one is no quotation mark
    (re.compile(r"^([^']*\d)'(?!\w)([^']*)$"), "\\1\u2032\\2"),
    (re.compile(r"(?<=\d)\s?\*\*\s?(?=[-\d])"), "^"),
    (re.compile(rf"(?<=[a-z])[{_MONEY}](?=\.?\d)"), " "),
    (re.compile(rf"[{_MONEY}]\s?(?=[-+]?\.?\d)|(?<=\d)\s?[{_MONEY}]"), ""),
    (re.compile(r"(?<=\d)\s*(?:%|per ?cent\b|pct\b)"), "%"),
    (re.compile(r"(?<=[\d%]) - (?=\d)"), "-"),
    (re.compile(r"(?<![-=])\s*([<>~\u2264\u2265])\s*(?=[-+]?\.?\d)"), r" \1"),
    # 1,000 and 1,00,000; then 1.000.000 and 1.000,5; then 1,5; then a list
    (re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)|(?<![\d.,])[1-9]\d?(?:,\d{2})+,\d{3}(?!\d|,\d)"), ","),
    (re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:(?:\.\d{3}){2,}(?!\d|\.\d)|(?:\.\d{3})+(?=,\d+(?![\d.,])))"), "."),
    (re.compile(r"(?<=\d)'(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<=\de)\+(?=\d)"), ""),
    (re.compile(r"(?<=\d);(?=\d)"), "; "),
    (re.compile(r"(?<![\d,.])(\d+),(?=\d+(?!\d|[,.]\d))"), r"\1."),
    (re.compile(r"(?<=\d),(?=\d)"), " "),
    (re.compile(r"(?<![\w.])\.(?=\d)"), "0."),
)  # fmt: skip
_SPACED_THOUSANDS: Final = re.compile(r"(?<![\w.,:/-])(?<!\d )[1-9]\d{0,2}(?: \d{3})+(?![\w%]| \d)")
_KEPT: Final = re.compile(
    r"(?<!\w)-(?=\.?\d)|(?<=[\d%])-(?=\d)|(?<=\de)-(?=\d)|(?:(?<=\b[a-z])|(?<=\b[a-z]{2}))-(?![^\s,.;])"  # minus, dash
    r"|(?<=\d)[./:*](?=\d)|(?<=[\w)])\^(?=[-\w(])"  # between numbers
    r"|(?<=\d)[%\u2030\u2032]|(?<=\u2032)\u2032"  # after a number
    r"|(?<=[\w+])\+|(?<=[a-z])#"  # after a name
    r"|[<>~](?=[-+]?\.?\d)"  # before a number
)


def fold(text: str) -> str:
    """Case, width and spacing folded; every character that carries meaning kept."""
    for pattern, new in _BEFORE_FOLDING:
        text = pattern.sub(new, text)
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(_SIGNS)
    if not folded.isascii():
        folded = "".join(str(unicodedata.decimal(c)) if c > "9" and c.isdecimal() else c for c in folded)
    return " ".join(folded.split())


def normalise(text: str) -> str:
    """``text`` as open answers are compared (see the module's docstring); may be empty."""
    folded = _SPACED_THOUSANDS.sub(lambda m: m.group().replace(" ", ""), fold(text))
    for pattern, new in _REWRITTEN:
        folded = pattern.sub((lambda m, sign=new: m.group().replace(sign, "")) if new in (",", ".") else new, folded)
    keep = {match.start() for match in _KEPT.finditer(folded)}
    bare = "".join(char for i, char in enumerate(folded) if i in keep or not _is_punctuation(char))
    return " ".join(token for token in bare.split() if token not in _ARTICLES)


def answer_key(answer: str) -> tuple[str, str]:
    """Equal for two open answers if they are the same, whatever currency they name."""
    bare = normalise(answer)
    return bare, "" if bare else fold(answer)


def same_answer(answer: str, other: str) -> bool:
    """Whether two open answers are an exact match."""
    if answer_key(answer) != answer_key(other):
        return False
    money = re.findall(f"[{_MONEY}]", fold(answer)), re.findall(f"[{_MONEY}]", fold(other))
    return not all(money) or money[0] == money[1]


def _is_punctuation(char: str) -> bool:
    return char in string.punctuation or unicodedata.category(char).startswith("P")
