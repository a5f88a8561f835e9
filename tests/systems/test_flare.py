from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from tests.helpers import question
from tests.systems.scripted import DOWN, Shelf, Timed, asked, saying, words

from cowest.collaboration.prompts import DefaultFrames
from cowest.errors import ConfigError
from cowest.models.scripted import ScriptedChatModel
from cowest.models.window import Window
from cowest.systems.flare import Flare
from cowest.types import Completion, Example, Message, Sampling, TokenLogprob

FRAMES = DefaultFrames("Answer yes or no.")
SAMPLING = Sampling(max_tokens=11)
Tokens = tuple[tuple[str, float], ...]
UNSURE: Tokens = (("Velmo", 0.1), (" is", 0.9), (" safe.", 0.9), (" Answer: ", 0.9), ("no", 0.2))


class Writer(ScriptedChatModel):
    """Writes these texts of (token, probability), one after the other."""

    def __init__(self, *texts: Tokens) -> None:
        self._texts = list(texts)
        super().__init__(lambda messages, sampling: "".join(t for t, _ in self._texts[0]))

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        done = await super().generate(messages, sampling)
        logprobs = tuple(TokenLogprob(token=t, logprob=math.log(p)) for t, p in self._texts.pop(0))
        return done.model_copy(update={"logprobs": logprobs, "latency_s": 1.0})


def flare(model: ScriptedChatModel, shelf: Shelf, rounds: int = 3, window: Window | None = None) -> Flare:
    return Flare(model, shelf, FRAMES.solo, SAMPLING, 2, 0.5, rounds, "flare", window)


def with_context(context: str) -> Example:
    return question().model_copy(update={"context": context})


async def test_a_sure_answer_is_not_looked_up() -> None:
    model, shelf = Writer((("Answer: ", 0.9), ("no", 0.9))), Shelf("A.")
    done = await flare(model, shelf).answer(question())
    assert (done.text, done.draft, done.usage.calls, shelf.queries) == ("Answer: no", None, 1, [])
    assert asked(model) == [FRAMES.solo(question())]
    assert model.requests[0].sampling == SAMPLING.model_copy(update={"logprobs": 0})


async def test_the_unsure_sentence_is_looked_up_and_the_answer_written_again() -> None:
    shelf = Shelf("Velmo harms.", "B.", "C.")
    model = Writer(UNSURE, (("Velmo harms.", 0.2), (" Answer: yes", 0.9)))
    done = await flare(model, shelf).answer(question())
    assert shelf.queries == [("is safe.", 2)]
    expected = [FRAMES.solo(question()), FRAMES.solo(with_context("Velmo harms.\nB."))]
    assert asked(model) == expected  # the first sentence is settled, unsure as it still is
    assert done.text == "Velmo harms. Answer: yes"
    assert (done.usage.calls, done.usage.input_tokens, done.latency_s) == (2, words(*expected), 2.0)


async def test_later_sentences_are_looked_up_in_their_turn_up_to_the_limit() -> None:
    shelf = Shelf("A.")
    done = await flare(Writer(UNSURE, UNSURE, UNSURE), shelf).answer(question())
    assert (done.usage.calls, [q for q, _ in shelf.queries]) == (3, ["is safe.", "Answer:"])
    shelf = Shelf("A.")
    done = await flare(Writer(UNSURE, UNSURE), shelf, rounds=1).answer(question())
    assert (done.usage.calls, [q for q, _ in shelf.queries]) == (2, ["is safe."])


async def test_where_no_word_is_sure_the_question_is_looked_up() -> None:
    shelf = Shelf("A.")
    await flare(Writer((("Perhaps", 0.1),), (("yes", 0.9),)), shelf).answer(question())
    assert shelf.queries == [("Is it safe?", 2)]


async def test_without_a_hit_nothing_is_asked_again() -> None:
    shelf = Shelf()
    done = await flare(Writer(UNSURE), shelf).answer(question())
    assert (done.text, done.usage.calls, len(shelf.queries)) == ("Velmo is safe. Answer: no", 1, 2)


async def test_a_model_without_log_probabilities_is_an_error_that_says_so() -> None:
    done = await flare(Timed("Answer: no"), Shelf("A.")).answer(question())
    assert (done.text, done.usage.calls) == (None, 1)
    assert done.error == "no_logprobs: scripted gives no log-probabilities, which FLARE needs"


async def test_a_failed_call_is_named() -> None:
    done = await flare(saying("x", fail=[DOWN]), Shelf("A.")).answer(question())
    assert (done.text, done.error) == (None, "http_500: answer: the endpoint failed")
    model = Writer(UNSURE)
    model._fail = (None, DOWN)
    done = await flare(model, Shelf("A.")).answer(question())
    assert (done.text, done.error) == (None, "http_500: answer again: the endpoint failed")
    assert done.usage.calls == 1


async def test_passages_that_do_not_fit_are_cut_and_it_is_said() -> None:
    model = Writer(UNSURE, (("yes", 0.9),))
    bare = sum(len(m.content.split()) for m in FRAMES.solo(question())) + 4 + 1
    window = Window(lambda text: len(text.split()), bare + 2)
    done = await flare(model, Shelf("Velmo harms. It does."), window=window).answer(question())
    assert asked(model)[1] == FRAMES.solo(with_context("Velmo harms."))
    assert done.truncated_context


@pytest.mark.parametrize(("passages", "threshold", "rounds"), [(2, 0.0, 1), (2, 1.1, 1), (2, 0.5, 0), (0, 0.5, 1)])
def test_settings_that_would_never_look_anything_up(passages: int, threshold: float, rounds: int) -> None:
    with pytest.raises(ConfigError):
        Flare(saying("x"), Shelf(), FRAMES.solo, SAMPLING, passages, threshold, rounds, "flare")
