"""The evaluator E(answer, x) of the paper's step 5, by a task's own metric against the references.

The paper's E is an LLM judge; a metric costs nothing and does not share the strong model's taste. A judge fits
behind the same ``Scorer`` protocol. A text without an answer is wrong (0.0); no text at all is unscored (None).
"""

from __future__ import annotations

from cowest.errors import ConfigError
from cowest.protocols import Scorer, Task
from cowest.recipe.registry import Registry
from cowest.scoring.metrics import METRICS, get_metric
from cowest.types import Example, Score

CUT_OFF = "cut off at max_tokens"
"""How the reason begins for a text that was cut off before it came to an answer."""


def cut_score(score: Score, max_tokens: int | None = None) -> Score:
    """The score of a text that was cut off: as it is where there was an answer, else unscored, neither right nor wrong."""
    if score.answer is not None or (score.error is not None and not score.error.startswith("no text")):
        return score
    return Score(value=None, error=f"{CUT_OFF}{'' if max_tokens is None else f' {max_tokens}'} before an answer")


SCORERS: Registry[Scorer] = Registry("scorer", "cowest.scorers", {}, ("score",))
"""Scorers that installed packages bring; cowest's own are chosen by ``feedback.metric`` and ``feedback.judge``."""


class MetricScorer:
    """Scores texts by a per-query metric in [0, 1]: "accuracy" for classes, "em" or "f1" for open answers.

    Raises:
        ConfigError: the metric is unknown, or exists only for a whole set of queries (macro_f1).
    """

    def __init__(self, task: Task, metric: str) -> None:
        """``task`` reads the answer out of a text; ``metric`` values it."""
        per_query = get_metric(metric).per_query
        if per_query is None:
            usable = ", ".join(name for name, known in METRICS.items() if known.per_query)
            raise ConfigError(f"metric {metric!r} has no value for a single query; score by one of {usable}")
        self._task = task
        self._value = per_query

    async def score(self, example: Example, text: str | None) -> Score:
        """The metric's value for the answer in ``text``; ``value`` is None where there is no text, or no reference."""
        if text is None:
            return Score(value=None, error="no text: the model gave no answer to score")
        if not example.references:
            return Score(value=None, error="no reference: the question has no answer to compare with")
        answer = self._task.extract(text, example)
        if answer is None:
            return Score(value=0.0, explanation="no answer found")
        return Score(value=self._value(answer, example.references), answer=answer)
