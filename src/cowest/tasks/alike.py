"""Questions that are equal, or nearly, among any number of them.

Equal: the same words in the same order, whatever their case, punctuation and spaces. Nearly: by MinHash (Broder 1997) with bands
(Leskovec et al., Mining of Massive Datasets, 3.4), of words that weigh by how rare they are, and with the same numbers: a template
("May a patient with X take N mg of Y?") says nothing, so that its questions are not taken for one.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterator
from hashlib import blake2b
from typing import Final

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.uint64]
BANDS: Final = 6
IN_BAND: Final = 8
"""Two questions meet in a band with probability s^8 for a similarity of s: found are 97% at 0.9, 67% at 0.8, 10% at 0.6."""
MOST_COPIES: Final = 4
"""How often a word counts that only one question has."""
_TABLE: Final = 1 << 18
_WORD: Final = re.compile(r"\w+")
_NUMBER: Final = re.compile(rb"(?<!\S)[^\s\d]*\d\S*")
MOST_WORDS: Final = 4000
"""Words of a text that are looked at; the rest of a longer one tells no more."""
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)


def words_of(text: str) -> bytes:
    """The words as they are compared, with spaces between them; the text itself where it has no word."""
    folded = (text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold()
    return (" ".join(_WORD.findall(folded)) or " ".join(folded.split())).encode(errors="surrogatepass")


def key_of(words: bytes) -> int:
    """64 bits that equal texts share."""
    return int.from_bytes(blake2b(words, digest_size=8).digest(), "little")


def hashes_of(words: bytes) -> list[int]:
    """The different words of a text, as 32 bits each."""
    return sorted(set(map(zlib.crc32, words.split()[:MOST_WORDS])))


def numbers_key(words: bytes) -> int:
    """32 bits of the numbers in a text."""
    return zlib.crc32(b" ".join(sorted(_NUMBER.findall(words))))


class Words:
    """How many texts have each word, in a table of 2 MB: words that share a place there count together."""

    def __init__(self) -> None:
        self._counts = np.zeros(_TABLE, dtype=np.int64)
        self._texts = 0

    def count(self, hashes: NDArray[np.uint32], texts: int) -> None:
        """Count the :func:`hashes_of` so many texts, one after another."""
        self._counts += np.bincount(hashes % _TABLE, minlength=_TABLE)
        self._texts += texts

    def weights(self, hashes: NDArray[np.uint32]) -> NDArray[np.int64]:
        """How often each word counts: 0 for one that all texts have, up to MOST_COPIES."""
        rare = np.log(self._texts / np.maximum(1, self._counts[hashes % _TABLE])) / np.log(max(2, self._texts))
        found: NDArray[np.int64] = np.maximum(0, np.rint(MOST_COPIES * rare)).astype(np.int64)
        return found


def bands(words: Words, hashes: NDArray[np.uint32], lengths: NDArray[np.int64], numbers: NDArray[np.uint32]) -> Ints:
    """Shape (texts, BANDS): texts that share a value of a column are nearly equal. 0: a text without words that tell.

    ``hashes`` are the texts' words one after another, ``lengths`` how many each has, ``numbers`` their :func:`numbers_key`.
    """
    weights = words.weights(hashes)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    copies = np.repeat(hashes.astype(np.uint64), weights)
    text = np.repeat(owner, weights)
    if not len(copies):
        return np.zeros((len(lengths), BANDS), dtype=np.uint64)
    ends = np.cumsum(weights)
    nth = np.arange(len(copies), dtype=np.uint64) - np.repeat((ends - weights).astype(np.uint64), weights)
    items = _mixed(copies + (nth << np.uint64(33)))
    starts = np.flatnonzero(np.r_[True, text[1:] != text[:-1]])
    present = text[starts]
    out = np.zeros((len(lengths), BANDS), dtype=np.uint64)
    for band in range(BANDS):
        value = numbers[present].astype(np.uint64) + np.uint64(band + 1)
        for i in range(IN_BAND):
            salt = _mixed(np.array([band * IN_BAND + i + 1], dtype=np.uint64))
            value = _mixed(value ^ np.minimum.reduceat(_mixed(items ^ salt), starts))
        out[present, band] = value | np.uint64(1)
    return out


def _mixed(values: Ints) -> Ints:
    """A bijection of 64 bits (the finaliser of splitmix64)."""
    x = values * _MIX
    x ^= x >> np.uint64(32)
    x *= np.uint64(0xD6E8FEB86659FD93)
    x ^= x >> np.uint64(29)
    return x


def links(keys: Ints, skip_zero: bool = True) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Pairs of positions with equal keys, one chain a key; nothing for keys that are 0."""
    order = np.argsort(keys, kind="stable").astype(np.int32)
    ordered = keys[order]
    same = ordered[1:] == ordered[:-1]
    if skip_zero:
        same &= ordered[1:] != 0
    at = np.flatnonzero(same)
    if len(at):
        yield order[at], order[at + 1]


def groups(n: int, pairs: list[tuple[NDArray[np.int32], NDArray[np.int32]]]) -> NDArray[np.int32]:
    """A group's number for each of ``n`` positions: those that pairs tie together share one."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not pairs:
        return np.arange(n, dtype=np.int32)
    one, other = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
    graph = coo_matrix((np.ones(len(one), dtype=np.int8), (one, other)), shape=(n, n))
    found: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return found
