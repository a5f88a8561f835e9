"""BM25 over a task's documents, by bm25s (Lu 2024, arXiv 2407.03618): scores are computed when indexing, a query only adds up."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from cowest.errors import MissingExtraError
from cowest.retrieval.documents import Document, check_documents
from cowest.types import Passage

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """Lower-case words and numbers, also of one character: "7 mg" is what a question may turn on. No stemming, no stop words."""
    return _WORD.findall(text.casefold())


class Bm25Retriever:
    """Implements :class:`cowest.protocols.Retriever` with Lucene's BM25 (k1 1.5, b 0.75).

    A document that shares no word with the query is never a hit. Ties go to the document that comes first. Raises DataError for
    no documents and MissingExtraError without bm25s.
    """

    def __init__(self, documents: Sequence[Document]) -> None:
        try:
            import bm25s
        except ImportError:
            raise MissingExtraError("BM25 needs bm25s: pip install 'cowest[retrieval]'") from None
        self._documents = tuple(document for document in documents if words(document.text))
        check_documents(self._documents, "BM25 searches words" if documents else "none was given")
        self._index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
        self._index.index([words(d.text) for d in self._documents], show_progress=False)
        self._known = frozenset(self._index.vocab_dict)

    def search(self, query: str, k: int) -> Sequence[Passage]:
        """The at most ``k`` best documents; none for a query without a known word."""
        known = [word for word in words(query) if word in self._known]
        if not known or k < 1:
            return ()
        scores = self._index.get_scores(known)
        return tuple(
            Passage(id=self._documents[i].id, text=self._documents[i].text, score=float(scores[i]))
            for i in best(scores, k)
            if scores[i] > 0
        )


def best(scores: np.ndarray, k: int) -> list[int]:
    """Indices of the ``k`` highest scores, highest first; of equal ones the first."""
    k = min(k, len(scores))
    edge = np.partition(scores, len(scores) - k)[len(scores) - k]  # the k-th highest
    candidates = np.flatnonzero(scores >= edge)
    order: list[int] = candidates[np.argsort(-scores[candidates], kind="stable")].tolist()
    return order[:k]
