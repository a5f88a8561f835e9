"""The early warning: said once, as soon as more than a small share was cut off before an answer, with the setting's name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from tests.helpers import Log, question

from cowest.assembly.context import Context
from cowest.stages.watch import CutWatch
from cowest.tasks.base import CLASS_METRICS, SimpleTask
from cowest.types import Draft, Prediction, Score

TASK = SimpleTask("t", CLASS_METRICS, ("yes", "no"), "say", {"test": (question(),)})


def watch(log: Log, items: int) -> CutWatch:
    context = cast(Context, SimpleNamespace(task=TASK, reporter=log, label="towns: "))
    return CutWatch(context, "evaluate strong", "evaluate.answer.max_tokens", items)


def prediction(text: str | None, truncated: bool) -> Prediction:
    return Prediction(example_id="q1", system="strong", text=text, truncated=truncated)


CUT, CUT_IN_THINKING = prediction("Let me see", True), prediction(None, True)
CUT_LATER, WHOLE = prediction("Answer: yes, since", True), prediction("Answer: yes", False)


def test_it_warns_at_the_first_batch_and_only_once() -> None:
    log = Log()
    looking = watch(log, 500)
    for number in range(200):
        looking.see(CUT if number % 4 == 0 else WHOLE)
        assert len(log.lines) == (number >= 19)
    assert "towns: evaluate strong: warning: 5 of the first 20" in log.lines[0]
    assert "evaluate.answer.max_tokens" in log.lines[0]


def test_thinking_that_was_cut_off_counts_and_so_does_a_share_that_grows_later() -> None:
    log = Log()
    looking = watch(log, 500)
    for number in range(60):
        looking.see(CUT_IN_THINKING if number >= 40 else WHOLE)
    assert len(log.lines) == 1 and "3 of the first 43" in log.lines[0]


def test_a_small_share_a_later_cut_and_failures_say_nothing() -> None:
    log = Log()
    looking = watch(log, 500)
    for number in range(200):
        looking.see(CUT if number == 30 else CUT_LATER)
    looking.see(Prediction(example_id="q1", system="strong", text=None, error="timeout: late"))
    looking.see(Score(value=1.0))
    assert log.lines == []


def test_fewer_queries_than_a_first_batch() -> None:
    log = Log()
    looking = watch(log, 2)
    looking.see(Draft(id="q1#0", example_id="q1", index=0, text="Hm", truncated=True))
    assert log.lines == []
    looking.see(Draft(id="q9#1", example_id="unknown", index=1, text="Answer: yes", truncated=True))
    assert "2 of the first 2" in log.lines[0]
