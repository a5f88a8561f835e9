from __future__ import annotations

import pytest
from tests.helpers import question
from tests.systems.scripted import DOWN, FAILED, Many, Timed, asked, saying, user

from cowest.errors import ConfigError, ModelCallError
from cowest.protocols import ChatModel
from cowest.run.identity import derive_seed
from cowest.systems.votes import SelfConsistency
from cowest.tasks.answers import extract_answer
from cowest.types import Example, Message, Sampling

SAMPLING = Sampling(temperature=0.7, max_tokens=11)


def ask(example: Example) -> tuple[Message, ...]:
    return user(example.input)


def extract(text: str, example: Example) -> str | None:
    return extract_answer(text, example.choices)


def votes(model: ChatModel, samples: int = 5, labels: tuple[str, ...] = ()) -> SelfConsistency:
    return SelfConsistency(model, ask, extract, SAMPLING, samples, 3, "sc", labels)


def open_question() -> Example:
    return Example(id="q1", input="How high?", references=("4200 m",))


async def test_the_first_text_with_the_majoritys_answer_is_returned() -> None:
    model = saying("A: yes", "one. Answer: no", "Answer: yes", "two. Answer: no", "three. Answer: no")
    done = await votes(model).answer(question())
    assert (done.text, done.system, done.draft, done.error, done.usage.calls) == (
        "one. Answer: no",
        "sc",
        None,
        None,
        5,
    )
    assert asked(model) == [ask(question())] * 5


async def test_each_sample_has_a_seed_of_its_own_that_depends_on_the_query() -> None:
    async def seeds(seed: int, id: str) -> list[int | None]:
        model = saying("Answer: no")
        await SelfConsistency(model, ask, extract, SAMPLING, 3, seed, "sc").answer(question(id))
        return [request.sampling.seed for request in model.requests]

    first = await seeds(3, "q1")
    assert len(set(first)) == 3 and None not in first
    assert first == await seeds(3, "q1")
    assert set(first).isdisjoint([*await seeds(4, "q1"), *await seeds(3, "q2")])


async def test_of_a_tie_the_answer_seen_first_wins() -> None:
    done = await votes(saying("Answer: no", "Answer: yes", "Answer: yes", "Answer: no"), 4).answer(question())
    assert done.text == "Answer: no"


async def test_open_answers_count_as_one_where_exact_match_calls_them_equal() -> None:
    model = saying("Answer: 5,000 m", "Answer: the 4200 m.", "Answer: 4200 M")
    assert (await votes(model, 3).answer(open_question())).text == "Answer: the 4200 m."


async def test_classes_count_to_the_letter() -> None:
    def first_word(text: str, example: Example) -> str:
        return text.split()[0]

    texts = ("C! it is", "C! again", "C so", "C too", "C as well")

    async def winner(labels: tuple[str, ...]) -> str | None:
        system = SelfConsistency(saying(*texts), ask, first_word, SAMPLING, 5, 3, "sc", labels)
        return (await system.answer(open_question())).text

    assert await winner(("C", "C!")) == "C so"
    assert await winner(()) == "C! it is"  # as open answers both are "c"


async def test_failed_samples_and_texts_without_an_answer_have_no_vote() -> None:
    model = saying("Answer: no", "well", "hm", "Answer: yes", "Answer: yes", fail=[DOWN, None, None, None, None, DOWN])
    done = await votes(model, 7).answer(question())
    assert (done.text, done.error, done.usage.calls) == ("Answer: yes", None, 5)


async def test_without_any_answer_it_is_the_first_text() -> None:
    assert (await votes(saying("well", "hm"), 2).answer(question())).text == "well"


async def test_when_all_samples_fail_the_query_has_failed() -> None:
    done = await votes(saying("x", fail=[DOWN] * 3), 3).answer(question())
    assert (done.text, done.error, done.usage.calls) == (None, FAILED, 0)


async def test_a_model_that_can_is_asked_once_for_all_samples() -> None:
    model = Many("Answer: yes", "Answer: no", "Answer: no")
    done = await votes(model, 3).answer(question())
    assert done.text == "Answer: no"
    (messages, sampling, n), *rest = model.requests
    assert (messages, n, rest) == (ask(question()), 3, [])
    assert sampling == SAMPLING.model_copy(update={"seed": derive_seed(3, "self-consistency", "q1")})
    assert (done.usage.calls, done.usage.input_tokens, done.usage.output_tokens) == (1, 10, 3)
    assert done.latency_s == 3.0  # one request, whose three samples each tell of its time


async def test_a_request_for_all_samples_that_fails() -> None:
    done = await votes(Many(failure=ModelCallError("refused", "no")), 3).answer(question())
    assert (done.text, done.error) == (None, "refused: no")


async def test_seconds_are_a_sum_over_the_samples_and_a_cut_off_winner_says_so() -> None:
    done = await votes(Timed("Answer: no", finish_reason="length"), 3).answer(question())
    assert (done.latency_s, done.truncated) == (6.0, True)


@pytest.mark.parametrize(("samples", "temperature", "message"), [(0, 0.7, "at least 1"), (3, 0.0, "temperature 0")])
def test_settings_that_make_no_sense(samples: int, temperature: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SelfConsistency(saying("x"), ask, extract, Sampling(temperature=temperature), samples, 3, "sc")
