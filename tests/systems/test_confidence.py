from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from cowest.systems.confidence import Sentence, confidence_of, sentences_of
from cowest.types import Completion, TokenLogprob


def completion(*tokens: tuple[str, float]) -> Completion:
    scored = tuple(TokenLogprob(token=token, logprob=math.log(p)) for token, p in tokens)
    return Completion(text="".join(token for token, _ in tokens), logprobs=scored)


def masked(done: Completion, threshold: float) -> list[tuple[str, bool, str]]:
    found: Sequence[Sentence] = sentences_of(done) or ()
    return [(s.text, s.unsure(threshold), s.without(threshold)) for s in found]


def test_sentences_and_lines_with_the_words_that_are_unsure() -> None:
    done = completion(
        ("Vel", 0.9), ("mo", 0.3), (" is", 0.9), (" safe", 0.9), (".", 0.1), (" K", 0.9), ("asti", 0.9),
        ("\n", 0.1), ("Answer", 0.9), (":", 0.9), (" no", 0.2),
    )  # fmt: skip
    assert masked(done, 0.5) == [
        ("Velmo is safe.", True, "is safe."),  # the whole word goes, and an improbable full stop counts for nothing
        ("Kasti", False, "Kasti"),
        ("Answer: no", True, "Answer:"),
    ]


def test_a_token_at_the_threshold_is_sure() -> None:
    assert masked(completion(("yes", 0.5)), 0.5) == [("yes", False, "yes")]


def test_a_token_that_spans_two_sentences_belongs_to_both() -> None:
    assert masked(completion(("A. B", 0.2), (" c", 0.9)), 0.5) == [("A.", True, ""), ("B c", True, "c")]


def test_the_confidence_is_the_mean_over_the_answers_tokens_where_it_stands_last() -> None:
    done = completion(("no", 0.1), ("?\nAnswer", 0.9), (":", 0.8), (" N", 0.6), ("o", 0.4), (".", 0.2))
    assert confidence_of(done, "no") == pytest.approx(0.5)


def test_an_answer_that_is_not_in_the_text_has_no_confidence() -> None:
    assert confidence_of(completion(("Answer: no", 0.5)), "yes") is None


@pytest.mark.parametrize("logprobs", [None, ()])
def test_without_log_probabilities_nothing_is_known(logprobs: tuple[TokenLogprob, ...] | None) -> None:
    done = Completion(text="Answer: no", logprobs=logprobs)
    assert confidence_of(done, "no") is None and sentences_of(done) is None
