"""Which of a task's classes, or of a question's choices, a text names; None where it names none, several, or denies one.

One row: ``"The remark is not harmful."`` with labels harmful / harmless -> None.

Choices that differ only in case, quotes or brackets are told apart by the letter; what is written otherwise than either is
read only where it can mean but one of them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cowest.scoring.scripts import is_spaceless, is_word
from cowest.tasks.words import (
    AFTER_NO,
    AUXILIARIES,
    CHOSEN,
    IS_RIGHT,
    JOINERS,
    KOREAN_ENDINGS,
    NEGATED_AFTER,
    NEGATED_BEFORE,
    NEGATORS,
    NO_NEGATION,
    NO_WORDS,
    OPTIONS,
    PARTICLES,
    REFUSALS,
    SPACELESS_OPTIONS,
    TURNS,
)
from cowest.tasks.wrapping import BREAKS, LEAD_IN, QUOTES, SENTENCE_ENDS, introduced, unwrapped

_ENDS: Final = SENTENCE_ENDS + BREAKS + "\u2026"
_BRACKETS: Final = "()[]{}"
_TYPOGRAPHIC: Final = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2212": "-",
        "\u2010": "-",
        "\u2011": "-",
        "\u2013": "-",
    }
)
_JOINED: Final = re.compile(rf"[\s,/|&\u3001\uff0c]*(?:{JOINERS})?[\s,/|&]*", re.IGNORECASE)
_NO_NEGATION: Final = re.compile(NO_NEGATION, re.IGNORECASE)
_CLAUSE: Final = re.compile(
    rf"[,;:.!?()\n\u2026\u2014\u2013\uff0c\u3002\uff1b\uff1a\uff01\uff1f\u3001\u0964\u060c\u061b\u061f]|{TURNS}"
)
_WORD: Final = re.compile(r"[^\W\d_](?:[\w'\u2019\u0900-\u0963]*)")
_LINE: Final = 1000  # characters that are looked at behind an introduction
_REACH: Final = 5  # words between a negation and what it denies: "I would not say that it is harmful"
_NEGATED_BEFORE: Final = re.compile(rf"(?:{NEGATED_BEFORE})\s*$")
_NEGATED_AFTER: Final = re.compile(rf"\s*{NEGATED_AFTER}", re.IGNORECASE)
_PARTICLE: Final = re.compile(PARTICLES)
_STANDS: Final = re.compile(rf"(?:{PARTICLES})?\s*(?:[{re.escape(_ENDS)}]|$)")
_COPULA: Final = re.compile(f"(?:{KOREAN_ENDINGS})(?![\uac00-\ud7a3])")
_OPTION: Final = re.compile(
    rf"(?i:(?<![^\W_])(?:{OPTIONS})\s*[*_(\[]*|(?:{SPACELESS_OPTIONS})\s*)(?a:([^\W_]{{1,3}})(?![^\W_]))"
    rf"|{CHOSEN}|(?a:(?<![^\W_])([A-Z]))[)\]*_]*(?:{IS_RIGHT})"
)
_HEAD: Final = re.compile(
    r"\s*[*_(\[]*([^\s()\[\].:*_]{1,3})(?:[)\]:]+|[*_]*\.(?=\s)|[*_)\]]*(?:[ \t]+[-\u2013\u2014][ \t]|[ \t]*\n))"
)
_ASKED: Final = re.compile(r"[^.!?;:\n\u3002\uff01\uff1f\u061f\u0964]{0,200}[?\uff1f\u061f]")
_NUMBER_GOES_ON: Final = re.compile(r"[.,:/]\d")
_TURKISH_COPULA: Final = re.compile(r"'[dt][\u0131iu\u00fc]r(?!\w)")
_REFUSAL: Final = re.compile(REFUSALS, re.IGNORECASE)


def refuses(text: str) -> bool:
    """Whether the model says that it cannot or will not answer."""
    return _REFUSAL.search(text) is not None


def label_key(label: str) -> str:
    """Two classes of one key cannot be told apart in a text: case, width, spacing, quotes and a final stop are folded away."""
    folded = _case(_spacing(label))
    return folded.strip(QUOTES + _ENDS + " ") or folded


def _spacing(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).replace("_", " ").split())


def _typography(text: str) -> str:
    spaced = _spacing(text).translate(_TYPOGRAPHIC)
    return re.sub(r"(?<=[<>\u2264\u2265~\u2248=]) (?=[-+]?\.?\d)|(?<=\d) (?=%)", "", spaced)  # "< 18", "5 %"


def _case(text: str) -> str:
    return unicodedata.normalize("NFKC", _typography(text).casefold())


def _bare(text: str) -> str:
    folded = _case(text)
    bare = folded.strip(QUOTES + _ENDS + _BRACKETS + " ")
    if bare.startswith("<") and bare.endswith(">"):  # brackets; one alone is a comparison
        bare = bare[1:-1].strip(QUOTES + _ENDS + _BRACKETS + " ")
    return (bare or folded).replace("\u0131", "i").replace("i\u0307", "i")  # Turkish capitals


def _unaccented(text: str) -> str:
    """For whole answers only, since "si" in running Spanish is no "sí"."""
    split = unicodedata.normalize("NFD", _bare(text))
    return "".join(c for i, c in enumerate(split) if not ("\u0300" <= c <= "\u036f" and split[i - 1].isascii()))


_LEVELS: Final[tuple[Callable[[str], str], ...]] = (str, _spacing, _typography, _case, label_key, _bare)
"""How closely a text is compared with a class, the closest first."""


@dataclass(frozen=True, slots=True)
class _Mention:
    label: str
    start: int
    end: int


class _Level:
    """The labels as one way of folding has them. Those that it makes equal are of no use on it: ``alike``."""

    def __init__(self, labels: Sequence[str], fold: Callable[[str], str]) -> None:
        self.fold = fold
        keys = [fold(label) for label in labels]
        self.alike = frozenset(key for key in keys if keys.count(key) > 1)
        self.by_key = {key: label for key, label in zip(keys, labels, strict=True) if key not in self.alike}
        # longest first, so that "very bad" is not read as "very"
        ordered = sorted((key for key in self.by_key if key), key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, ordered)) if ordered else r"(?!)")

    def at(self, text: str, begin: int = 0) -> _Mention | None:
        """The label that a folded text has at ``begin`` as whole words."""
        match = self._any.match(text, begin)
        return self._checked(text, match) if match else None

    def mentions(self, text: str) -> Iterator[_Mention]:
        """Every label in a folded text as whole words, and not within a longer one."""
        at = 0
        while (match := self._any.search(text, at)) is not None:
            found = self._checked(text, match)
            at = found.end if found else match.start() + 1
            if found:
                yield found

    def _checked(self, text: str, match: re.Match[str]) -> _Mention | None:
        """The longest label that begins where ``match`` does and stands as a word."""
        for key in sorted((k for k in self.by_key if k and text.startswith(k, match.start())), key=len, reverse=True):
            end = match.start() + len(key)
            if _free_before(text, match.start()) and _free_after(text, end, key):
                return _Mention(self.by_key[key], match.start(), end)
        return None


def _free_before(text: str, start: int) -> bool:
    """Whether no word goes on into what begins at ``start``."""
    if not start or not is_word(text[start]):
        return True
    before = text[start - 1]
    if before in "'-" and start > 1:
        return not is_word(text[start - 2])
    return before not in "'-" and (not is_word(before) or is_spaceless(before) or is_spaceless(text[start]))


def _free_after(text: str, end: int, key: str) -> bool:
    """Whether the word that ends at ``end`` does not go on, in the way of its script."""
    after = text[end : end + 1]
    if not after:
        return True
    if after in "'-":
        return not (end + 1 < len(text) and is_word(text[end + 1])) or _TURKISH_COPULA.match(text, end) is not None
    if key[-1].isdigit() and _NUMBER_GOES_ON.match(text, end):
        return False
    if not is_word(after):
        return True
    last = key[-1]
    if unicodedata.category(after)[0] == "M":
        return False
    if is_spaceless(last) and is_spaceless(after):
        return len(key) > 1 or _PARTICLE.match(text, end) is not None
    if is_spaceless(last) or is_spaceless(after):
        return True
    if "\uac00" <= after <= "\ud7a3":  # Korean: endings are written onto the word
        ending = _COPULA.match(text, end) is not None
        return ending or not ("\uac00" <= last <= "\ud7a3") or len(key) > 1
    return False


def _denied(text: str, found: _Mention) -> bool:
    """Whether a negation before or behind a mention takes it back."""
    before = text[max(0, found.start - 80) : found.start]
    clause = _NO_NEGATION.sub(" ", _CLAUSE.split(before)[-1])
    words = [w.replace("'", "").replace("\u2019", "") for w in _WORD.findall(clause.casefold())][-_REACH:]
    if any(w in NEGATORS or (w.endswith("nt") and w[:-2] in AUXILIARIES) for w in words):
        return True
    return _NEGATED_BEFORE.search(before) is not None or _NEGATED_AFTER.match(text, found.end) is not None


def _answers(text: str, found: _Mention, key: str) -> bool:
    """Whether a mention can be an answer: "no" before a noun is a determiner, "a" before a word an article."""
    rest = text[found.end :]
    following = re.match(r"[\s*_`]+(\w+)", rest)
    word = following.group(1).casefold() if following else ""
    if key in ("a", "i") and word:
        return word in ("because", "since", "as", "due")
    if key == "no" and re.match(r"\.? ?#?\d", rest):
        return False  # "No. 2"
    if key in NO_WORDS and word:
        return key == "no" and word in AFTER_NO
    return True


class LabelTable:
    """The labels of a task, or the choices of a question, prepared for reading."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self._levels = [_Level(labels, fold) for fold in _LEVELS]
        self._whole_levels = (*self._levels, _Level(labels, _unaccented))
        self._keys = {label: label_key(label) for label in labels}
        # "a" or "2" in running text is an article or a number, not a choice; and a sign may be any punctuation
        self._findable = all(_findable(key) for key in self._keys.values())

    def match(self, answer: str) -> str | None:
        """The label that a marked answer is or begins with; None when it names none, several, or denies it."""
        whole = self._whole(answer)
        if whole is not None:
            return whole
        for text in _variants(answer):
            for level in self._levels:
                folded = level.fold(text)
                first = level.at(folded)
                if first is not None:
                    return self._alone(level, folded, first)
        return None

    def only(self, text: str) -> str | None:
        """The one label that an unmarked text answers with; None when it names none or several, or refuses to answer."""
        whole = self._whole(text)
        if whole is not None:
            return whole
        level = self._levels[-1] if not self._levels[-1].alike else self._levels[1]
        folded = level.fold(text)
        found: set[str] = set()
        if self._findable:
            mentions = (m for m in level.mentions(folded) if not _ASKED.match(folded, m.end))
            found = {m.label for m in mentions if self._said(level, folded, m)}
        said = self._introduced(text)
        if said is not None:
            return said if found <= {said} else None
        if refuses(text) and not any(refuses(label) for label in found):
            return None
        if self._findable:
            return found.pop() if len(found) == 1 else None
        return self._chosen(text)

    def _introduced(self, text: str) -> str | None:
        """The label behind the last "the answer is"."""
        last = max((m.end() for m in LEAD_IN.finditer(text)), default=None)
        line = "" if last is None else text[last : last + _LINE].strip().partition("\n")[0]
        return self.match(line) if line else None

    def _whole(self, text: str) -> str | None:
        """The label that the whole text is, what is wrapped around it apart; the closest way to read it counts."""
        variants = _variants(text)
        for level in self._whole_levels:
            for variant in variants:
                key = level.fold(variant)
                if key in level.by_key:
                    return level.by_key[key]
        return None

    def _alone(self, level: _Level, folded: str, first: _Mention) -> str | None:
        """The label at the beginning of a marked answer, unless another stands beside it or it is no answer."""
        if not self._said(level, folded, first):
            return None
        joined = _JOINED.match(folded, first.end)
        end = joined.end() if joined else first.end
        beside = end > first.end and folded[first.end : end].strip() != ""
        touching = end == first.end and end < len(folded) and is_spaceless(folded[end])
        other = level.at(folded, end) if beside or touching else None
        return None if other and other.label != first.label else first.label

    def _said(self, level: _Level, folded: str, mention: _Mention) -> bool:
        key = self._keys[mention.label]
        return _answers(folded, mention, key) and not _denied(folded, mention)

    def _chosen(self, text: str) -> str | None:
        """For choices that are letters or numbers: "B) a house", or the only "option B" of a text."""
        level = self._levels[-1]
        folded = level.fold(text)
        first = level.at(folded)
        if first is not None and _STANDS.match(folded, first.end):
            return self._alone(level, folded, first)
        head = _HEAD.match(text)
        if head and level.fold(head.group(1)) in level.by_key:
            return level.by_key[level.fold(head.group(1))]
        named = {
            level.by_key[key]
            for m in _OPTION.finditer(text)
            if (key := level.fold(next(g for g in m.groups() if g))) in level.by_key
            and not _denied(folded, _Mention("", m.start(), m.end()))
        }
        return named.pop() if len(named) == 1 else None


def _findable(key: str) -> bool:
    return len(key) > 1 and not key.isdigit() and any(is_word(c) for c in key)


def _variants(answer: str) -> list[str]:
    """The answer as it stands, then with less and less around it."""
    plain = unwrapped(answer)
    found = [answer.strip(), answer.strip().rstrip(_ENDS).rstrip(), plain, plain.rstrip(_ENDS).rstrip()]
    for text in introduced(plain):
        found += [text.strip(), text.strip().rstrip(_ENDS).rstrip(), unwrapped(text)]
    return list(dict.fromkeys(f for f in found if f))


@lru_cache(maxsize=4096)
def label_table(labels: tuple[str, ...]) -> LabelTable:
    """The table of these labels; kept, since each text of a task asks for it."""
    return LabelTable(labels)
