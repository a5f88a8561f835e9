"""What a look at a task's data finds: each fault once, and nothing in sound data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cowest.errors import DataError
from cowest.tasks import load_jsonl_task
from cowest.tasks.base import CLASS_METRICS, OPEN_METRICS, SimpleTask
from cowest.tasks.health import Health, health
from cowest.types import Example


def example(i: int, answer: str = "yes", **fields: object) -> Example:
    word = "".join(chr(97 + int(d)) for d in str(i))
    values = {"id": f"x{i}", "input": f"Is {word} {word}ish in {i}?", "references": (answer,), **fields}
    return Example.model_validate(values)


def found(train: list[Example], test: list[Example] | None = None, labels: tuple[str, ...] = ("yes", "no")) -> Health:
    whole = [example(i, ("yes", "no")[i % 2]) for i in range(5000, 5120)]
    metrics = CLASS_METRICS if labels else OPEN_METRICS
    splits = {"train": tuple(train), "validation": tuple(whole[:20]), "test": tuple(test or whole[20:])}
    return health(SimpleTask("t", metrics, labels, "Say.", splits))


SOUND = [example(i, ("yes", "no")[i % 2]) for i in range(100)]


def test_sound_data_and_its_numbers() -> None:
    health_ = found(SOUND)
    assert health_.findings == ()
    assert health_.splits == {"train": 100, "validation": 20, "test": 100}
    assert health_.classes["train"] == {"yes": 50, "no": 50}
    assert health_.unit == "words" and health_.lengths["question"].median == 5
    assert health_.lengths["learned"].longest == 2


LONG = " ".join(f"w{i}" for i in range(30))
OPEN = [example(i, f"a{i}") for i in range(100)]
FAULTS: dict[str, tuple[list[Example], tuple[str, ...], str]] = {
    "contradicting": ([*SOUND, example(4, "no", id="again")], ("yes", "no"), "2 rows ask what another row asks"),
    "repeated": ([*SOUND, example(4, "yes", id="again")], ("yes", "no"), "1 rows are there again"),
    "one_class": ([example(i) for i in range(100)], ("yes", "no"), "train: all 100 rows are 'yes'"),
    "missing_class": (SOUND, ("yes", "no", "maybe"), "no row is 'maybe'"),
    "near_duplicates": (
        [*SOUND, example(1, input=LONG), example(2, input="else")],
        ("yes", "no"),
        "1 rows for validation or test are nearly a row of another split (test t is nearly train x1)",
    ),
    "spelled_apart": (
        [example(i, ("Yes", "no", "yes")[i % 3]) for i in range(99)],
        (),
        "differ from others in case or spaces alone ('Yes' / 'yes')",
    ),
    "classes_as_open": (SOUND, (), "the answers are 2 different ones: for a classification set task.labels: [yes, no]"),
    "empty_answers": ([*OPEN, example(777, "N/A")], (), "1 answers look like none at all ('N/A': train x777)"),
    "long_answers": ([example(i, LONG) for i in range(400)], (), "half of the answers have more than 20 words"),
    "mixed_choices": (
        [example(i, choices=("yes", "no")) if i else example(i) for i in range(300)],
        (),
        "so this is no classification",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_is_told(kind: str) -> None:
    train, labels, told = FAULTS[kind]
    test = [example(i, ("yes", "no")[i % 2]) for i in range(6000, 6120)]
    if kind == "near_duplicates":
        test.append(example(9, input=LONG.rsplit(" ", 1)[0] + " other", id="t"))
        train[-2] = example(1, input=LONG.rsplit(" ", 1)[0])
    texts = {f.kind: f.text for f in found(train, test, labels).findings}
    assert told in texts.get(kind, "not found"), texts


def test_tokens_rows_that_are_too_long_and_few_tests() -> None:
    splits = {
        "train": (*SOUND, example(500, context="c " * 300)),
        "validation": tuple(SOUND[:2]),
        "test": tuple(SOUND[:9]),
    }
    looked = health(SimpleTask("t", CLASS_METRICS, ("yes", "no"), "Say.", splits), len, "letters", 400)
    texts = {f.kind: f.text for f in looked.findings}
    assert (
        looked.unit == "letters" and "1 of 112 rows looked at are longer than sft.max_length, 400" in texts["too_long"]
    )
    assert texts["few_tests"].startswith("9 test rows")


ONE = {"input": "q", "answer": "a"}
NOT_JSONL: dict[str, tuple[bytes, str]] = {
    "csv": (b"question,answer\nq,a\n", ":1: is a table (CSV or TSV); rows are one JSON object a line"),
    "tsv": (b"\xef\xbb\xbfquestion\tanswer\r\nq\ta\r\n", ":1: is a table"),
    "array": (json.dumps([ONE, ONE]).encode(), ":1: is one JSON array"),
    "array over lines": (json.dumps([ONE, ONE], indent=2).encode(), ":1: is one JSON array"),
    "object": (json.dumps({"data": [ONE]}, indent=2).encode(), ":1: is one JSON object over several lines"),
    "parquet": (b"PAR1\x15\x00", ":1: is a Parquet file"),
    "gzip": (b"\x1f\x8b\x08\x00", ":1: is packed by gzip"),
    "utf-16": ('{"input": "q"}\n'.encode("utf-16"), ":1: is UTF-16"),
    "utf-16 without a mark": ('{"input": "q"}\n'.encode("utf-16-le"), ":1: is UTF-16"),
}


@pytest.mark.parametrize("kind", NOT_JSONL)
def test_a_file_that_is_no_jsonl_names_the_way_out(tmp_path: Path, kind: str) -> None:
    data, told = NOT_JSONL[kind]
    path = tmp_path / "rows"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        load_jsonl_task("mine", None, None, path)
    assert str(caught.value).startswith(f"{path}{told}") and f"cowest import {path} --out DIR" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"question": "q", "answer": "a"}, 'unknown field "question"; known are input'),
        ({"question": "q", "answer": "a"}, "rows with other names are read by: cowest import FILE --out DIR"),
        (
            {"input": "q", "answer": "a", "year": 3},
            "put others into metadata, or leave them out by: cowest import FILE",
        ),
        (
            {"input": "q", "answer": ["a", "b"]},
            '"answer" is a list; give a string or a number; several right answers are',
        ),
    ],
)
def test_rows_of_other_layouts_name_it_too(tmp_path: Path, row: dict[str, object], told: str) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ONE) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError) as caught:
        load_jsonl_task("mine", None, None, tmp_path / "rows.jsonl")
    assert "rows.jsonl:2: " in str(caught.value) and told in str(caught.value)
