"""Answer metrics: exact match and token F1 for open answers, accuracy and macro-F1 for classes.

``em`` and ``f1`` compare in the form of :mod:`cowest.scoring.normal`, best over the references; F1 counts words, and characters in
scripts that put no spaces between words, as the evaluations of CMRC 2018 and MLQA do. ``squad_em`` and ``squad_f1`` are
SQuAD's official evaluation to the letter (Rajpurkar et al. 2016), for benchmarks that are scored by it. The paper reports
EM/F1 on IfQA and accuracy/macro-F1 elsewhere.

One row: answer ``The 4,200 m.``, references ``("4200 m",)`` -> em 1.0, f1 1.0.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from cowest.errors import ConfigError
from cowest.recipe.registry import Registry
from cowest.scoring.normal import normalise, same_answer
from cowest.scoring.scripts import units

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _overlap(left: Sequence[str], right: Sequence[str]) -> float:
    """F1 of two bags of tokens, neither of them empty."""
    shared = sum((Counter(left) & Counter(right)).values())
    return 2 * shared / (len(left) + len(right))


def _pair_f1(answer: str, reference: str) -> float:
    left, right = units(normalise(answer)), units(normalise(reference))
    return _overlap(left, right) if left and right else float(same_answer(answer, reference))


def _squad(text: str) -> str:
    """``normalize_answer`` of SQuAD's evaluate-v1.1.py and v2.0.py."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_NO_PUNCTUATION)).split())


def _squad_pair_f1(answer: str, reference: str) -> float:
    left, right = _squad(answer).split(), _squad(reference).split()
    return _overlap(left, right) if left and right else float(left == right)


def exact_match(answer: str | None, references: Sequence[str]) -> float:
    """1.0 if the normalised answer equals one of the references, else 0.0; None (no answer found) is wrong."""
    return 0.0 if answer is None else float(any(same_answer(answer, reference) for reference in references))


def token_f1(answer: str | None, references: Sequence[str]) -> float:
    """Harmonic mean of token precision and recall in [0, 1], best over the references; None is 0.0."""
    return 0.0 if answer is None else max((_pair_f1(answer, reference) for reference in references), default=0.0)


def squad_exact_match(answer: str | None, references: Sequence[str]) -> float:
    """SQuAD's exact match, best over the references; None is 0.0."""
    return 0.0 if answer is None else float(any(_squad(answer) == _squad(reference) for reference in references))


def squad_f1(answer: str | None, references: Sequence[str]) -> float:
    """SQuAD's token F1, best over the references; None is 0.0."""
    return 0.0 if answer is None else max((_squad_pair_f1(answer, reference) for reference in references), default=0.0)


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
        "squad_em": Metric("squad_em", "mean", "exact match (SQuAD's script)", squad_exact_match, binary=True),
        "squad_f1": Metric("squad_f1", "mean", "token F1 (SQuAD's script)", squad_f1),
        "accuracy": Metric("accuracy", "mean", "accuracy", accuracy, binary=True),
        "macro_f1": Metric("macro_f1", "set", "macro-F1"),
    }
)
"""Every metric that a recipe may name."""
PREFERRED: Final = "preferred"
"""What is measured without references (``feedback.compare``): how often judges prefer an answer to the strong model's alone, 1/2
where they are the same. Results name it; a recipe cannot."""
_PREFERRED: Final = Metric(PREFERRED, "mean", "preferred to the strong model alone")

_KNOWN: Registry[Metric] = Registry("metric", "cowest.metrics", METRICS, ("name", "kind", "per_query"))
_HANDED: dict[str, Metric] = {}


def use_metric(metric: Metric) -> str:
    """Make a metric that a script has handed over known in this process by its name, which is returned.

    Raises:
        ConfigError: its name is that of another metric.
    """
    if metric.name in (*METRICS, PREFERRED) or _HANDED.setdefault(metric.name, metric) != metric:
        raise ConfigError(f"metric {metric.name!r}: there is another metric of this name; give yours a name of its own")
    return metric.name


def get_metric(name: str, where: str = "metric") -> Metric:
    """The metric called ``name``: one of cowest's, one that was handed over, or an installed package's (``cowest.metrics``).

    Raises:
        ConfigError: there is none; ``where`` is the setting that names it.
    """
    if name == PREFERRED and where == "metric":
        return _PREFERRED
    return _HANDED.get(name) or _KNOWN.find(name, where)
