from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from cowest.errors import DataError
from cowest.retrieval.dense import DenseRetriever
from cowest.retrieval.documents import Document

DOCUMENTS = (Document("a", "aaab"), Document("b", "bbb"), Document("c", "ab"), Document("d", "abab"))


class Letters:
    """Embeds a text by how many a's and b's it has."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        counts = np.array([[text.count("a"), text.count("b")] for text in texts], dtype=np.float32)
        unit: np.ndarray = counts / np.linalg.norm(counts, axis=1, keepdims=True)
        return unit


def test_the_nearest_come_first_with_their_cosines() -> None:
    found = DenseRetriever(DOCUMENTS, Letters()).search("a", 2)
    assert [(p.id, p.text) for p in found] == [("a", "aaab"), ("c", "ab")]
    assert [p.score for p in found] == pytest.approx([3 / 10**0.5, 1 / 2**0.5])


def test_of_equally_near_ones_the_first_wins() -> None:
    assert [p.id for p in DenseRetriever(DOCUMENTS, Letters()).search("ab", 9)] == ["c", "d", "a", "b"]


@pytest.mark.parametrize(("query", "k"), [("", 3), (" \n", 3), ("a", 0)])
def test_nothing_to_look_for_finds_nothing(query: str, k: int) -> None:
    assert DenseRetriever(DOCUMENTS, Letters()).search(query, k) == ()


def test_prefixes_go_before_queries_and_passages() -> None:
    letters = Letters()
    DenseRetriever(DOCUMENTS[:2], letters, "query: ", "passage: ").search("b", 1)
    assert letters.asked == ["passage: aaab", "passage: bbb", "query: b"]


def test_an_index_over_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match="no documents to search"):
        DenseRetriever([], Letters())
