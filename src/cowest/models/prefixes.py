"""What prompts have in common: which parts are read once for several of them, and what recent ones left behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import torch

WORTH = 32
"""Tokens that prompts must have in common to be read once: fewer cost less to read again than to keep track of."""

BLOCK = 16  # tokens between two places where a recent prompt can be found


@dataclass(slots=True)
class Reading:
    """A part of prompt ``owner`` from ``start`` to ``end`` that is read for ``others`` too; indices into the prompts."""

    owner: int
    start: int
    end: int
    others: list[int] = field(default_factory=list)


def common(a: tuple[int, ...], b: tuple[int, ...], start: int = 0) -> int:
    """How many tokens from the first on are equal; the first ``start`` are known to be."""
    end = min(len(a), len(b))
    if a[start:end] == b[start:end]:
        return end
    at = start
    while a[at] == b[at]:
        at += 1
    return at


def waves(prompts: Sequence[tuple[int, ...]]) -> list[list[Reading]]:
    """How to read different ``prompts``: parts that several share once, then what follows. A wave needs those before it.

    Each prompt's last token is read for it alone, as what comes after it is asked for.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    shared = [common(prompts[a], prompts[b]) for a, b in pairwise(order)]
    found: list[list[Reading]] = []
    todo = [(0, len(order), 0, 0)] if prompts else []
    while todo:
        first, last, known, wave = todo.pop()  # order[first:last] share what has been read, ``known`` tokens
        while len(found) <= wave:
            found.append([])
        owner = order[first]
        if last - first == 1:
            found[wave].append(Reading(owner, known, len(prompts[owner])))
            continue
        least = min(shared[first : last - 1])
        # A prompt that is the beginning of another keeps a token of its own.
        part = min(least, *(len(prompts[i]) - 1 for i in order[first:last]))
        if part - known >= WORTH:
            found[wave].append(Reading(owner, known, part, order[first + 1 : last]))
            known, wave = part, wave + 1
        begin = first
        for i in range(first, last):
            if i == last - 1 or shared[i] <= least:
                todo.append((begin, i + 1, known, wave))
                begin = i + 1
    return [wave for wave in found if wave]


def together(prompts: Sequence[tuple[int, ...]]) -> list[int]:
    """The order in which to read ``prompts``, the oldest first: each is followed by those that share its beginning.

    Indices into ``prompts``. Those that share most follow first; of as close ones the oldest.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    shared = [common(prompts[a], prompts[b]) for a, b in pairwise(order)]
    found = list[int]()
    todo = [(0, len(order), 0)] if prompts else []
    while todo:
        first, last, known = todo.pop()  # order[first:last] share ``known`` tokens
        if last - first == 1:
            found.append(order[first])
            continue
        cuts = [i + 1 for i in range(first, last - 1) if shared[i] < known + WORTH]
        parts = sorted(pairwise([first, *cuts, last]), key=lambda part: min(order[slice(*part)]), reverse=True)
        todo += [(begin, end, min(shared[begin : end - 1], default=0)) for begin, end in parts]
    return found


@dataclass(slots=True)
class _Kept:
    tokens: tuple[int, ...]
    states: torch.Tensor
    keys: list[int]


class Prefixes:
    """Keys and values of recent prompts; which are forgotten, when they take more than ``most`` bytes, is drawn by lot.

    A table's rows ask about the same queries one row after the other. Where these are a few more than fit, to forget the longest
    unused would forget each just before it is asked for again; by lot most of what fits is found.

    Found by the hashes of their beginnings, block by block; that the tokens are equal is looked at.
    """

    def __init__(self, most: int) -> None:
        self._most, self._bytes = most, 0
        self._kept: dict[int, _Kept] = {}
        self._numbers, self._lot = list[int](), Random(0)
        self._by_hash: dict[int, int] = {}
        self._next = 0

    def __len__(self) -> int:
        """How many prompts are remembered."""
        return len(self._kept)

    def find(self, prompt: tuple[int, ...], end: int) -> tuple[int, torch.Tensor] | None:
        """How many of the first ``end`` tokens a recent prompt had too, and its states; None where it is not worth it."""
        best: int | None = None
        for key in _hashes(prompt[:end]):
            if key not in self._by_hash:
                break
            best = self._by_hash[key]
        if best is None:
            return None
        kept = self._kept[best]
        length = min(common(prompt, kept.tokens), end)
        if length < WORTH:
            return None
        return length, kept.states

    def wants(self, size: int) -> bool:
        """Whether a prompt of ``size`` bytes is remembered at all: one that would push out all others is not."""
        return 0 < size <= self._most // 2

    def keep(self, tokens: tuple[int, ...], states: torch.Tensor) -> None:
        """Remember a prompt."""
        number, self._next = self._next, self._next + 1
        kept = _Kept(tokens, states, list(_hashes(tokens)))
        self._bytes += _size(states)
        while self._numbers and self._bytes > self._most:
            self._forget()
        self._kept[number] = kept
        self._numbers.append(number)
        self._by_hash.update(dict.fromkeys(kept.keys, number))

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()
        self._numbers.clear()
        self._by_hash.clear()
        self._bytes = 0

    def _forget(self) -> None:
        place = self._lot.randrange(len(self._numbers))
        self._numbers[place], self._numbers[-1] = self._numbers[-1], self._numbers[place]
        number = self._numbers.pop()
        kept = self._kept.pop(number)
        self._bytes -= _size(kept.states)
        for key in kept.keys:
            if self._by_hash.get(key) == number:
                del self._by_hash[key]


def _hashes(tokens: tuple[int, ...]) -> Iterator[int]:
    """A hash for each beginning of so many whole blocks."""
    so_far = 0
    for end in range(BLOCK, len(tokens) + 1, BLOCK):
        so_far = hash((so_far, tokens[end - BLOCK : end]))
        yield so_far


def _size(states: torch.Tensor) -> int:
    return states.numel() * states.element_size()
