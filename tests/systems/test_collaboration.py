from __future__ import annotations

import pytest
from tests.helpers import question
from tests.systems.scripted import Timed

from cowest.collaboration.prompts import DefaultFrames
from cowest.errors import ModelCallError
from cowest.models.scripted import ScriptedChatModel
from cowest.models.window import Window
from cowest.systems.collaboration import Collaboration
from cowest.types import Example, Message, Sampling

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
    assert (done.text, done.draft, done.error) == (None, None, "http_500: draft: the endpoint failed")
    assert strong.requests == []


async def test_a_failed_refinement_keeps_the_draft_what_it_took_and_says_why() -> None:
    done = await Collaboration(Timed("my draft"), saying("x", DOWN), FRAMES).answer(question())
    assert done.usage.input_tokens > 0 and done.latency_s == 2.0
    assert (done.text, done.draft, done.error) == (None, "my draft", "http_500: refine: the endpoint failed")
    assert done.usage.calls == 1


LONG = "It lowers it by 7. It is safe below 40. The ward has 12 beds."


def words(*texts: str) -> int:
    """Tokens of a prompt in a window that counts words; the chat format adds four."""
    return sum(len(text.split()) for text in texts) + 4


@pytest.mark.parametrize(
    ("kept", "cut"),
    [
        (LONG, False),
        ("It lowers it by 7. It is safe below 40.", True),  # whole sentences, as many as fit
        ("It lowers it by 7.", True),
        ("It lowers", True),  # not even one sentence: words
    ],
)
async def test_a_draft_that_does_not_fit_is_cut_and_it_is_said(kept: str, cut: bool) -> None:
    room = words(FRAMES.refine(question(), kept)[0].content)
    strong = saying("Answer: no")
    system = Collaboration(saying(LONG), strong, FRAMES, strong_window=Window(lambda text: len(text.split()), room))
    done = await system.answer(question())
    assert strong.requests[0].messages == FRAMES.refine(question(), kept)
    assert (done.text, done.draft, done.truncated_context) == ("Answer: no", LONG, cut)


class WithShot(DefaultFrames):
    """Frames of someone else, with an example before the query."""

    def draft(self, example: Example) -> tuple[Message, ...]:
        shot = (Message(role="user", content="Is A safe?"), Message(role="assistant", content="Answer: no"))
        return (*shot, *super().draft(example))


async def test_what_the_weak_model_cannot_read_is_left_out_and_it_is_said() -> None:
    frames = WithShot("Answer yes or no.")
    query = frames.draft(question())[-1:]
    weak = saying("my draft")
    window = Window(lambda text: len(text.split()), words(query[0].content))
    done = await Collaboration(weak, saying("Answer: no"), frames, weak_window=window).answer(question())
    assert weak.requests[0].messages == query and done.truncated_context


async def test_an_answer_that_was_cut_off_says_so() -> None:
    done = await Collaboration(saying("d"), Timed("so", finish_reason="length"), FRAMES).answer(question())
    assert (done.text, done.truncated) == ("so", True)
