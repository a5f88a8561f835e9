"""The guarded collaboration: who is asked, what is paid, and what a route says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from tests.systems.scripted import DOWN, Timed, saying

from cowest.collaboration.formats import FORMATS
from cowest.collaboration.guard.policy import Candidate, Certificate, Guard, Judgement, Judgements, Predictor
from cowest.collaboration.prompts import DefaultFrames
from cowest.models.scripted import ScriptedChatModel
from cowest.protocols import ChatModel
from cowest.systems.guarded import Guarded, Opinions, further_samples, sureness_of
from cowest.tasks.answers import extract_answer
from cowest.types import Completion, Example, Message, Prediction, Sampling, TokenLogprob

QUESTION = Example(id="q", input="Which way?", references=("left",))
SURE, UNSURE = [("Answer:", -0.01), (" left", -0.01)], [("Answer:", -0.01), (" left", -3.0)]


def judgement(weak: float, strong: float, both: float, slope: float = 0.0) -> Judgement:
    """Expected scores by their log-odds; ``slope``: how much surer the weak model's answer makes it."""
    return Judgement(
        names=("weak confidence",),
        means=(0.5,),
        scales=(0.25,),
        arms={
            "weak": Predictor(bias=weak, weights=(slope,)),
            "strong": Predictor(bias=strong, weights=(0.0,)),
            "both": Predictor(bias=both, weights=(0.0,)),
        },
    )


def guard(first: Judgement, after_both: Judgement | None = None) -> Guard:
    later = after_both or judgement(-9, -9, 9)
    states = {"weak": first, "weak+both": later, "weak+strong": judgement(-9, 9, -9)}
    states["weak+strong+both"] = judgement(-9, 9, -9)
    judged = Judgements(states=states, costs={"weak": 0.0, "strong": 0.5, "both": 1.0}, base="weak")
    seen = Certificate(candidate=Candidate(), kept=True, p=0.01, score=0.6, calls=0.5, cost=0.5, answered={})
    return Guard(
        risk=0.02, delta=0.05, judged=judged, guarded=seen, cascade=seen, tried=(seen,), alone={}, learned_from=100,
        certified_on=200, weak="sft", drafter="aligned", samples=0, confidence=True,
    )  # fmt: skip


def ask(
    weak: ChatModel,
    strong: ChatModel,
    it: Guard,
    drafter: ChatModel | None = None,
    candidate: Candidate | None = None,
    samples: int = 0,
    falls_back: bool = False,
) -> Prediction:
    opinions = Opinions(
        weak=weak,
        drafter=drafter,
        open_strong=lambda: strong,
        frames=DefaultFrames("Answer.", FORMATS.find("chain_of_thought", "draft.format")),
        extract=lambda text, e: extract_answer(text, ()),
        draft=Sampling(max_tokens=8),
        answer=Sampling(max_tokens=8),
        sampled=Sampling(temperature=1.0, max_tokens=8),
        samples=samples,
        logprobs=it.confidence,
        seed=1,
    )
    system = Guarded(opinions, it, candidate or Candidate(), "guarded", falls_back)
    return asyncio.run(system.answer(QUESTION))


def test_a_sure_weak_model_answers_and_the_strong_one_is_not_asked() -> None:
    strong = saying("Answer: right")
    found = ask(Timed("Answer: left", SURE), strong, guard(judgement(0, 0, 0.5, slope=3)))
    assert found.text == "Answer: left" and not strong.requests
    assert found.route is not None and (found.route.who, found.route.reason) == ("weak", "weak_is_sure")
    assert found.draft is None and found.usage.calls == 1


def test_an_unsure_one_is_refined() -> None:
    strong = saying("Answer: right")
    found = ask(Timed("Answer: left", UNSURE), strong, guard(judgement(0, 0, 0.5, slope=3)))
    assert found.text == "Answer: right" and len(strong.requests) == 1
    assert "left" in strong.requests[0].messages[-1].content and found.draft == "Answer: left"
    assert found.route is not None and (found.route.who, found.route.reason) == ("both", "asked_both")
    assert found.usage.calls == 2


def test_the_aligned_model_drafts_and_the_tuned_one_answers() -> None:
    weak, drafter, strong = Timed("Answer: left", UNSURE), Timed("Answer: up", UNSURE), saying("Answer: right")
    found = ask(weak, strong, guard(judgement(-9, -9, 9)), drafter)
    assert found.draft == "Answer: up" and "up" in strong.requests[0].messages[-1].content
    found = ask(weak, strong, guard(judgement(9, -9, -9)), drafter)
    assert found.text == "Answer: left" and found.draft is None and found.usage.calls == 2


def test_after_the_first_call_the_other_may_be_asked_and_no_third() -> None:
    strong = saying("Answer: first", "Answer: second")
    found = ask(Timed("Answer: left", UNSURE), strong, guard(judgement(-9, -9, 9), judgement(-9, 9, -9)))
    assert found.text == "Answer: second" and len(strong.requests) == 2
    assert found.route is not None and found.route.reason == "asked_strong_and_both" and found.route.who == "strong"
    assert found.draft is None  # the answer was made without it


def test_the_weak_answer_may_be_taken_after_a_call_that_disappoints() -> None:
    strong = saying("Answer: first")
    found = ask(Timed("Answer: left", UNSURE), strong, guard(judgement(-1, -9, 1), judgement(9, -9, -9)))
    assert found.text == "Answer: left" and found.route is not None and found.route.reason == "asked_both"


def test_the_better_model_alone_is_asked_alone() -> None:
    strong = saying("Answer: right")
    found = ask(Timed("Answer: left", UNSURE), strong, guard(judgement(-9, -9, 9)), candidate=Candidate(only="weak"))
    assert found.text == "Answer: left" and not strong.requests


def test_what_is_decided_for_all_queries_asks_for_no_evidence() -> None:
    weak, drafter, strong = saying("Answer: left"), saying("Answer: up"), saying("Answer: right")
    calls = {"weak": (1, 0, 0), "strong": (1, 0, 1), "both": (1, 1, 2)}
    for arm, asked in calls.items():
        only = Candidate.model_validate({"only": arm})
        found = ask(weak, strong, guard(judgement(0, 0, 0)), drafter, only, samples=3)
        assert (len(weak.requests), len(drafter.requests), len(strong.requests)) == asked
        assert found.route is not None and found.route.who == arm
        assert found.draft == ("Answer: up" if arm == "both" else None)


def test_equal_questions_draw_equal_samples_whatever_their_id() -> None:
    one, other = (further_samples(1, QUESTION.model_copy(update={"id": id_})) for id_ in ("a", "b"))
    changed = further_samples(1, QUESTION.model_copy(update={"context": "Of roads."}))
    seeds = [s.nth(Sampling(), 0).seed for s in (one, other, changed)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_when_serving_the_strong_answer_that_is_there_stands_in() -> None:
    strong = ScriptedChatModel(lambda m, s: "Answer: right", fail=[None, DOWN])
    first = judgement(-9, 9, -9)
    it = guard(first)
    judged = it.judged.model_copy(update={"states": {**it.judged.states, "weak+strong": judgement(-9, -9, 9)}})
    found = ask(Timed("Answer: left", UNSURE), strong, it.model_copy(update={"judged": judged}), falls_back=True)
    assert found.text == "Answer: right" and found.route is not None
    assert (found.route.who, found.route.reason) == ("strong", "strong_failed")


def test_a_weak_model_that_fails_leaves_the_strong_one() -> None:
    strong = saying("Answer: right")
    found = ask(ScriptedChatModel(lambda m, s: "x", fail=[DOWN] * 9), strong, guard(judgement(9, 0, 0)))
    assert found.text == "Answer: right" and found.route is not None
    assert (found.route.who, found.route.reason) == ("strong", "weak_failed")


def test_a_strong_model_that_fails_is_a_reason() -> None:
    strong = ScriptedChatModel(lambda m, s: "x", fail=[DOWN])
    found = ask(Timed("Answer: left", UNSURE), strong, guard(judgement(-9, -9, 9)))
    assert found.text is None and (found.error or "").startswith("http_500") and found.usage.calls == 1


def test_a_weak_model_without_logprobs_leaves_the_strong_one_when_answering() -> None:
    found = ask(Timed("Answer: left"), saying("Answer: right"), guard(judgement(9, 0, 0)))
    assert found.route is not None and found.route.reason == "weak_failed"


def test_agreement_of_samples_is_evidence_and_they_differ_by_their_seeds() -> None:
    class Keeps(Timed):
        async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
            seeds.append(sampling.seed)
            return await super().generate(messages, sampling)

    seeds: list[int | None] = []
    ask(Keeps("Answer: left", SURE), saying("x"), guard(judgement(9, 0, 0)), samples=3)
    assert seeds[0] is None and len(set(seeds[1:])) == 3


def test_sureness_is_the_geometric_mean() -> None:
    tokens = tuple(TokenLogprob(token=t, logprob=p) for t, p in (("a", -1.0), ("b", -3.0)))
    assert sureness_of(Completion(text="ab", logprobs=tokens)) == pytest.approx(0.1353, abs=1e-4)
    assert sureness_of(Completion(text="ab")) is None
