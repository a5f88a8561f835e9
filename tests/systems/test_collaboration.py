from __future__ import annotations

from tests.helpers import question

from cowest.collaboration.prompts import DefaultFrames
from cowest.errors import ModelCallError
from cowest.models.scripted import ScriptedChatModel
from cowest.systems.collaboration import Collaboration
from cowest.types import Sampling

FRAMES = DefaultFrames("Answer yes or no.")
DRAFTING, ANSWERING = Sampling(max_tokens=11), Sampling(max_tokens=99)
DOWN = ModelCallError("http_500", "the endpoint failed")


def saying(text: str, *fail: ModelCallError | None) -> ScriptedChatModel:
    return ScriptedChatModel(lambda messages, sampling: text, fail=fail)


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
