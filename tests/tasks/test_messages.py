"""Rows of ``messages``: what is read as turns, question, target and answer, and what every mistake is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue
from tests.tasks.test_jsonl import load_test, problem, write

from cowest.errors import DataError
from cowest.run.identity import fingerprint
from cowest.tasks import load_jsonl_task
from cowest.types import Example, Message


def turn(role: str, content: object, **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


ASKED = [
    turn("system", "Be brief."),
    turn("user", "I have Kasti."),
    turn("assistant", "I see."),
    turn("user", "And now?"),
]
TURNS = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="I have Kasti."),
    Message(role="assistant", content="I see."),
)


def row(*messages: object, **more: object) -> dict[str, object]:
    return {"messages": list(messages), **more}


def test_the_last_user_turn_is_the_question(tmp_path: Path) -> None:
    task = load_test(write(tmp_path / "t.jsonl", row(*ASKED, answer="no", rationale="Kasti lowers it.")))
    (found,) = task.examples("test")
    assert (found.turns, found.input, found.references, found.target) == (TURNS, "And now?", ("no",), None)
    assert task.target(found) == "Kasti lowers it.\nAnswer: no"
    parts = [{"type": "text", "text": "And"}, {"type": "text", "text": "now?"}]
    spared = turn("user", parts, name=None, tool_calls=[])
    (found,) = load_test(write(tmp_path / "u.jsonl", row(turn("developer", "S"), spared, answer=7))).examples("test")
    assert (found.turns[0].role, found.input, found.references) == ("system", "And\nnow?", ("7",))


@pytest.mark.parametrize(
    ("reply", "more", "references"),
    [
        ("It is lower.\nAnswer: no", {}, ("no",)),
        ("No.", {}, ("No",)),
        (
            "It is lower. That is why you should ask your doctor before you take any more of it today.",
            {"answer": "no"},
            ("no",),
        ),
        ("I would say no, it is not.", {"choices": ["yes", "no"]}, ("no",)),
    ],
)
def test_an_answer_at_the_end_is_the_target_to_the_letter(
    tmp_path: Path, reply: str, more: dict[str, Any], references: tuple[str, ...]
) -> None:
    task = load_test(write(tmp_path / "t.jsonl", row(*ASKED, turn("assistant", reply), **more)))
    (found,) = task.examples("test")
    assert (found.turns, found.input, found.references) == (TURNS, "And now?", references)
    assert task.target(found) == reply


def test_an_answer_is_read_by_the_tasks_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", row(*ASKED, turn("assistant", "I would say NO, it is not.")))
    assert load_test(path, ("yes", "no")).examples("test")[0].references == ("no",)


def test_without_a_marked_answer_answers_are_compared(tmp_path: Path) -> None:
    long = "It is lower.\nAsk your doctor."
    assert 'PATH:1: no answer is marked in the last text of "messages"; end it with "Answer: ..."' in problem(
        tmp_path, row(*ASKED, turn("assistant", long))
    )
    path = write(tmp_path / "t.jsonl", row(*ASKED, turn("assistant", long)))
    (found,) = load_jsonl_task("mine", None, None, path, answered=False).examples("test")
    assert (found.references, found.target) == ((), long)


WRONG: list[tuple[dict[str, object], str]] = [
    ({"messages": [], "answer": "a"}, '"messages" is an empty list; give a list of turns'),
    ({"messages": "Hi", "answer": "a"}, '"messages" is a string; give a list of turns'),
    (row("Hi", answer="a"), '"messages"[0] is a string; give an object with "role" and "content"'),
    (row(turn("human", "Hi"), answer="a"), '"messages"[0]."role" is \'human\'; give one of system, user, assistant'),
    (row(turn("usr", "Hi"), answer="a"), "did you mean 'user'?"),
    (row(turn("tool", "7"), answer="a"), "leave out turns of tools"),
    (row({"content": "Hi"}, answer="a"), '"messages"[0]."role" is null; give one of'),
    (row(turn("user", " "), answer="a"), '"messages"[0]."content" is empty; write what was said'),
    (row(turn("user", None), answer="a"), '"messages"[0]."content" is null; give a string'),
    (row(turn("user", "A"), turn("user", "B"), answer="a"), '"messages"[1] is a second user turn in a row; join both'),
    (
        row(turn("user", "A"), turn("system", "B"), answer="a"),
        '"messages" ends with a turn of system; end with the user\'s',
    ),
    (row(turn("assistant", "A"), answer="a"), "ends with a turn of assistant that follows no question"),
    (row(turn("user", "A", name="ann"), answer="a"), '"messages"[0] has "name", which would be lost; leave it out'),
    (
        row(turn("user", [{"type": "text", "text": "A"}, {"type": "image_url", "image_url": {}}]), answer="a"),
        '"messages"[0]."content"[1] is of type \'image_url\'; only text can be kept',
    ),
    (row(turn("user", ["A"]), answer="a"), '"messages"[0]."content"[0] is a string; only text can be kept'),
    (row(turn("user", "A"), input="A", answer="a"), 'both "input" and "messages" are given; keep one'),
    (row(turn("user", "A"), turn("assistant", "B"), rationale="r"), 'both "rationale" and an answer at the end'),
]


@pytest.mark.parametrize(("wrong", "told"), WRONG)
def test_mistakes_are_told_with_line_field_and_fix(tmp_path: Path, wrong: dict[str, object], told: str) -> None:
    said = problem(tmp_path, {"input": "q", "answer": "a"}, wrong)
    assert said.startswith("PATH:2: ") and told in said


def test_the_same_question_after_other_turns_is_another(tmp_path: Path) -> None:
    other = [turn("user", "I have nothing."), *ASKED[2:]]
    train = write(tmp_path / "a.jsonl", row(*ASKED, answer="no"), row(*other, answer="yes"))
    test = write(tmp_path / "b.jsonl", row(ASKED[-1], answer="no"))
    load_jsonl_task("mine", train, None, test)
    unprompted = write(tmp_path / "c.jsonl", row(*ASKED[1:], answer="no"))
    with pytest.raises(DataError, match="remove one, so that test queries are unseen"):
        load_jsonl_task("mine", train, None, unprompted)


def test_an_example_without_turns_is_the_record_that_it_was() -> None:
    old: dict[str, JsonValue] = {
        "id": "1",
        "input": "q",
        "context": None,
        "references": ["a"],
        "choices": [],
        "rationale": None,
        "metadata": {},
    }
    example = Example(id="1", input="q", references=("a",))
    assert example.model_dump(mode="json") == old
    assert fingerprint(example.model_copy(update={"turns": TURNS}).model_dump(mode="json")) != fingerprint(old)
    kept = example.model_copy(update={"turns": TURNS})
    assert Example.model_validate_json(kept.model_dump_json()) == kept
