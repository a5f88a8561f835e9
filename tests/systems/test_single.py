from __future__ import annotations

from tests.helpers import question
from tests.systems.scripted import DOWN, FAILED, Timed, asked, saying, user

from cowest.collaboration.prompts import DefaultFrames
from cowest.models.window import Window
from cowest.systems.single import SingleCall, with_shots
from cowest.types import Example, Message, Sampling

FRAMES = DefaultFrames("Answer yes or no.")
SAMPLING = Sampling(max_tokens=11)
SYSTEM = Message(role="system", content="Be brief.")


def brief(example: Example) -> tuple[Message, ...]:
    return (SYSTEM, *user(example.input))


def turns(*texts: str) -> tuple[Message, ...]:
    """Messages of user and assistant in turn."""
    return tuple(Message(role="assistant" if i % 2 else "user", content=text) for i, text in enumerate(texts))


async def test_it_asks_once_and_answers_with_the_text() -> None:
    model = saying("Answer: yes")
    done = await SingleCall(model, FRAMES.solo, SAMPLING, "strong").answer(question())
    assert (done.example_id, done.system, done.text, done.draft) == ("q1", "strong", "Answer: yes", None)
    assert (done.error, done.truncated, done.truncated_context, done.usage.calls) == (None, False, False, 1)
    assert asked(model) == [FRAMES.solo(question())] and model.requests[0].sampling == SAMPLING


async def test_a_text_that_was_cut_off_says_so_and_what_it_took() -> None:
    done = await SingleCall(Timed("so", finish_reason="length"), FRAMES.solo, SAMPLING, "s").answer(question())
    assert (done.text, done.truncated, done.latency_s) == ("so", True, 2.0)


async def test_a_failed_call_is_no_answer() -> None:
    done = await SingleCall(saying("x", fail=[DOWN]), FRAMES.draft, SAMPLING, "weak").answer(question())
    assert (done.text, done.error, done.usage.calls) == (None, FAILED, 0)


async def test_shots_are_turns_before_the_query_and_the_system_message_stays_first() -> None:
    shots = [(brief(question("a", "Is A safe?")), "Answer: no"), (brief(question("b", "Is B safe?")), "Answer: yes")]
    model = saying("Answer: no")
    await SingleCall(model, with_shots(brief, shots), SAMPLING, "few-shot").answer(question())
    expected = turns("Is A safe?", "Answer: no", "Is B safe?", "Answer: yes", "Is it safe?")
    assert asked(model) == [(SYSTEM, *expected)]


async def test_shots_that_do_not_fit_the_window_are_left_out_and_it_is_said() -> None:
    shots = [(user("Is A safe?"), "Answer: no"), (user("Is B safe?"), "Answer: yes")]
    ask = with_shots(lambda e: user(e.input), shots)
    whole = 3 * (3 + 4) + 2 * (2 + 4)  # words, and what the chat format adds to each message

    async def with_room_for(tokens: int) -> tuple[list[str], bool]:
        model = saying("x")
        window = Window(lambda text: len(text.split()), tokens)
        done = await SingleCall(model, ask, SAMPLING, "few-shot", window).answer(question())
        return [m.content for m in asked(model)[0]], done.truncated_context

    assert await with_room_for(whole) == (
        ["Is A safe?", "Answer: no", "Is B safe?", "Answer: yes", "Is it safe?"],
        False,
    )
    assert await with_room_for(whole - 1) == (["Is B safe?", "Answer: yes", "Is it safe?"], True)
    assert await with_room_for(7) == (["Is it safe?"], True)
    assert await with_room_for(1) == (["Is it safe?"], True)  # the query itself is never cut


async def test_without_shots_it_is_the_query_alone() -> None:
    assert with_shots(brief, [])(question()) == brief(question())
