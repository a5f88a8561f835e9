"""Characters, where they decide how a text is read: parts of a word, and scripts that put no spaces between words."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

SPACELESS: Final = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ecd\u0edc-\u0edf"  # Thai, Lao
    "\u0f40-\u0fbc\u1000-\u103f\u1050-\u109d\u1780-\u17d3"  # Tibetan, Burmese, Khmer
    "\u1950-\u19df\u1a20-\u1aad\u1b00-\u1b4b\ua980-\ua9c0\uaa80-\uaadf"  # Tai, Balinese, Javanese
    "\u2e80-\u2fdf\u3005-\u3007\u3040-\u312f\u31f0-\u31ff\uff66-\uff9f"  # kana, bopomofo, radicals
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
"""The scripts without spaces, as the inside of a regular expression's character class."""
_SPACELESS: Final = re.compile(f"[{SPACELESS}]")


def is_spaceless(char: str) -> bool:
    """Whether ``char`` is of a script without spaces between words."""
    return _SPACELESS.match(char) is not None


def is_word(char: str) -> bool:
    """Whether ``char`` is a part of a word: a letter, digit or underscore, or a sign written on one (vowel signs, accents)."""
    return char == "_" or unicodedata.category(char)[0] in "LNM"


def units(text: str) -> list[str]:
    """The words of a text; where there are no spaces between words, its characters, each with the signs written on it.

    >>> units("the 東京 tower")
    ['the', '東', '京', 'tower']
    """
    if _SPACELESS.search(text) is None:
        return text.split()
    found: list[str] = []
    for word in text.split():
        open_ = False  # whether the last unit is a run of other characters, which the next one may continue
        for char in word:
            if is_spaceless(char) and unicodedata.category(char)[0] != "M":
                found.append(char)
                open_ = False
            elif found and (open_ or (unicodedata.category(char)[0] == "M" and char is not word[0])):
                found[-1] += char
            else:
                found.append(char)
                open_ = True
    return found
