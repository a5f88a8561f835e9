"""Draft, refine, solo and feedback, one call each."""

from __future__ import annotations

import pytest
from tests.helpers import question

from cowest.collaboration.draft import draft
from cowest.collaboration.feedback import feedback
from cowest.collaboration.prompts import DefaultFrames
from cowest.collaboration.refine import refine, solo
from cowest.errors import ModelCallError
from cowest.models.scripted import ScriptedChatModel, ScriptRule
from cowest.scoring.scorer import MetricScorer
from cowest.tasks.base import SimpleTask
from cowest.types import Draft, Feedback, Refinement, Sampling, Score

FRAMES = DefaultFrames("Answer yes or no.")
DOWN = ModelCallError("timeout", "no answer within 3 s")
SAMPLING = Sampling(temperature=0.7, seed=4, max_tokens=9)


def saying(text: str, *fail: ModelCallError | None) -> ScriptedChatModel:
    return ScriptedChatModel(lambda messages, sampling: text, fail=fail)


async def test_a_draft() -> None:
    weak = saying("I think so.\nAnswer: yes")
    made = await draft(weak, FRAMES, question(), 2, SAMPLING)
    assert (made.id, made.example_id, made.index, made.error) == ("q1#2", "q1", 2, None)
    assert made.text == "I think so.\nAnswer: yes" and made.usage.calls == 1
    assert weak.requests[0].messages == FRAMES.draft(question()) and weak.requests[0].sampling == SAMPLING


async def test_a_refinement_and_the_strong_model_alone() -> None:
    strong = saying("Answer: no")
    first = Draft(id="q1#0", example_id="q1", index=0, text="maybe")
    made = await refine(strong, FRAMES, question(), first, SAMPLING)
    assert (made.example_id, made.draft_id, made.text) == ("q1", "q1#0", "Answer: no")
    alone = await solo(strong, FRAMES, question(), SAMPLING)
    assert (alone.example_id, alone.draft_id, alone.text) == ("q1", None, "Answer: no")
    assert [r.messages for r in strong.requests] == [FRAMES.refine(question(), "maybe"), FRAMES.solo(question())]


async def test_a_failed_call_is_no_text_and_a_reason() -> None:
    first = Draft(id="q1#0", example_id="q1", index=0, text="maybe")
    made: list[Draft | Refinement] = [
        await draft(saying("x", DOWN), FRAMES, question(), 0, SAMPLING),
        await refine(saying("x", DOWN), FRAMES, question(), first, SAMPLING),
        await solo(saying("x", DOWN), FRAMES, question(), SAMPLING),
    ]
    for record in made:
        assert record.text is None
        assert record.error == "timeout: no answer within 3 s"
        assert record.usage.calls == 0


async def test_there_is_nothing_to_refine_in_a_failed_draft() -> None:
    failed = Draft(id="q1#0", example_id="q1", index=0, text=None, error="empty: nothing")
    strong = saying("x")
    with pytest.raises(ValueError, match="empty: nothing"):
        await refine(strong, FRAMES, question(), failed, SAMPLING)
    assert strong.requests == []


async def test_other_errors_are_not_swallowed() -> None:
    def broken(*_: object) -> str:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        await draft(ScriptedChatModel(broken), FRAMES, question(), 0, SAMPLING)


TASK = SimpleTask("t", ("accuracy",), ("yes", "no"), "Answer yes or no.", {})


@pytest.mark.parametrize(
    ("refined", "alone", "weak", "gain"),
    [
        ("Answer: yes", "Answer: no", "Answer: no", 1.0),
        ("Answer: yes", "Answer: yes", "Answer: no", 0.0),
        ("Answer: no", "Answer: no", "Answer: yes", 0.0),
        ("Answer: no", "Answer: yes", "Answer: yes", -1.0),
        ("I do not know", "Answer: yes", "Answer: yes", -1.0),
        (None, "Answer: no", "Answer: yes", None),
        ("Answer: yes", None, "Answer: yes", None),
        (None, None, "Answer: yes", None),
    ],
)
async def test_gain_is_refined_minus_solo(
    refined: str | None, alone: str | None, weak: str, gain: float | None
) -> None:
    made = await feedback(
        MetricScorer(TASK, "accuracy"),
        question(),
        Draft(id="q1#0", example_id="q1", index=0, text=weak),
        Refinement(example_id="q1", draft_id="q1#0", text=refined, error=None if refined else "timeout: x"),
        Refinement(example_id="q1", draft_id=None, text=alone, error=None if alone else "timeout: x"),
    )
    assert made.gain == gain
    assert made.weak.value == (1.0 if weak == "Answer: yes" else 0.0)
    assert (made.refined.value is None) == (refined is None) and (made.solo.value is None) == (alone is None)


def test_no_score_is_not_zero() -> None:
    scored, none = Score(value=0.0), Score(value=None, error="no text")
    both = Feedback(example_id="q", draft_id="d", refined=scored, solo=scored, weak=none)
    assert both.gain == 0.0 and both.gain is not None
    assert both.model_copy(update={"solo": none}).gain is None


async def test_rules_follow_the_last_user_message() -> None:
    strong = ScriptedChatModel(
        [ScriptRule(contains="<draft>", reply="with"), ScriptRule(contains="safe", reply="alone")]
    )
    first = Draft(id="q1#0", example_id="q1", index=0, text="maybe")
    assert (await refine(strong, FRAMES, question(), first, SAMPLING)).text == "with"
    assert (await solo(strong, FRAMES, question(), SAMPLING)).text == "alone"
