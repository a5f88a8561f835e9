"""Answer extraction on literal nasty texts."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowest.errors import ConfigError
from cowest.tasks.answers import extract_answer
from cowest.tasks.base import CLASS_METRICS, SimpleTask
from cowest.types import Example

YNM = ("yes", "no", "maybe")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes.", "yes"),
        ("YES!", "yes"),
        ("**Answer:** No.", "no"),
        ("**Answer**: No", "no"),
        ("__Answer__: `maybe`", "maybe"),
        ("Answer: **maybe**, because no...", "maybe"),
        ("Answer: maybe, because no trial says yes", "maybe"),
        ("ANSWER : (no)", "no"),
        ("Answer\uff1a\uff39\uff25\uff33", "yes"),  # full-width colon and letters
        ("Answer: yes\nNo, wait.\nFinal answer: no", "no"),
        ("Answer:\n\n yes", "yes"),
        ("Answer: yes\nNo further questions.", "yes"),
        ("Answer: yes, yes", "yes"),
        ("The trial was large. So it is maybe the case.", "maybe"),
        ("The answer is maybe, because no...", None),  # unmarked, two classes
        ("yes or no", None),
        ("Answer: yes or no", None),
        ("Answer: yes/no", None),
        ("Answer: no, yes", None),
        ("Answer: not yes", None),
        ("Answer: unknown", None),
        ("Yes, that is so.\nAnswer:", None),  # cut off
        ("Answer: ...", None),
        ("Answer: no-one", None),
        ("Answer: nope", None),
        ("I know nothing; yesterday was maybes.", None),
        ("I'm sorry, but I can't help with that.", None),
        ("", None),
        ("\U0001f642", None),
    ],
)
def test_classes(text: str, expected: str | None) -> None:
    assert extract_answer(text, YNM) == expected


@pytest.mark.parametrize(
    ("labels", "text", "expected"),
    [
        (("__casual__", "__needs_caution__"), "Answer: __needs_caution__", "__needs_caution__"),
        (("__casual__", "__needs_caution__"), "This is Needs_Caution.", "__needs_caution__"),
        (("__casual__", "__needs_caution__"), "Answer: needs caution, for it is rude", "__needs_caution__"),
        (("__casual__", "__needs_caution__"), "**Answer:** __needs_caution__.", "__needs_caution__"),
        (("__casual__", "__needs_caution__"), "Answer: `needs_caution`", "__needs_caution__"),
        (
            ("__needs_caution__", "__possibly_needs_caution__"),
            "It possibly needs caution.",
            "__possibly_needs_caution__",
        ),
        (("__needs_caution__", "__needs_intervention__"), "Answer: needs caution or needs intervention", None),
        (("__needs_caution__", "__casual__"), "It is casual, but needs caution.", None),
        (("__needs_caution__", "__casual__"), "It needs no caution.", None),
        (("bad", "very bad"), "Answer: Very  bad indeed", "very bad"),
        (("bad", "very bad"), "It is very bad.", "very bad"),
        (("A", "B"), "Answer: (B) because it is", "B"),
        (("A", "B"), "Answer: B because it is", "B"),
        (("A", "B"), "Answer: A) a house", "A"),
        (("A", "B"), "Answer: A patient may", None),
        (("A", "B"), "A patient may take it.", None),
        (("A", "B"), "b.", "B"),
        (("1", "2"), "There are 2 facts.", None),
        (("1", "2"), "Answer: 2", "2"),
        (("+", "-"), "Answer: -", "-"),
        (("c++", "c"), "Answer: C++, of course", "c++"),
        (("größer", "kleiner"), "Also ist es GRÖSSER.", "größer"),
        (("größer", "kleiner"), "Es ist GRÖSSER. Nein: kleiner", None),
    ],
)
def test_unusual_labels(labels: tuple[str, ...], text: str, expected: str | None) -> None:
    assert extract_answer(text, labels) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("**Answer:** 42", "42"),
        ("**Answer: 42**", "42"),
        ("Answer:**\n42", "42"),
        ("Answer: `42`.", "42"),
        ("so 40 + 2.\nanswer: \u201cForty two.\u201d", "Forty two"),
        ("Answer: -3.5.", "-3.5"),
        ("Answer: 1\nQuestion: next?\nAnswer: 2", "1"),  # the model asks itself a next question
        ("Answer: K\u00f8benhavn \u6771\u4eac", "K\u00f8benhavn \u6771\u4eac"),
        ("Answer: x\r\nmore", "x"),
        ("Mira Ost", "Mira Ost"),
        ("  Mira Ost.\n", "Mira Ost"),
        ("one two three four five six seven eight nine ten eleven twelve", "*same*"),
        ("one two three four five six seven eight nine ten eleven twelve thirteen", None),
        ("Line one\nLine two", None),
        ("Nonanswer: 3 is what a longer line says and it goes on and on", None),
        ("So the answer is 4 hours.", "4 hours"),
        ("The final answer is: Oslo", "Oslo"),
        ("My answer would be **Oslo**.", "Oslo"),
        ("The answer is 42.\nAnswer: 43", "43"),
        ("The answering machine is Oslo", "The answering machine is Oslo"),
        ("Answer: $1.5 million", "$1.5 million"),
        ("Answer: 5 km (3.1 miles)", "5 km (3.1 miles)"),
        ("Answer:", None),
        ("Answer: **", None),
        ("", None),
        ("   \n ", None),
    ],
)
def test_open(text: str, expected: str | None) -> None:
    assert extract_answer(text) == (text if expected == "*same*" else expected)


def test_choices_of_the_example_count_where_the_task_has_no_labels() -> None:
    task = SimpleTask("t", ("em",), (), "say", {})
    example = Example(id="1", input="q", references=("Oslo",), choices=("Oslo", "Rome"))
    assert task.extract("Answer: oslo, in Norway", example) == "Oslo"


@given(st.text(max_size=200), st.sampled_from([(), YNM, ("A", "B")]))
def test_any_text_gives_a_label_a_text_or_none(text: str, labels: tuple[str, ...]) -> None:
    answer = extract_answer(text, labels)
    assert answer is None or (answer in labels if labels else answer.strip() == answer != "")


@given(st.sampled_from(YNM), st.text(alphabet="ab \n", max_size=50))
def test_a_target_is_read_back(label: str, rationale: str) -> None:
    task = SimpleTask("t", CLASS_METRICS, YNM, "say", {})
    example = Example(id="1", input="q", references=(label,), rationale=rationale or None)
    assert task.extract(task.target(example), example) == label


def test_hostile_text_is_quick() -> None:
    start = time.process_time()
    for text in (
        *("answer" + " " * 100_000, "Answer:" * 20_000, "yes " * 30_000, "\n" * 100_000, "no," * 40_000),
        *(
            "the answer is " * 8_000,
            "\\boxed{" * 15_000,
            "yes\nQuestion: x\n" * 9_000,
            "\\text{" * 15_000,
            "<think>" * 14_000,
        ),
    ):
        extract_answer(text, YNM)
        extract_answer(text)
    assert time.process_time() - start < 10.0, "quadratic reading would take minutes"


def test_labels_that_read_alike_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'Yes' and 'yes\.' read alike"):
        SimpleTask("t", CLASS_METRICS, ("Yes", "yes."), "say", {})
