"""Loading the user's own data: what is read, and what every mistake is told."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from cowest.errors import ConfigError, DataError
from cowest.protocols import Task
from cowest.scoring.metrics import exact_match
from cowest.tasks import load_jsonl_task
from cowest.tasks.jsonl import JsonlTask


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def load_test(path: Path, labels: tuple[str, ...] = ()) -> JsonlTask:
    return load_jsonl_task("mine", None, None, path, labels=labels)


def problem(tmp_path: Path, *rows: object, labels: tuple[str, ...] = ()) -> str:
    """The message for a test file with these rows, its path written as PATH."""
    path = write(tmp_path / "test.jsonl", *rows)
    with pytest.raises(DataError) as caught:
        load_test(path, labels)
    return str(caught.value).replace(str(path), "PATH")


GOOD = {"input": "q", "answer": "a"}


def test_reads_every_field(tmp_path: Path) -> None:
    row = {
        "id": "x", "input": "Who?", "references": ["Mira", "M. Ost"], "rationale": "Mira did.", "context": "Town.",
        "choices": ["Mira", "Jon", "M. Ost"], "metadata": {"source": "book"},
    }  # fmt: skip
    other = {"id": 7, "input": "How much?", "answer": 42.0, "rationale": None}
    task: Task = load_test(write(tmp_path / "t.jsonl", row, "", "  ", other, {"input": "\u00e9 \u6771", "answer": 0.5}))
    first, second, third = task.examples("test")
    assert (first.id, first.input, first.references) == ("x", "Who?", ("Mira", "M. Ost"))
    assert (first.context, first.metadata, first.choices) == ("Town.", {"source": "book"}, ("Mira", "Jon", "M. Ost"))
    assert task.target(first) == "Mira did.\nAnswer: Mira"
    assert (second.id, second.references, task.target(second)) == ("7", ("42",), "Answer: 42")
    assert (third.id, third.input, third.references) == ("test-5", "\u00e9 \u6771", ("0.5",))
    assert (task.metrics, task.labels) == (("em", "f1"), ())
    assert "Answer:" in task.instruction


def test_bom_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"input": "q", "answer": "a"}\r\n\r\n{"input": "r", "answer": "b"}\r\n')
    assert [example.id for example in load_test(path).examples("test")] == ["test-1", "test-3"]


def test_classification_by_labels_or_by_shared_choices(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.jsonl", {"input": "q", "answer": "no"})
    assert load_test(plain, ("yes", "no")).metrics == ("accuracy", "macro_f1")
    same = write(
        tmp_path / "b.jsonl",
        {"input": "q", "answer": "no", "choices": ["yes", "no"]},
        {"input": "r", "answer": "yes", "choices": ["no", "yes"]},
    )
    task = load_test(same)
    assert (task.labels, task.metrics) == (("yes", "no"), ("accuracy", "macro_f1"))
    assert "yes, no" in task.instruction
    differ = write(
        tmp_path / "c.jsonl",
        {"input": "q", "answer": "no", "choices": ["yes", "no"]},
        {"input": "r", "answer": "x", "choices": ["x", "y"]},
    )
    assert (load_test(differ).labels, load_test(differ).metrics) == ((), ("em", "f1"))


def test_own_instruction_and_metrics(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", GOOD)
    task = load_jsonl_task("mine", None, None, path, instruction="Say it.", metrics=("f1",))
    assert (task.instruction, task.metrics) == ("Say it.", ("f1",))
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        load_jsonl_task("mine", None, None, path, metrics=("acuracy",))
    with pytest.raises(ConfigError, match="needs labels"):
        load_jsonl_task("mine", None, None, path, metrics=("accuracy",))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"input": "q", "answer": "a"', "PATH:2: broken JSON ("),
        ('[{"input": "q"},', "one object per line, not one array"),
        ("[1]", "PATH:2: not a JSON object but a list"),
        ('"text"', "PATH:2: not a JSON object but a string"),
        ('{"input": "q", "answer": NaN}', "NaN is not JSON"),
        ('{"input": "q", "answer": 1e999}', "too large"),
        ('{"input": "q", "answer": ' + "9" * 5000 + "}", "PATH:2: broken JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"input": "\\ud800", "answer": "a"}', "PATH:2: holds half a surrogate pair"),
        ({"answer": "a"}, 'PATH:2: "input" is missing; add a non-empty string'),
        ({"input": " ", "answer": "a"}, 'PATH:2: "input" is empty; give a non-empty string'),
        ({"input": 3, "answer": "a"}, 'PATH:2: "input" is a number; give a non-empty string'),
        ({"input": "r"}, 'PATH:2: "references" is missing; add'),
        ({"input": "r", "answer": None}, 'PATH:2: "references" is missing; add'),
        ({"input": "r", "answer": ""}, 'PATH:2: "answer" is empty; give a string or a number'),
        ({"input": "r", "answer": True}, 'PATH:2: "answer" is a boolean; give a string or a number'),
        ({"input": "r", "answer": "a", "references": ["a"]}, 'PATH:2: both "answer" and "references" are given'),
        ({"input": "r", "references": []}, 'PATH:2: "references" is an empty list'),
        ({"input": "r", "references": "a"}, 'PATH:2: "references" is a string; give a list'),
        ({"input": "r", "references": ["a", ""]}, 'PATH:2: "references" holds empty'),
        ({"input": "r", "references": [1]}, 'PATH:2: "references" holds a number'),
        ({"input": "r", "answer": "a", "choices": ["b", "c"]}, "answer 'a' is not among the choices (b, c)"),
        ({"input": "r", "answer": "a", "choices": "b"}, 'PATH:2: "choices" is a string'),
        ({"input": "r", "answer": "a", "rationale": 1}, 'PATH:2: "rationale" is a number'),
        ({"input": "r", "answer": "a", "metadata": {"k": 1}}, '"metadata" has a number at "k"'),
        ({"input": "r", "answer": "a", "metadata": []}, '"metadata" is an empty list'),
        ({"input": "r", "answer": "a", "id": ""}, 'PATH:2: "id" is empty'),
        ({"input": "r", "answer": "a", "rational": "x"}, "unknown field \"rational\"; did you mean 'rationale'?"),
        ({"input": "r", "answer": "a", "zzz": "x"}, 'unknown field "zzz"; known are input'),
        ({"input": "r", "answer": "a", "id": "test-1"}, "PATH:2: \"id\" 'test-1' is already at PATH:1"),
    ],
)
def test_every_problem_names_line_field_and_fix(tmp_path: Path, row: object, message: str) -> None:
    told = problem(tmp_path, GOOD, row)
    assert message in told
    assert len(told.splitlines()) == 1
    assert len(told) < 400


def test_labels_are_checked(tmp_path: Path) -> None:
    told = problem(tmp_path, {"input": "q", "answer": "Yes"}, {"input": "r", "answer": "no"}, labels=("yes", "no"))
    assert told == "PATH:1: answer 'Yes' is not among the labels (yes, no); did you mean 'yes'?"
    told = problem(tmp_path, {"input": "q", "answer": "yes", "choices": ["yes", "never"]}, labels=("yes", "no"))
    assert "choice 'never' is not among the labels" in told


def test_problems_are_collected_up_to_ten(tmp_path: Path) -> None:
    told = problem(tmp_path, {"answer": "a"}, GOOD, "{", {"input": "q"})
    assert [line.split(": ")[0] for line in told.splitlines()] == ["PATH:1", "PATH:3", "PATH:4"]
    lines = problem(tmp_path, *["{"] * 30).splitlines()
    assert len(lines) == 11
    assert "more" in lines[-1]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; check the path of the test data"):
        load_test(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        load_test(tmp_path)
    assert problem(tmp_path).startswith("PATH: is empty; give one JSON object per line")
    assert "is empty" in problem(tmp_path, "", "  ")
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"input": "q", "answer": "a"}\n{"input": "caf\xe9", "answer": "a"}\n')
    with pytest.raises(DataError, match=r"latin.jsonl:2: not UTF-8 \(byte 0xe9 at column 15\); save the file as UTF-8"):
        load_test(path)
    with pytest.raises(DataError, match="has no data"):
        load_jsonl_task("mine", None, None, None)


def test_overlap_names_both_lines(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", {"input": "one", "answer": "1"}, {"input": "Two  apples", "answer": "2"})
    validation = write(tmp_path / "val.jsonl", {"input": "three", "answer": "3"})
    test = write(tmp_path / "test.jsonl", {"input": "two apples", "answer": "2"}, {"input": "Three", "answer": "3"})
    with pytest.raises(DataError) as caught:
        load_jsonl_task("mine", train, validation, test)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f'{test}:1: the same "input" is at {train}:2')
    assert second.startswith(f'{test}:2: the same "input" is at {validation}:1')


def test_same_question_in_another_context_is_no_overlap(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", {"input": "Helps?", "context": "A", "answer": "1"})
    test = write(tmp_path / "test.jsonl", {"input": "Helps?", "context": "B", "answer": "2"})
    task = load_jsonl_task("mine", train, None, test, validation_fraction=0)
    assert [len(task.examples(split)) for split in ("train", "test")] == [1, 1]


def test_ids_are_unique_over_the_files(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", {"id": "1", "input": "one", "answer": "1"})
    test = write(tmp_path / "test.jsonl", {"id": 1, "input": "two", "answer": "2"})
    with pytest.raises(DataError, match=r"test.jsonl:1: \"id\" '1' is already at .*train.jsonl:1"):
        load_jsonl_task("mine", train, None, test, validation_fraction=0)


def test_validation_is_split_off_by_seed(tmp_path: Path) -> None:
    rows = [{"input": f"q{i // 2}", "answer": str(i)} for i in range(40)]  # each input twice
    train = write(tmp_path / "train.jsonl", *rows)

    def split(seed: int) -> tuple[list[str], list[str]]:
        task = load_jsonl_task("mine", train, None, None, validation_fraction=0.25, seed=seed)
        kept, held = task.examples("train"), task.examples("validation")
        assert not {example.input for example in kept} & {example.input for example in held}
        return [example.id for example in kept], [example.id for example in held]

    kept, held = split(0)
    assert (len(kept), len(held)) == (30, 10)
    assert set(kept) | set(held) == {f"train-{i}" for i in range(1, 41)}
    assert kept == sorted(kept, key=lambda name: int(name.split("-")[1]))
    assert split(0) == (kept, held)
    assert split(1) != (kept, held)


def test_too_little_to_split(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", GOOD)
    with pytest.raises(DataError, match="cannot split validation off"):
        load_jsonl_task("mine", train, None, None)
    with pytest.raises(ConfigError, match="validation_fraction"):
        load_jsonl_task("mine", train, None, None, validation_fraction=1.0)


def test_missing_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no 'train' split \(it has: test\)"):
        load_test(write(tmp_path / "t.jsonl", GOOD)).examples("train")


def test_a_hundred_thousand_rows_are_quick(tmp_path: Path) -> None:
    row = '{"input": "question number %d of many", "answer": "%d", "rationale": "because it is so"}'
    path = write(tmp_path / "train.jsonl", *[row % (i, i % 7) for i in range(100_000)])
    start = time.process_time()
    task = load_jsonl_task("mine", path, None, None)
    assert time.process_time() - start < 10
    assert len(task.examples("train")) == 90_000


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ("polish", "Polish", "read alike"),
        ('"x"', "x", "read alike"),
        ("don't", "don\u2019t", "read alike"),
        ("yes", "yes.", "read alike"),
        ("(b)", "b", "are the same to the metric em"),
        ("well-known", "wellknown", "are the same to the metric em"),
    ],
)
def test_choices_of_one_row_that_cannot_be_told_apart_are_refused(tmp_path: Path, a: str, b: str, said: str) -> None:
    rows = [{"input": "q0", "answer": "x0", "choices": ["x0", "y0"]}, {"input": "q1", "answer": a, "choices": [a, b]}]
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    with pytest.raises(DataError, match=said) as caught:
        load_jsonl_task("t", file, None, None, validation_fraction=0)
    assert f'{file}:2: "choices"' in str(caught.value) and "write them otherwise" in str(caught.value)


@pytest.mark.parametrize(
    ("a", "b"), [("<18", ">18"), ("<18", "18"), ("C", "C#"), ("-5", "5"), ("10", "10%"), ("(a)", "a")]
)
def test_choices_that_differ_in_a_mark_that_means_something_are_kept_apart(tmp_path: Path, a: str, b: str) -> None:
    rows = [{"input": "q0", "answer": "x0", "choices": ["x0", "y0"]}, {"input": "q1", "answer": a, "choices": [a, b]}]
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in rows), encoding="utf-8")
    task = load_jsonl_task("t", file, None, None, validation_fraction=0)
    example = task.examples("train")[1]
    assert [task.extract(f"So it is.\nAnswer: {c}", example) for c in (a, b)] == [a, b]
    assert exact_match(a, (b,)) == 0.0
