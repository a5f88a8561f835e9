"""More ways in which models write answers, a row each in ``more_answers.jsonl``: what is read must be what a person would read.

Among the rows are refusals in many languages, and names that look like a marker, an introduction, a negation or a refusal.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cowest.tasks.answers import extract_answer

ROWS = [json.loads(line) for line in Path(__file__).with_name("more_answers.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['text'][-40:]} {row['labels']}")
def test_what_a_person_would_read(row: dict[str, object]) -> None:
    assert extract_answer(str(row["text"]), tuple(row["labels"])) == row["expected"]  # type: ignore[arg-type]
