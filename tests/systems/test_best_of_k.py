from __future__ import annotations

import pytest
from tests.helpers import question
from tests.systems.scripted import DOWN, Many, asked, saying, words

from cowest.collaboration.prompts import DefaultFrames
from cowest.errors import ConfigError
from cowest.models.window import Window
from cowest.protocols import ChatModel
from cowest.run.identity import derive_seed
from cowest.systems.best_of_k import BestOfK, number_in
from cowest.systems.prompts import DefaultBaselineFrames
from cowest.types import Sampling

FRAMES = DefaultFrames("Answer yes or no.")
BASELINE = DefaultBaselineFrames("Answer yes or no.")
DRAFTING, ANSWERING = Sampling(temperature=1.0, max_tokens=11), Sampling(max_tokens=99)


def best(weak: ChatModel, strong: ChatModel, samples: int = 3, window: Window | None = None) -> BestOfK:
    return BestOfK(weak, strong, FRAMES, BASELINE.choose, DRAFTING, ANSWERING, samples, 7, "best", window)


async def test_the_strong_model_chooses_by_number_and_refines_that_draft() -> None:
    weak, strong = saying("one", "two", "three"), saying("The second helps. Answer: 2", "So.\nAnswer: no")
    done = await best(weak, strong).answer(question())
    assert asked(weak) == [FRAMES.draft(question())] * 3
    assert len({request.sampling.seed for request in weak.requests}) == 3
    expected = [BASELINE.choose(question(), ("one", "two", "three")), FRAMES.refine(question(), "two")]
    assert asked(strong) == expected
    assert [request.sampling for request in strong.requests] == [ANSWERING, ANSWERING]
    assert (done.text, done.draft, done.error, done.usage.calls) == ("So.\nAnswer: no", "two", None, 5)
    assert done.usage.input_tokens == words(*asked(weak), *expected)


async def test_a_choice_that_cannot_be_read_is_the_first_draft() -> None:
    strong = saying("None of them.", "Answer: no")
    assert (await best(saying("one", "two"), strong).answer(question())).draft == "one"
    assert asked(strong)[1] == FRAMES.refine(question(), "one")


async def test_equal_drafts_are_shown_once_in_the_order_they_came() -> None:
    strong = saying("3", "Answer: no")
    done = await best(saying("one", " one\n", "two", "one", "three"), strong, 5).answer(question())
    assert asked(strong)[0] == BASELINE.choose(question(), ("one", "two", "three"))
    assert done.draft == "three"


async def test_a_single_draft_is_refined_without_a_choice() -> None:
    strong = saying("Answer: no")
    done = await best(saying("one"), strong).answer(question())
    assert asked(strong) == [FRAMES.refine(question(), "one")] and done.usage.calls == 4


async def test_failed_drafts_are_left_out() -> None:
    strong = saying("2", "Answer: no")
    done = await best(saying("one", "two", fail=[None, DOWN]), strong).answer(question())
    assert asked(strong)[0] == BASELINE.choose(question(), ("one", "two"))
    assert (done.draft, done.usage.calls) == ("two", 4)


async def test_when_all_drafts_fail_nothing_is_paid() -> None:
    strong = saying("x")
    done = await best(saying("x", fail=[DOWN] * 3), strong).answer(question())
    assert (done.text, done.error, asked(strong)) == (None, "http_500: draft: the endpoint failed", [])


async def test_the_other_calls_are_needed() -> None:
    done = await best(saying("one", "two"), saying("x", fail=[DOWN])).answer(question())
    assert (done.text, done.draft, done.error) == (None, None, "http_500: choose: the endpoint failed")
    done = await best(saying("one", "two"), saying("2", fail=[None, DOWN])).answer(question())
    assert (done.text, done.draft, done.error) == (None, "two", "http_500: refine: the endpoint failed")
    assert done.usage.calls == 4


async def test_a_model_that_can_gives_all_drafts_in_one_request() -> None:
    weak = Many("one", "two", "three")
    await best(weak, saying("1", "Answer: no")).answer(question())
    seed = derive_seed(7, "best-of-k", "q1")
    assert weak.requests == [(FRAMES.draft(question()), DRAFTING.model_copy(update={"seed": seed}), 3)]


async def test_drafts_that_do_not_fit_beside_the_first_are_not_shown() -> None:
    tokens = sum(len(m.content.split()) for m in BASELINE.choose(question(), ("one", "two"))) + 4
    strong = saying("2", "Answer: no")
    done = await best(saying("one", "two", "three"), strong, 3, Window(lambda t: len(t.split()), tokens)).answer(
        question()
    )
    assert asked(strong)[0] == BASELINE.choose(question(), ("one", "two"))
    assert done.truncated_context and done.draft == "two"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Answer: 2", 2),
        ("Draft 1 is wrong, 3 is long.\n**Answer:** Draft 2.", 2),
        ("2", 2),
        ("I choose draft #3.", 3),
        ("Draft 3, yes, 3!", 3),
        ("1 or 2", None),
        ("Answer: 4", None),
        ("Answer: 0", None),
        ("It is 2.5 times better", None),
        ("Answer: the first", None),
        ("none", None),
        ("Answer: 99999999999999999999", None),
    ],
)
def test_reading_the_choice(text: str, number: int | None) -> None:
    assert number_in(text, 3) == number


@pytest.mark.parametrize(("samples", "temperature"), [(0, 1.0), (3, 0.0)])
def test_settings_that_leave_nothing_to_choose(samples: int, temperature: float) -> None:
    with pytest.raises(ConfigError):
        BestOfK(
            saying("x"),
            saying("x"),
            FRAMES,
            BASELINE.choose,
            Sampling(temperature=temperature),
            ANSWERING,
            samples,
            7,
            "b",
        )
