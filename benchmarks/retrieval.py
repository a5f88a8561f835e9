"""BM25 over PubMedQA's 1,000 abstracts: indexing and searching, against the same scores by plain numpy (and rank_bm25).

Peer ``numpy``: the weights of Lucene's BM25 as a dense matrix (documents, words), a query's scores as one matrix-vector product.
Peer ``rank_bm25`` takes part where it is installed. All split text in the same way and search the 1,000 questions for the best
five, on one thread, in interleaved runs; medians. ``agreement`` is the share of questions for which our best document is
the numpy peer's.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cowest.recipe.config import PubmedqaTaskConfig
from cowest.retrieval.bm25 import Bm25Retriever, best, words
from cowest.retrieval.documents import Document
from cowest.tasks.base import SPLITS
from cowest.tasks.pubmedqa import load_pubmedqa

TOP = 5
Search = Callable[[str], list[int]]
K1, B = 1.5, 0.75


def abstracts(folder: Path) -> tuple[list[Document], list[str]]:
    task = load_pubmedqa(PubmedqaTaskConfig(kind="pubmedqa", path=folder, context=True))
    examples = [e for split in SPLITS for e in task.examples(split)]
    return [Document(e.id, e.context or "") for e in examples], [e.input for e in examples]


def ours(documents: Sequence[Document]) -> Search:
    retriever = Bm25Retriever(documents)
    where = {document.id: i for i, document in enumerate(documents)}
    return lambda query: [where[passage.id] for passage in retriever.search(query, TOP)]


def plain_numpy(documents: Sequence[Document]) -> Search:
    split = [words(document.text) for document in documents]
    known = {word: i for i, word in enumerate(dict.fromkeys(word for document in split for word in document))}
    counts = np.zeros((len(split), len(known)), dtype=np.float32)
    for row, document in enumerate(split):
        for word, count in Counter(document).items():
            counts[row, known[word]] = count
    lengths = np.array([len(document) for document in split], dtype=np.float32)
    holding = (counts > 0).sum(0)
    idf = np.log(1 + (len(split) - holding + 0.5) / (holding + 0.5)).astype(np.float32)
    weights = idf * counts / (counts + K1 * (1 - B + B * lengths / lengths.mean())[:, None])

    def search(query: str) -> list[int]:
        asked = np.zeros(len(known), dtype=np.float32)
        for word in words(query):
            if word in known:
                asked[known[word]] += 1
        scores = weights @ asked
        return [i for i in best(scores, TOP) if scores[i] > 0]

    return search


def rank_bm25(documents: Sequence[Document]) -> Search:
    library: Any = importlib.import_module("rank_bm25")
    index = library.BM25Okapi([words(document.text) for document in documents], k1=K1, b=B)
    return lambda query: best(index.get_scores(words(query)), TOP)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="the folder with ori_pqal.json; unset: $COWEST_DATA_DIR/pubmedqa")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.data is None and "COWEST_DATA_DIR" not in os.environ:
        sys.exit("give --data, the folder with PubMedQA's ori_pqal.json, or set COWEST_DATA_DIR to the folder above it")
    documents, queries = abstracts(args.data or Path(os.environ["COWEST_DATA_DIR"]) / "pubmedqa")
    systems: dict[str, Callable[[Sequence[Document]], Search]] = {"ours": ours, "numpy": plain_numpy}
    if find_spec("rank_bm25"):
        systems["rank_bm25"] = rank_bm25
    index_s: dict[str, list[float]] = {name: [] for name in systems}
    search_s: dict[str, list[float]] = {name: [] for name in systems}
    found: dict[str, list[list[int]]] = {}
    for _ in range(args.runs):
        for name, build in systems.items():
            start = time.perf_counter()
            search = build(documents)
            index_s[name].append(time.perf_counter() - start)
            start = time.perf_counter()
            found[name] = [search(query) for query in queries]
            search_s[name].append(time.perf_counter() - start)
    same = sum(a[:1] == b[:1] for a, b in zip(found["ours"], found["numpy"], strict=True)) / len(queries)
    result: dict[str, float] = {"documents": len(documents), "queries": len(queries), "agreement": round(same, 4)}
    index = {name: statistics.median(seconds) for name, seconds in index_s.items()}
    rate = {name: len(queries) / statistics.median(seconds) for name, seconds in search_s.items()}
    for name in systems:
        result |= {f"{name}_index_s": round(index[name], 3), f"{name}_queries_per_s": round(rate[name])}
    for name in list(systems)[1:]:
        result[f"index_ratio_to_{name}"] = round(index[name] / index["ours"], 2)
        result[f"search_ratio_to_{name}"] = round(rate["ours"] / rate[name], 2)
    own = sum(i in top for i, top in enumerate(found["ours"])) / len(queries)
    result["own_abstract_in_top_5"] = round(own, 3)
    if args.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:28} {value}")


if __name__ == "__main__":
    main()
