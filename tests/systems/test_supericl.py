from __future__ import annotations

import math

from tests.helpers import question
from tests.systems.scripted import DOWN, FAILED, Timed, asked, saying, user, words

from cowest.collaboration.prompts import DefaultFrames
from cowest.models.window import Window
from cowest.protocols import ChatModel
from cowest.systems.prompts import DefaultBaselineFrames
from cowest.systems.single import with_shots
from cowest.systems.supericl import SuperIcl, predicted
from cowest.tasks.answers import extract_answer
from cowest.types import Completion, Example, Message, Sampling

ASK_WEAK = DefaultFrames("Answer yes or no.").draft
FRAMES = DefaultBaselineFrames("Answer yes or no.")
DRAFTING, ANSWERING = Sampling(max_tokens=11), Sampling(max_tokens=99)
TOKENS = [("It harms.\n", math.log(0.1)), ("Answer:", math.log(0.5)), (" no", math.log(0.75))]


def ask_strong(example: Example, label: str, confidence: float | None) -> tuple[Message, ...]:
    shot = FRAMES.predicted(question("s", "Is A safe?"), "yes", 0.5)
    return (*shot, Message(role="assistant", content="Answer: no"), *FRAMES.predicted(example, label, confidence))


def extract(text: str, example: Example) -> str | None:
    return extract_answer(text, example.choices)


def supericl(weak: ChatModel, strong: ChatModel, window: Window | None = None) -> SuperIcl:
    return SuperIcl(weak, strong, ASK_WEAK, ask_strong, extract, DRAFTING, ANSWERING, "supericl", window)


async def test_the_strong_model_sees_label_and_confidence_and_not_the_draft() -> None:
    weak, strong = Timed("It harms.\nAnswer: no", TOKENS), Timed("I agree.\nAnswer: no", finish_reason="length")
    done = await supericl(weak, strong).answer(question())
    assert asked(weak) == [ASK_WEAK(question())]
    assert weak.requests[0].sampling == DRAFTING.model_copy(update={"logprobs": 0})
    assert asked(strong) == [ask_strong(question(), "no", 0.75)]
    assert "It harms" not in "".join(m.content for m in asked(strong)[0])
    assert strong.requests[0].sampling == ANSWERING
    assert (done.text, done.draft, done.truncated) == ("I agree.\nAnswer: no", "It harms.\nAnswer: no", True)
    assert (done.usage.calls, done.latency_s) == (2, 4.0)
    assert done.usage.input_tokens == words(*asked(weak), *asked(strong))


async def test_without_log_probabilities_the_prompt_says_nothing_of_confidence() -> None:
    strong = saying("Answer: no")
    await supericl(saying("Answer: no"), strong).answer(question())
    assert asked(strong) == [ask_strong(question(), "no", None)]
    assert "confidence" not in asked(strong)[0][-1].content


async def test_a_weak_text_without_an_answer_is_shown_as_it_is() -> None:
    strong = saying("Answer: no")
    await supericl(saying(" Hard to say. "), strong).answer(question())
    assert asked(strong) == [ask_strong(question(), "Hard to say.", None)]


async def test_a_failed_weak_call_ends_it_without_a_paid_one() -> None:
    strong = saying("x")
    done = await supericl(saying("x", fail=[DOWN]), strong).answer(question())
    assert (done.text, done.draft, done.error) == (None, None, "http_500: draft: the endpoint failed")
    assert asked(strong) == []


async def test_a_failed_strong_call_keeps_the_draft() -> None:
    done = await supericl(saying("Answer: no"), saying("x", fail=[DOWN])).answer(question())
    assert (done.text, done.draft, done.error, done.usage.calls) == (None, "Answer: no", FAILED, 1)


async def test_examples_that_do_not_fit_the_window_are_left_out() -> None:
    strong = saying("Answer: no")
    done = await supericl(saying("Answer: no"), strong, Window(lambda text: len(text.split()), 1)).answer(question())
    assert asked(strong) == [FRAMES.predicted(question(), "no", None)] and done.truncated_context


def test_shots_show_predictions_in_the_same_way() -> None:
    ask = with_shots(lambda e: user(e.input), [(FRAMES.predicted(question("s"), *predicted(weak(), "no")), "x")])
    assert "Its confidence is 75%." in ask(question())[0].content


def weak() -> Completion:
    scored = [{"token": token, "logprob": logprob} for token, logprob in TOKENS]
    return Completion.model_validate({"text": "It harms.\nAnswer: no", "logprobs": scored})
