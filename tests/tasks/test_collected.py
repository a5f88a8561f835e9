"""Collected rows never override a task's own data, and come in its form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from cowest.errors import DataError
from cowest.tasks.base import CLASS_METRICS, OPEN_METRICS, SimpleTask, notes_of
from cowest.tasks.collected import pairs_file, with_collected
from cowest.types import Example


def own(input_: str, split: str) -> tuple[Example, ...]:
    return (Example(id=f"{split}-1", input=input_, references=("yes",), choices=("yes", "no")),)


def task(labels: tuple[str, ...] = ("yes", "no")) -> SimpleTask:
    splits = {split: own(f"In {split}?", split) for split in ("train", "validation", "test")}
    return SimpleTask("t", CLASS_METRICS if labels else OPEN_METRICS, labels, "Answer.", splits, ("a note",))


def rows(path: Path, *found: Mapping[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def test_rows_come_before_the_tasks_own_and_take_its_form(tmp_path: Path) -> None:
    extended = with_collected(task(), rows(tmp_path / "c.jsonl", {"id": "c1", "input": "New?", "references": ["YES"]}))
    new, old = extended.examples("train")
    assert new == Example(id="c1", input="New?", references=("yes",), choices=("yes", "no")) and old.id == "train-1"
    assert extended.examples("test") == task().examples("test")
    assert (extended.name, extended.metrics, extended.labels) == ("t", CLASS_METRICS, ("yes", "no"))
    assert extended.target(new) == "Answer: yes" and extended.extract("Answer: no", new) == "no"
    assert notes_of(extended)[0] == "a note"
    assert notes_of(extended)[1].startswith("1 collected questions added to training (")


def test_what_does_not_fit_is_left_out_and_counted(tmp_path: Path) -> None:
    path = rows(
        tmp_path / "c.jsonl",
        *({"id": s, "input": f"in  {s.upper()}?", "answer": "no"} for s in ("train", "validation", "test")),
        {"id": "label", "input": "A?", "answer": "perhaps"},
        {"id": "choice", "input": "B?", "answer": "yes", "choices": ["yes", "never"]},
        {"id": "first", "input": "C?", "answer": "yes"},
        {"id": "second", "input": "c?", "answer": "no"},
    )
    extended = with_collected(task(), path)
    assert [e.id for e in extended.examples("train")] == ["first", "train-1"]
    note = notes_of(extended)[1]
    assert note.startswith("1 collected questions added to training; left out: 3 whose question the task has already, ")
    assert "2 whose answer is no label of the task" in note and "1 whose question is there twice" in note


def test_open_answers_stay_as_they_are(tmp_path: Path) -> None:
    extended = with_collected(task(()), rows(tmp_path / "c.jsonl", {"input": "Who?", "answer": "Mira", "id": "c"}))
    assert extended.examples("train")[0] == Example(id="c", input="Who?", references=("Mira",))


def test_a_file_without_rows_is_no_fault(tmp_path: Path) -> None:
    assert with_collected(task(), rows(tmp_path / "c.jsonl")).examples("train") == own("In train?", "train")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"id": "train-1", "input": "New?", "answer": "no"}, "already in the task's data"),
        ({"input": "New?"}, "references"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: dict[str, object], why: str) -> None:
    with pytest.raises(DataError, match=why) as told:
        with_collected(task(), rows(tmp_path / "c.jsonl", row))
    assert "c.jsonl:1" in str(told.value)


def test_where_the_pairs_are() -> None:
    assert pairs_file(Path("a/collected.jsonl")) == Path("a/collected.pairs.jsonl")
