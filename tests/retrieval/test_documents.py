from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.helpers import world

from cowest.errors import DataError
from cowest.retrieval.documents import Document, documents_of, split_text
from cowest.tasks.base import OPEN_METRICS, SimpleTask, open_instruction
from cowest.types import Example


def example(id: str, context: str | None = None, rationale: str | None = None) -> Example:
    return Example(id=id, input=f"Question {id}?", context=context, rationale=rationale, references=("42",))


def task(*train: Example) -> SimpleTask:
    test = (example("secret", rationale="Never to be found."),)
    return SimpleTask("t", OPEN_METRICS, (), open_instruction(), {"train": train, "test": test})


def test_a_document_is_context_and_rationale_or_else_question_and_target() -> None:
    found = documents_of(task(example("a", "Con.", "Ra."), example("b", None, "Only."), example("c", "  ")))
    assert found == (Document("a", "Con.\nRa."), Document("b", "Only."), Document("c", "Question c?\nAnswer: 42"))


def test_equal_texts_are_one_document_and_test_texts_are_none() -> None:
    found = documents_of(task(example("a", rationale="Velmo is safe."), example("b", rationale="VELMO  is safe. ")))
    assert found == (Document("a", "Velmo is safe."),)


def test_a_long_text_is_split_at_ends_of_sentences() -> None:
    text = "One is here. Two is here! Is three?\nFour. Fiveisalongword"
    found = documents_of(task(example("a", rationale=text)), max_chars=14)
    assert found == (
        Document("a", "One is here."),
        Document("a/2", "Two is here!"),
        Document("a/3", "Is three?"),
        Document("a/4", "Four."),
        Document("a/5", "Fiveisalongwor"),
        Document("a/6", "d"),
    )


@given(st.text(max_size=200), st.integers(1, 40))
def test_splitting_loses_no_letter_and_keeps_to_the_length(text: str, most: int) -> None:
    parts = list(split_text(text, most))
    assert all(0 < len(part) <= most and part == part.strip() for part in parts)
    assert "".join("".join(part.split()) for part in parts) == "".join(text.split())


def test_a_length_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        list(split_text("x", 0))


def test_a_task_without_training_examples_has_nothing_to_search() -> None:
    with pytest.raises(DataError, match=r"no documents to search \(task 't'"):
        documents_of(task())


def test_a_lab_worlds_documents_are_its_rationales() -> None:
    lab = world()
    texts = {" ".join((e.rationale or "").split()) for e in lab.examples("train") if e.rationale}
    found = {" ".join(d.text.split()) for d in documents_of(lab)}
    assert texts and texts <= found
