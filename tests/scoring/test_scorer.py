"""The metric scorer: wrong is 0.0, unscored is None."""

from __future__ import annotations

import pytest

from cowest.errors import ConfigError
from cowest.protocols import Scorer
from cowest.scoring.scorer import MetricScorer
from cowest.tasks.base import CLASS_METRICS, OPEN_METRICS, SimpleTask
from cowest.types import Example

CLASSES = SimpleTask("c", CLASS_METRICS, ("yes", "no"), "say", {})
OPEN = SimpleTask("o", OPEN_METRICS, (), "say", {})
QUERY = Example(id="1", input="q", references=("yes",))


async def test_scores_the_extracted_answer() -> None:
    scorer: Scorer = MetricScorer(CLASSES, "accuracy")
    score = await scorer.score(QUERY, "No doubt.\nAnswer: Yes.")
    assert (score.value, score.answer, score.error) == (1.0, "yes", None)
    assert (await scorer.score(QUERY, "Answer: no")).value == 0.0


async def test_no_answer_is_wrong_and_no_text_is_unscored() -> None:
    scorer = MetricScorer(CLASSES, "accuracy")
    unanswered = await scorer.score(QUERY, "I cannot tell.")
    assert (unanswered.value, unanswered.answer, unanswered.explanation) == (0.0, None, "no answer found")
    unscored = await scorer.score(QUERY, None)
    assert unscored.value is None
    assert unscored.error is not None and unscored.error.startswith("no text")


async def test_open_answers_by_f1_or_em() -> None:
    example = Example(id="1", input="q", references=("red house",))
    assert (await MetricScorer(OPEN, "f1").score(example, "Answer: house")).value == pytest.approx(2 / 3)
    assert (await MetricScorer(OPEN, "em").score(example, "Answer: The Red House.")).value == 1.0


@pytest.mark.parametrize(("metric", "message"), [("macro_f1", "single query"), ("bleu", "there is no metric")])
def test_refuses_a_metric_without_per_query_value(metric: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MetricScorer(CLASSES, metric)
