from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cowest.models.window import Window
from cowest.types import Message


def count(text: str) -> int:
    return len(text.split())


def chat(*roles_and_texts: str) -> list[Message]:
    return [Message.model_validate({"role": r, "content": t}) for r, t in (part.split(":") for part in roles_and_texts)]


def test_what_fits_is_left_alone() -> None:
    messages = chat("system:Be brief", "user:A", "assistant:B", "user:C")
    fitted = Window(count, 5 + 4 * 4).fit_turns(messages)
    assert (fitted.messages, fitted.cut) == (tuple(messages), False)


def test_the_earliest_turns_go_first_each_question_with_its_answer() -> None:
    messages = chat("system:Be brief", "user:A", "assistant:B", "user:C", "user:D", "assistant:E", "user:F")
    window = Window(count, 8 + 4 * 7 - 1)
    assert [m.content for m in window.fit_turns(messages).messages] == ["Be brief", "C", "D", "E", "F"]
    fitted = Window(count, 0).fit_turns(messages)
    assert ([m.content for m in fitted.messages], fitted.cut) == (["Be brief", "F"], True)


def test_a_query_that_ends_with_an_assistants_turn_keeps_it() -> None:
    messages = chat("user:A", "assistant:B")
    fitted = Window(count, 0).fit_turns(messages)
    assert (fitted.messages, fitted.cut) == (tuple(messages), False)


def test_turns_go_before_passages() -> None:
    def ask(passages: tuple[str, ...] | list[str] | object) -> list[Message]:
        assert isinstance(passages, tuple)
        return chat("user:A", "assistant:B", "user:" + " ".join((*passages, "Q")))

    assert Window(count, 4 + 3).fit_passages(("one two",), ask) == (("one two",), False)
    assert Window(count, 4 + 2).fit_passages(("one two",), ask) == (("one",), True)


def test_no_passages_are_nothing_to_cut() -> None:
    assert Window(count, 0).fit_passages((), lambda kept: chat("user:Q")) == ((), False)


@given(st.lists(st.text("ab .!\n", min_size=1, max_size=30), max_size=4), st.integers(0, 40))
def test_passages_are_a_beginning_of_those_given_and_fit(passages: list[str], tokens: int) -> None:
    def ask(kept: object) -> list[Message]:
        assert isinstance(kept, tuple)
        return [Message(role="user", content="Q " + " ".join(kept))]

    window = Window(count, tokens)
    kept, cut = window.fit_passages(passages, ask)
    assert cut == (kept != tuple(passages))
    assert list(kept[:-1]) == passages[: max(len(kept) - 1, 0)]
    assert not kept or passages[len(kept) - 1].startswith(kept[-1])
    assert not kept or window.fits(ask(kept))
    if len(kept) < len(passages) and kept and kept[-1] == passages[len(kept) - 1]:
        assert not window.fits(ask((*kept, passages[len(kept)])))  # the next one would not have fitted


def test_a_system_turn_within_the_conversation_stays() -> None:
    messages = chat("user:A", "system:Be kind", "assistant:B", "user:C")
    assert [m.content for m in Window(count, 0).fit_turns(messages).messages] == ["Be kind", "C"]
