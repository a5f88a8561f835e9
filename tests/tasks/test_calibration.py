"""Questions that are kept for calibration train nothing, nor do others that ask the same."""

from __future__ import annotations

import pytest

from cowest.errors import DataError
from cowest.tasks.base import CALIBRATION, OPEN_METRICS, SimpleTask, notes_of, open_instruction, reserving
from cowest.types import Example


def task_of(questions: list[str]) -> SimpleTask:
    train = tuple(Example(id=f"q{i}", input=asked, references=("x",)) for i, asked in enumerate(questions))
    return SimpleTask("t", OPEN_METRICS, (), open_instruction(), {"train": train, "validation": (), "test": ()})


def test_what_is_asked_twice_does_not_train_where_one_of_it_is_kept() -> None:
    questions = [f"{'question' if i < 30 else 'Question '} {i % 30}" for i in range(60)]
    found = reserving(task_of(questions), 20, seed=1)
    kept, train = found.examples(CALIBRATION), found.examples("train")
    assert len(kept) == 20 and train
    assert not {e.input.split()[-1] for e in kept} & {e.input.split()[-1] for e in train}
    left = 60 - 20 - len(train)
    assert notes_of(found) == (
        f"{left} training questions ask what a calibration question asks, and are left out of training",
    )


def test_questions_that_differ_all_train_and_nothing_is_noted() -> None:
    found = reserving(task_of([f"question {i}" for i in range(30)]), 10, seed=1)
    assert len(found.examples("train")) == 20 and notes_of(found) == ()


@pytest.mark.parametrize(("questions", "n"), [(["a", "b"], 2), (["a"] * 5, 1), (["a"], 3)])
def test_that_leaves_none_is_refused(questions: list[str], n: int) -> None:
    with pytest.raises(DataError, match="would leave none to train on"):
        reserving(task_of(questions), n, seed=0)
