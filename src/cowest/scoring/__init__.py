"""Scores: per-query metrics and the metric scorer. Paired statistics (scipy) live in ``scoring.statistics``."""

from cowest.scoring.metrics import METRICS, Metric, accuracy, exact_match, get_metric, macro_f1, token_f1
from cowest.scoring.normal import answer_key
from cowest.scoring.scorer import MetricScorer

__all__ = [
    "METRICS",
    "Metric",
    "MetricScorer",
    "accuracy",
    "answer_key",
    "exact_match",
    "get_metric",
    "macro_f1",
    "token_f1",
]
