"""Invented names and the written-out arithmetic that the lab's questions are made of."""

from __future__ import annotations

import random

_ONSETS = "bdfgklmnprstvz"
_VOWELS = "aeiou"
_CODAS = ("", "", "n", "r", "l")


def invent(rng: random.Random) -> str:
    """One capitalised name of two or three syllables, such as ``Velmo`` or ``Tarikun``."""
    syllables = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((2, 2, 3))))
    return (syllables + rng.choice(_CODAS)).capitalize()


def invent_many(rng: random.Random, count: int) -> list[str]:
    """``count`` distinct names; bounded, raises ValueError when the name space is exhausted."""
    names: dict[str, None] = {}
    for _ in range(count * 50):
        if len(names) == count:
            return list(names)
        names[invent(rng)] = None
    raise ValueError(f"could not invent {count} distinct names; ask for fewer entities")


def _in_two_steps(a: int, b: int, sign: str) -> str:
    """``62-17`` as ``62-10=52, 52-7=45``: tens first, then units, as one does it in one's head."""
    step = 1 if sign == "+" else -1
    tens, units = b - b % 10, b % 10
    parts = []
    for amount in (tens, units):
        if amount or not b:
            parts.append(f"{a}{sign}{amount}={a + step * amount}")
            a += step * amount
        if not b:
            break
    return ", ".join(parts)


def written_sum(a: int, b: int) -> str:
    """The scratch work of a + b."""
    return _in_two_steps(a, b, "+")


def written_difference(a: int, b: int) -> str:
    """The scratch work of a - b, for a >= b."""
    return _in_two_steps(a, b, "-")


def written_comparison(a: int, b: int) -> str:
    """``30<45``, ``45=45`` or ``50>45``."""
    return f"{a}{'<' if a < b else '>' if a > b else '='}{b}"
