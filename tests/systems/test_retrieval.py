from __future__ import annotations

from tests.helpers import question
from tests.systems.scripted import DOWN, FAILED, Shelf, asked, saying

from cowest.collaboration.prompts import DefaultFrames
from cowest.models.window import Window
from cowest.systems.retrieval import Retrieval
from cowest.types import Sampling

FRAMES = DefaultFrames("Answer yes or no.")
SAMPLING = Sampling(max_tokens=11)


async def test_the_best_passages_go_before_the_querys_own_context() -> None:
    model, shelf = saying("Answer: no"), Shelf("Velmo is safe up to 62 mg.", "Kasti lowers it.\n", "Third.")
    example = question().model_copy(update={"context": "The patient has Kasti."})
    done = await Retrieval(model, shelf, FRAMES.solo, SAMPLING, 2, "bm25").answer(example)
    context = "Velmo is safe up to 62 mg.\nKasti lowers it.\nThe patient has Kasti."
    assert asked(model) == [FRAMES.solo(example.model_copy(update={"context": context}))]
    assert shelf.queries == [("Is it safe?", 2)]
    assert (done.text, done.draft, done.usage.calls, done.truncated_context) == ("Answer: no", None, 1, False)


async def test_without_a_hit_the_query_is_asked_as_it_is() -> None:
    model = saying("Answer: no")
    await Retrieval(model, Shelf(), FRAMES.solo, SAMPLING, 2, "bm25").answer(question())
    assert asked(model) == [FRAMES.solo(question())]


async def test_a_failed_call_is_no_answer() -> None:
    model = saying("x", fail=[DOWN])
    done = await Retrieval(model, Shelf("A."), FRAMES.solo, SAMPLING, 2, "bm25").answer(question())
    assert (done.text, done.error) == (None, FAILED)


async def test_what_does_not_fit_the_window_is_left_out_and_it_is_said() -> None:
    shelf = Shelf("One two three. Four five six.", "Seven eight.")
    bare = sum(len(m.content.split()) for m in FRAMES.solo(question())) + 4 + 1  # and the word "Context:"

    async def context_with_room_for(tokens: int) -> tuple[str, bool]:
        model = saying("x")
        window = Window(lambda text: len(text.split()), bare + tokens)
        done = await Retrieval(model, shelf, FRAMES.solo, SAMPLING, 5, "bm25", window).answer(question())
        content = asked(model)[0][0].content
        return content.partition("Context:\n")[2].partition("\n\n")[0], done.truncated_context

    assert await context_with_room_for(8) == ("One two three. Four five six.\nSeven eight.", False)
    assert await context_with_room_for(7) == ("One two three. Four five six.", True)
    assert await context_with_room_for(5) == ("One two three.", True)
    assert await context_with_room_for(2) == ("One two", True)
    assert await context_with_room_for(0) == ("", True)
