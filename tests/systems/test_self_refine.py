from __future__ import annotations

from tests.helpers import question
from tests.systems.scripted import DOWN, asked, saying, words

from cowest.systems.prompts import DefaultBaselineFrames
from cowest.systems.self_refine import SelfRefine
from cowest.types import Sampling

FRAMES = DefaultBaselineFrames("Answer yes or no.")
SAMPLING = Sampling(max_tokens=11)


async def test_the_model_sees_its_own_answer_and_mends_it() -> None:
    model = saying("Answer: yes", "It forgot the dose.\nAnswer: no")
    done = await SelfRefine(model, FRAMES.chain_of_thought, FRAMES.self_refine, SAMPLING, "refine").answer(question())
    expected = [FRAMES.chain_of_thought(question()), FRAMES.self_refine(question(), "Answer: yes")]
    assert asked(model) == expected
    assert (done.text, done.draft, done.error) == ("It forgot the dose.\nAnswer: no", "Answer: yes", None)
    assert (done.usage.calls, done.usage.input_tokens, done.usage.output_tokens) == (2, words(*expected), 2 + 6)


async def test_each_failed_call_is_named() -> None:
    async def error(*fail: bool) -> tuple[str | None, int]:
        model = saying("x", fail=[DOWN if f else None for f in fail])
        done = await SelfRefine(model, FRAMES.zero_shot, FRAMES.self_refine, SAMPLING, "r").answer(question())
        assert done.text is None
        return done.error, done.usage.calls

    assert await error(True) == ("http_500: answer: the endpoint failed", 0)
    assert await error(False, True) == ("http_500: mend: the endpoint failed", 1)
