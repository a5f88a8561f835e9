"""Where the turns of a conversation go: before the query, as turns."""

from __future__ import annotations

from cowest.models.turns import in_conversation, spoken, told
from cowest.types import Message


def chat(*roles_and_texts: str) -> tuple[Message, ...]:
    return tuple(
        Message.model_validate({"role": r, "content": t}) for r, t in (part.split(":") for part in roles_and_texts)
    )


def test_a_query_alone_is_as_it_is_framed() -> None:
    framed = chat("system:F", "system:G", "user:Q")
    assert in_conversation((), framed) == framed


def test_turns_stay_turns_and_the_system_turns_become_one() -> None:
    found = in_conversation(chat("system:S", "user:A", "assistant:B"), chat("system:F", "user:Q"))
    assert found == chat("system:S\n\nF", "user:A", "assistant:B", "user:Q")
    assert in_conversation(chat("user:A", "assistant:B"), chat("system:F", "user:Q"))[0] == chat("system:F")[0]


def test_a_user_turn_right_before_the_query_begins_it() -> None:
    assert in_conversation(chat("user:A"), chat("user:Q")) == chat("user:A\n\nQ")


def test_what_was_spoken_is_text_by_turns() -> None:
    found = spoken([("developer", "S"), ("user", "A"), ("assistant", " "), ("tool", "7"), ("user", "B"), ("bot", "x")])
    assert found == chat("system:S", "user:A\n\nB")
    assert told(found) == "System: S\n\nUser: A\n\nB"
