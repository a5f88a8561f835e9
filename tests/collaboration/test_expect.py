"""The expected score: probabilities of the classes where the answer stands, and means over samples, worked out by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from math import log

import pytest
from tests.helpers import question

from cowest.collaboration.expect import Expect, Proving, class_probabilities, place
from cowest.collaboration.feedback import feedback
from cowest.collaboration.prompts import DefaultFrames
from cowest.collaboration.refine import refine
from cowest.errors import ModelCallError, StageError
from cowest.models.scripted import ScriptedChatModel
from cowest.scoring.scorer import MetricScorer
from cowest.tasks.answers import extract_answer
from cowest.tasks.base import SimpleTask
from cowest.types import Classes, Completion, Draft, Message, Refinement, Sampling, TokenLogprob

YES_NO = ("yes", "no")


def token(text: str, **alternatives: float) -> TokenLogprob:
    """A token with its alternatives; ``_`` in a name is a space, and what is not named has the rest."""
    top = tuple((name.replace("_", " "), log(p)) for name, p in alternatives.items())
    return TokenLogprob(token=text, logprob=dict(top).get(text, log(0.99)), top=top)


def said(*tokens: TokenLogprob) -> Completion:
    return Completion(text="".join(t.token for t in tokens), logprobs=tokens)


def classes(done: Completion, labels: Sequence[str]) -> dict[str, float] | None:
    found = class_probabilities(done, labels, partial(extract_answer, labels=labels))
    return None if found is None else found.probabilities


def test_the_classes_share_what_their_tokens_have_where_the_answer_stands() -> None:
    tokens = [token("No"), token(" doubt"), token(".\n"), token("Answer"), token(":")]
    done = said(*tokens, token(" yes", _yes=0.5, _no=0.2, Yes=0.1, _maybe=0.1))
    assert classes(done, YES_NO) == pytest.approx({"yes": 0.75, "no": 0.25})


def test_a_class_is_told_by_the_first_token_in_which_it_differs() -> None:
    labels = ("unsafe", "unlikely", "safe")
    done = said(token("Answer: "), token("un", un=0.8, safe=0.2), token("safe", safe=0.75, likely=0.25), token("."))
    assert classes(done, labels) == pytest.approx({"unsafe": 0.6, "unlikely": 0.2, "safe": 0.2})


def test_a_class_that_begins_another_one() -> None:
    labels = ("no", "no answer")
    longer = said(token("Answer:"), token(" no", _no=1.0), token(" answer", _answer=0.3))
    assert classes(longer, labels) == {"no": 0.0, "no answer": 1.0}
    shorter = said(token("Answer:"), token(" no", _no=1.0), token(".", _answer=0.25, **{".": 0.75}))
    assert classes(shorter, labels) == pytest.approx({"no": 0.75, "no answer": 0.25})
    ends = said(token("Answer:"), token(" no", _no=1.0))
    assert classes(ends, labels) == {"no": 1.0, "no answer": 0.0}


@pytest.mark.parametrize("text", ["I cannot tell.", "Answer: yes, or no", "Answer: not harmful"])
def test_there_is_no_place_where_no_class_is_read(text: str) -> None:
    labels = ("yes", "no", "harmful")
    assert place(text, labels, partial(extract_answer, labels=labels)) is None


def test_the_place_is_the_one_that_the_reader_reads() -> None:
    text = "Is it yes?\nAnswer: **Yes**\nI say so, yes or no."
    found = place(text, YES_NO, partial(extract_answer, labels=YES_NO))
    assert found is None or text[slice(*found)] == "Yes"
    assert place("Yes it is yes.\n**Answer:** YES.", YES_NO, partial(extract_answer, labels=YES_NO)) == (27, 30)


def test_without_log_probabilities_there_is_nothing() -> None:
    assert classes(Completion(text="Answer: yes"), YES_NO) is None
    odd = Completion(text="Answer: yes", logprobs=(token("what a secret was struck from"),))
    assert classes(odd, YES_NO) is None


TASK = SimpleTask("safety", ("accuracy",), labels=YES_NO, instruction="Answer yes or no.", splits={})
DRAFT = Draft(id="q1#0", example_id="q1", index=0, text="Answer: yes")


async def scored(refined: Refinement) -> float | None:
    solo = Refinement(example_id="q1", draft_id=None, text="Answer: no")
    found = await feedback(MetricScorer(TASK, "accuracy"), question(), DRAFT, refined, solo, answer_tokens=9)
    assert found.solo.expected is None and found.weak.expected is None
    return found.refined.expected


async def test_the_expected_score_is_the_sum_of_class_probability_times_score() -> None:
    shares = Classes(start=8, end=10, probabilities={"yes": 0.3, "no": 0.7})
    assert await scored(Refinement(example_id="q1", draft_id="q1#0", text="Answer: no", classes=shares)) == 0.3


async def test_samples_are_asked_for_beside_the_answer_and_their_mean_counts() -> None:
    def reply(messages: Sequence[Message], sampling: Sampling) -> str:
        return "Answer: yes" if sampling.seed in (1, 2, 3) else "Answer: no"

    model = ScriptedChatModel(reply, fail=[None, None, None, None, ModelCallError("server_error", "down")])
    samples = tuple(Sampling(temperature=1.0, seed=seed) for seed in (1, 2, 3, 4))
    done = await refine(model, DefaultFrames("?"), question(), DRAFT, Sampling(seed=0), Expect(samples=samples))
    assert done.text == "Answer: no" and len(done.samples) == 4 and done.usage.calls == 4
    assert [s.error is None for s in done.samples] == [True, True, True, False]
    assert await scored(done) == 1.0  # the one that failed is left out
    assert (
        await scored(
            done.model_copy(
                update={"samples": (*done.samples, done.samples[0].model_copy(update={"text": "Answer: no"}))}
            )
        )
        == 0.75
    )


async def test_a_failed_answer_has_no_samples() -> None:
    model = ScriptedChatModel(lambda *_: "Answer: no", fail=[ModelCallError("refusal", "no")])
    done = await refine(model, DefaultFrames("?"), question(), DRAFT, Sampling(), Expect(samples=(Sampling(),)))
    assert done.error is not None and done.samples == () and len(model.requests) == 1


async def test_without_log_probabilities_in_the_first_answer_no_second_request_is_sent() -> None:
    model = ScriptedChatModel(lambda *_: "Answer: no")
    proving = Proving(model, model)
    asked = [proving.generate((Message(role="user", content=str(n)),), Sampling(logprobs=5)) for n in range(3)]
    with pytest.raises(StageError, match=r"scripted gives no log-probabilities.*feedback\.expect: samples"):
        await asyncio.gather(*asked)
    await asyncio.sleep(0.01)
    assert len(model.requests) == 1


def test_records_without_them_are_written_as_they_were() -> None:
    written = Refinement(example_id="q", draft_id=None, text="x").model_dump_json()
    assert "classes" not in written and "samples" not in written
