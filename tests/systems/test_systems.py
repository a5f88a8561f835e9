from __future__ import annotations

import pytest
from tests.helpers import question

from cowest.collaboration.prompts import DefaultFrames
from cowest.errors import ModelCallError
from cowest.models.scripted import ScriptedChatModel
from cowest.protocols import System
from cowest.systems.collaboration import Collaboration
from cowest.systems.single import StrongAlone, WeakAlone
from cowest.types import Sampling

FRAMES = DefaultFrames("Answer yes or no.")
DRAFTING, ANSWERING = Sampling(max_tokens=11), Sampling(max_tokens=99)
DOWN = ModelCallError("http_500", "the endpoint failed")


def saying(text: str, *fail: ModelCallError | None) -> ScriptedChatModel:
    return ScriptedChatModel(lambda messages, sampling: text, fail=fail)


async def test_weak_alone_answers_with_its_draft() -> None:
    weak = saying("Answer: yes")
    done = await WeakAlone(weak, FRAMES, DRAFTING).answer(question())
    assert (done.example_id, done.system, done.text, done.draft) == ("q1", "weak", "Answer: yes", None)
    assert weak.requests[0].messages == FRAMES.draft(question()) and weak.requests[0].sampling == DRAFTING


async def test_strong_alone_sees_no_draft() -> None:
    strong = saying("Answer: no")
    done = await StrongAlone(strong, FRAMES, ANSWERING).answer(question())
    assert (done.system, done.text, done.draft, done.usage.calls) == ("strong", "Answer: no", None, 1)
    assert strong.requests[0].messages == FRAMES.solo(question()) and strong.requests[0].sampling == ANSWERING


async def test_the_collaboration_gives_the_weak_models_draft_to_the_strong_one() -> None:
    weak, strong = saying("It lowers it by 7."), saying("So it is.\nAnswer: no")
    system = Collaboration(weak, strong, FRAMES, DRAFTING, ANSWERING, "collab_aligned")
    done = await system.answer(question())
    assert (done.system, done.text, done.draft, done.error) == (
        "collab_aligned",
        "So it is.\nAnswer: no",
        "It lowers it by 7.",
        None,
    )
    assert weak.requests[0].messages == FRAMES.draft(question()) and weak.requests[0].sampling == DRAFTING
    assert strong.requests[0].messages == FRAMES.refine(question(), "It lowers it by 7.")
    assert strong.requests[0].sampling == ANSWERING
    asked = sum(len(m.content.split()) for r in (weak.requests[0], strong.requests[0]) for m in r.messages)
    assert done.usage.calls == 2
    assert (done.usage.input_tokens, done.usage.output_tokens) == (asked, 5 + 5)


async def test_a_failed_draft_ends_it_without_a_paid_call() -> None:
    strong = saying("x")
    done = await Collaboration(saying("x", DOWN), strong, FRAMES).answer(question())
    assert (done.text, done.draft, done.error) == (None, None, "draft: http_500: the endpoint failed")
    assert strong.requests == []


async def test_a_failed_refinement_keeps_the_draft_and_says_why() -> None:
    done = await Collaboration(saying("my draft"), saying("x", DOWN), FRAMES).answer(question())
    assert (done.text, done.draft, done.error) == (None, "my draft", "http_500: the endpoint failed")
    assert done.usage.calls == 1


@pytest.mark.parametrize("system", [WeakAlone, StrongAlone])
async def test_a_failed_call_alone(system: type[WeakAlone] | type[StrongAlone]) -> None:
    done = await system(saying("x", DOWN), FRAMES, DRAFTING).answer(question())
    assert (done.text, done.error) == (None, "http_500: the endpoint failed")


def test_all_are_systems() -> None:
    model = saying("x")
    systems: list[System] = [
        WeakAlone(model, FRAMES, DRAFTING),
        StrongAlone(model, FRAMES, DRAFTING),
        Collaboration(model, model, FRAMES),
    ]
    assert [s.name for s in systems] == ["weak", "strong", "collab"]
