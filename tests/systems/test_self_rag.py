from __future__ import annotations

import pytest
from tests.helpers import question
from tests.systems.scripted import DOWN, Shelf, Timed, asked, saying, words

from cowest.collaboration.prompts import DefaultFrames
from cowest.errors import ModelCallError
from cowest.models.scripted import ScriptedChatModel
from cowest.models.window import Window
from cowest.systems.prompts import DefaultBaselineFrames
from cowest.systems.self_rag import SelfRag
from cowest.types import Example, Message, Passage, Sampling

JUDGE = DefaultBaselineFrames("Answer yes or no.")
ASK = DefaultFrames("Answer yes or no.").solo
SAMPLING = Sampling(max_tokens=11)
FIRST, SECOND = (Passage(id=f"p{i}", text=text, score=9.0 - i) for i, text in ((1, "Velmo harms."), (2, "Kasti.")))
Q = question()


def rag(model: ScriptedChatModel, window: Window | None = None, shelf: Shelf | None = None) -> SelfRag:
    shelf = shelf or Shelf(FIRST.text, SECOND.text)
    return SelfRag(model, shelf, ASK, JUDGE, SAMPLING, 2, "self-rag", window)


def within(passage: Passage) -> Example:
    return Q.model_copy(update={"context": passage.text})


RETRIEVE = JUDGE.should_retrieve(Q)
PLAIN = ASK(Q)


def about(passage: Passage, answer: str | None = None) -> tuple[Message, ...]:
    return JUDGE.relevant(Q, passage) if answer is None else JUDGE.supported(Q, passage, answer)


@pytest.mark.parametrize(
    ("replies", "requests", "text"),
    [
        (["No.", "A1"], [RETRIEVE, PLAIN], "A1"),
        (["yes", "yes", "A1", "Yes!"], [RETRIEVE, about(FIRST), ASK(within(FIRST)), about(FIRST, "A1")], "A1"),
        (  # the first is not relevant
            ["yes", "no", "yes", "A2", "yes"],
            [RETRIEVE, about(FIRST), about(SECOND), ASK(within(SECOND)), about(SECOND, "A2")],
            "A2",
        ),
        (  # the first answer is not supported, the second one is
            ["yes", "yes", "A1", "no", "yes", "A2", "yes"],
            [RETRIEVE, about(FIRST), ASK(within(FIRST)), about(FIRST, "A1"),
             about(SECOND), ASK(within(SECOND)), about(SECOND, "A2")],
            "A2",
        ),
        (  # none is supported: the one with the best passage
            ["yes", "yes", "A1", "no", "yes", "A2", "no"],
            [RETRIEVE, about(FIRST), ASK(within(FIRST)), about(FIRST, "A1"),
             about(SECOND), ASK(within(SECOND)), about(SECOND, "A2")],
            "A1",
        ),
        (["yes", "no", "no", "A0"], [RETRIEVE, about(FIRST), about(SECOND), PLAIN], "A0"),
        (  # what cannot be read counts as yes
            ["Hm.", "yes or no", "A1", "It depends"],
            [RETRIEVE, about(FIRST), ASK(within(FIRST)), about(FIRST, "A1")],
            "A1",
        ),
    ],
)  # fmt: skip
async def test_what_it_asks_and_which_answer_it_takes(
    replies: list[str], requests: list[tuple[Message, ...]], text: str
) -> None:
    model = saying(*replies)
    done = await rag(model).answer(Q)
    assert asked(model) == requests
    assert (done.text, done.draft, done.error, done.usage.calls) == (text, None, None, len(requests))
    assert done.usage.input_tokens == words(*requests)


async def test_the_query_itself_is_looked_up() -> None:
    shelf = Shelf(FIRST.text)
    await rag(saying("yes"), shelf=shelf).answer(Q)
    assert shelf.queries == [("Is it safe?", 2)]


async def test_without_a_hit_it_answers_as_it_is() -> None:
    model = saying("yes", "A0")
    assert (await rag(model, shelf=Shelf()).answer(Q)).text == "A0"
    assert asked(model) == [RETRIEVE, PLAIN]


@pytest.mark.parametrize("failing", [0, 1, 2, 3])
async def test_every_call_is_needed(failing: int) -> None:
    steps = ["retrieve?", "relevant?", "answer", "supported?"]
    fail: list[ModelCallError | None] = [None] * failing
    done = await rag(saying("yes", fail=[*fail, DOWN])).answer(Q)
    assert (done.text, done.usage.calls) == (None, failing)
    assert done.error == f"http_500: {steps[failing]}: the endpoint failed"


async def test_seconds_are_a_sum_over_all_calls() -> None:
    assert (await rag(Timed("yes")).answer(Q)).latency_s == 8.0


async def test_a_passage_that_does_not_fit_is_cut_wherever_it_is_shown() -> None:
    long = Passage(id="p1", text="Velmo harms. " + "It does so indeed, and often. " * 30, score=1.0)
    window = Window(lambda text: len(text.split()), 105)
    model = saying("yes", "yes", "A1", "yes")
    done = await rag(model, window, Shelf(long.text)).answer(Q)
    assert done.truncated_context and done.text == "A1"
    prompts = [messages[0].content for messages in asked(model)]
    assert all(len(p.split()) + 4 <= 105 for p in prompts)
    assert all("Velmo harms." in p and long.text not in p for p in prompts[1:])
