"""Dense retrieval over a task's documents: nearest embeddings by cosine, exact, with numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from cowest.retrieval.bm25 import best
from cowest.retrieval.documents import Document, check_documents
from cowest.types import Passage


class Embedder(Protocol):
    """Turns texts into vectors. Blocking, and safe to call from several threads."""

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """A float32 array (texts, dimensions) whose rows have length 1."""
        ...


class DenseRetriever:
    """Implements :class:`cowest.protocols.Retriever`; ``score`` is the cosine, in [-1, 1].

    ``query_prefix`` and ``passage_prefix`` go before each text, for models that were trained with them (E5: "query: " and
    "passage: "). Every document is a hit, however far; ties go to the one that comes first. Raises DataError for no documents.
    """

    def __init__(
        self, documents: Sequence[Document], embedder: Embedder, query_prefix: str = "", passage_prefix: str = ""
    ) -> None:
        self._documents = tuple(documents)
        check_documents(self._documents)
        self._embedder, self._query_prefix = embedder, query_prefix
        self._vectors = embedder.embed([passage_prefix + document.text for document in self._documents])

    def search(self, query: str, k: int) -> Sequence[Passage]:
        """The ``k`` nearest documents; none for a blank query."""
        if not query.strip() or k < 1:
            return ()
        scores = self._vectors @ self._embedder.embed([self._query_prefix + query])[0]
        return tuple(
            Passage(id=self._documents[i].id, text=self._documents[i].text, score=float(scores[i]))
            for i in best(scores, k)
        )
