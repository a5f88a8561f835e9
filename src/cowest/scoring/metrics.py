"""Answer metrics: exact match and token F1 for open answers, accuracy and macro-F1 for classes.

Source: SQuAD's official evaluation (Rajpurkar et al. 2016) - lower case, no punctuation, no articles, single
spaces; the best over the references counts. The paper reports EM/F1 on IfQA and accuracy/macro-F1 elsewhere.

Departures from SQuAD, each because the original calls a wrong answer right or the reverse:

- Unicode is folded first (NFKC, typographic minus), and all Unicode punctuation is dropped, not only ASCII.
- A number keeps its sign, decimal point and slash, as in DROP's evaluation: ``-5`` is not ``5``, ``1.5`` not ``15``.
- Texts of which nothing is left ("The" against "A") are compared as they were before the removal.

One row: answer ``The 4,200 m.``, references ``("4200 m",)`` -> em 1.0, f1 1.0.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from cowest.errors import ConfigError

_ARTICLES = frozenset({"a", "an", "the"})
_SIGNS = str.maketrans({"\u2212": "-", "\u2044": "/"})  # minus sign, and the slash that NFKC puts into one half
# In a number these carry the value: a sign before it, a point or a slash inside it, a point that opens it.
_NUMERIC = re.compile(r"(?<!\w)-(?=\.?\d)|(?<=\d)[./](?=\d)|(?<!\S)\.(?=\d)")


def _fold(text: str) -> str:
    """Case, width and spacing folded; every character that carries meaning kept."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.translate(_SIGNS).split())


def _is_punctuation(char: str) -> bool:
    return char in string.punctuation or unicodedata.category(char).startswith("P")


def normalise(text: str) -> str:
    """``text`` as SQuAD compares it (with the departures in the module docstring); may be empty."""
    folded = _fold(text)
    keep = {match.start() for match in _NUMERIC.finditer(folded)}
    bare = "".join(char for i, char in enumerate(folded) if i in keep or not _is_punctuation(char))
    return " ".join(token for token in bare.split() if token not in _ARTICLES)


def answer_key(answer: str) -> tuple[str, str]:
    """Equal for two open answers exactly if one is an exact match of the other."""
    bare = normalise(answer)
    return bare, "" if bare else _fold(answer)


def _same(answer: str, reference: str) -> bool:
    return answer_key(answer) == answer_key(reference)


def _pair_f1(answer: str, reference: str) -> float:
    left, right = normalise(answer).split(), normalise(reference).split()
    if not left or not right:
        return float(_same(answer, reference))
    shared = sum((Counter(left) & Counter(right)).values())
    return 2 * shared / (len(left) + len(right))


def exact_match(answer: str | None, references: Sequence[str]) -> float:
    """1.0 if the normalised answer equals one of the references, else 0.0; None (no answer found) is wrong."""
    return 0.0 if answer is None else float(any(_same(answer, reference) for reference in references))


def token_f1(answer: str | None, references: Sequence[str]) -> float:
    """Harmonic mean of token precision and recall in [0, 1], best over the references; None is 0.0."""
    return 0.0 if answer is None else max((_pair_f1(answer, reference) for reference in references), default=0.0)


def accuracy(answer: str | None, references: Sequence[str]) -> float:
    """1.0 if the answer is one of the references to the letter, else 0.0.

    No normalisation: ``Task.extract`` returns the label itself, and labels may be articles ("A", "B", "C").
    """
    return float(answer in references)


def true_label(answer: str | None, references: Sequence[str]) -> str:
    """The class that a query counts for in macro-F1: the answer where it is right, else the first reference."""
    return answer if answer is not None and answer in references else references[0]


def macro_f1(answers: Sequence[str | None], references: Sequence[Sequence[str]], labels: Sequence[str]) -> float:
    """Unweighted mean over ``labels`` of the per-class F1, in [0, 1].

    Equal to scikit-learn's ``f1_score(average="macro", labels=labels, zero_division=0)``. An answer outside the
    labels, or None, is a miss of its true class and a prediction of none.

    Raises:
        ValueError: no answers, no labels, or ``answers`` and ``references`` differ in length.
    """
    if not answers or not labels:
        raise ValueError("macro_f1 needs at least one answer and one label")
    truth = [true_label(a, r) for a, r in zip(answers, references, strict=True)]
    predicted, actual = Counter(answers), Counter(truth)
    hits = Counter(t for a, t in zip(answers, truth, strict=True) if a == t)
    sizes = {label: predicted[label] + actual[label] for label in labels}
    return sum(2 * hits[label] / sizes[label] if sizes[label] else 0.0 for label in labels) / len(labels)


@dataclass(frozen=True)
class Metric:
    """How a metric is computed: the mean of per-query values, or one number for the whole set."""

    name: str
    kind: Literal["mean", "set"]
    title: str
    per_query: Callable[[str | None, Sequence[str]], float] | None = None
    """The value of one query, where ``kind`` is "mean"."""
    binary: bool = False
    """Whether a query is simply right or wrong, so that McNemar's test applies."""


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "em": Metric("em", "mean", "exact match", exact_match, binary=True),
        "f1": Metric("f1", "mean", "token F1", token_f1),
        "accuracy": Metric("accuracy", "mean", "accuracy", accuracy, binary=True),
        "macro_f1": Metric("macro_f1", "set", "macro-F1"),
    }
)
"""Every metric that results.json may name."""


def get_metric(name: str) -> Metric:
    """The metric called ``name``.

    Raises:
        ConfigError: there is none.
    """
    if name not in METRICS:
        raise ConfigError(f"unknown metric {name!r}; known are {', '.join(METRICS)}")
    return METRICS[name]
