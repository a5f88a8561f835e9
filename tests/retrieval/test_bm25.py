from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowest.errors import DataError, MissingExtraError
from cowest.retrieval.bm25 import Bm25Retriever, best, words
from cowest.retrieval.documents import Document

TEXTS = ("Velmo is safe up to 62 mg.", "Kasti lowers limits by 7 mg.", "Velmo, Velmo and Velmo!", "Lund fell in 1931.")
DOCUMENTS = tuple(Document(f"d{i}", text) for i, text in enumerate(TEXTS))


def ids(query: str, k: int = 4) -> list[str]:
    return [passage.id for passage in Bm25Retriever(DOCUMENTS).search(query, k)]


def bm25(query: str, text: str) -> float:
    """Lucene's BM25 written out; scores there lack the constant factor k1 + 1."""
    split = [words(t) for t in TEXTS]
    average = sum(map(len, split)) / len(split)
    score = 0.0
    for word in words(query):
        holding = sum(word in document for document in split)
        if holding:
            idf = math.log(1 + (len(split) - holding + 0.5) / (holding + 0.5))
            count = words(text).count(word)
            score += idf * count / (count + 1.5 * (1 - 0.75 + 0.75 * len(words(text)) / average))
    return score


def test_scores_are_those_of_the_formula() -> None:
    query = "May a patient with KASTI take 7 mg of Velmo?"
    found = Bm25Retriever(DOCUMENTS).search(query, 10)
    expected = {f"d{i}": bm25(query, text) for i, text in enumerate(TEXTS)}
    assert {p.id: p.score for p in found} == pytest.approx({i: s for i, s in expected.items() if s > 0}, rel=1e-5)
    assert [p.id for p in found] == sorted((i for i in expected if expected[i] > 0), key=lambda i: -expected[i])
    assert found[0].text == TEXTS[1]


def test_a_number_of_one_digit_is_a_word() -> None:
    assert ids("7") == ["d1"]


def test_k_is_a_limit_and_what_shares_no_word_is_no_hit() -> None:
    assert ids("velmo", 1) == ["d2"]
    assert ids("velmo") == ["d2", "d0"]


@pytest.mark.parametrize("query", ["", "  ", "?!", "unheard", "Zürich 東京"])
def test_a_query_with_nothing_to_look_for_finds_nothing(query: str) -> None:
    assert ids(query) == []


def test_k_of_zero_finds_nothing() -> None:
    assert ids("velmo", 0) == []


def test_words_of_any_script_are_found() -> None:
    retriever = Bm25Retriever([Document("a", "Straße in 東京"), Document("b", "Ärzte")])
    assert [p.id for p in retriever.search("STRASSE", 2)] == ["a"]
    assert [p.id for p in retriever.search("ärzte", 2)] == ["b"]


def test_documents_without_a_word_do_no_harm() -> None:
    retriever = Bm25Retriever([Document("a", "..."), Document("b", "Velmo")])
    assert [p.id for p in retriever.search("velmo", 5)] == ["b"]
    with pytest.raises(DataError, match="BM25 searches words"):
        Bm25Retriever([Document("a", "...")])


def test_an_index_over_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match="no documents to search"):
        Bm25Retriever([])


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MissingExtraError, match=r"cowest\[retrieval\]"):
        Bm25Retriever(DOCUMENTS)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 40))
def test_the_best_are_the_highest_and_of_equal_ones_the_first(scores: list[int], k: int) -> None:
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
    assert best(np.array(scores, dtype=np.float32), k) == expected
