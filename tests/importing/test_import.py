"""Data of many forms -> the files of a task: what is read, guessed, split and refused."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from cowest.errors import ConfigError, CowestError, DataError
from cowest.importing import importer
from cowest.importing.importer import Imported, import_data, look_at
from cowest.ledger.prices import end_of, price_of
from cowest.recipe.config import OpenAIModelConfig, load_config
from cowest.tasks import load_jsonl_task
from cowest.tasks.jsonl import JsonlTask

SPLITS = ("train", "validation", "test")


def rows_of(out: Path, split: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def every_row(out: Path) -> list[dict[str, object]]:
    return [row for split in SPLITS for row in rows_of(out, split)]


def loaded(out: Path) -> JsonlTask:
    """The task as a run would read it: whatever an import writes has to be valid."""
    return load_jsonl_task("x", *(out / f"{split}.jsonl" for split in SPLITS))


def lines(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def table(path: Path, encoding: str = "utf-8", mark: str = ",", end: str = "\n") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=mark, lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerow(("Frage", "Antwort", "Quelle"))
        writer.writerows((f"Was ist {i} Größe{i}?", ("ja", "nein")[i % 2], "Buch, Seite\n3") for i in range(40))
    return path


@pytest.mark.parametrize(
    ("name", "encoding", "mark", "end"),
    [
        ("a.csv", "utf-8", ",", "\n"),
        ("a.csv", "utf-8-sig", ";", "\r\n"),
        ("a.csv", "utf-16", ",", "\r\n"),
        ("a.csv", "utf-16-le", "|", "\n"),
        ("a.tsv", "utf-8", "\t", "\r"),
    ],
)
def test_tables_of_every_kind(tmp_path: Path, name: str, encoding: str, mark: str, end: str) -> None:
    done = import_data(table(tmp_path / name, encoding, mark, end), tmp_path / "out")
    assert done.columns == {"answer": ("Antwort",), "input": ("Frage",)} and done.unused == ("Quelle",)
    assert done.rows == {"train": 32, "validation": 4, "test": 4}
    assert done.labels == {
        "train": {"ja": 16, "nein": 16},
        "validation": {"ja": 2, "nein": 2},
        "test": {"ja": 2, "nein": 2},
    }
    assert sorted(str(row["input"]) for row in every_row(tmp_path / "out"))[0] == "Was ist 0 Größe0?"
    config = load_config(tmp_path / "out" / "recipe.yaml")
    assert config.task is not None and config.task.model_dump()["labels"] == ("ja", "nein")


def test_packed_and_json_of_every_layout(tmp_path: Path) -> None:
    rows = [{"question": f"q{i} w{i}?", "answer": f"a{i}"} for i in range(30)]
    columns = {"question": [r["question"] for r in rows], "answer": [r["answer"] for r in rows]}
    texts = {
        "array.json": json.dumps(rows, indent=2),
        "wrapped.json": json.dumps({"version": 1, "data": rows}),
        "keyed.json": json.dumps({str(i): row for i, row in enumerate(rows)}),
        "columns.json": json.dumps(columns),
        "lines.jsonl": "\r\n\r\n".join(map(json.dumps, rows)),
        "no_name": "\ufeff" + "\n".join(map(json.dumps, rows)),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with gzip.open(tmp_path / "lines.json.gz", "wt", encoding="utf-8") as file:
        file.write(texts["lines.jsonl"])
    for name in (*texts, "lines.json.gz"):
        import_data(tmp_path / name, tmp_path / f"out-{name}")
        found = {(row["input"], row["answer"]) for row in every_row(tmp_path / f"out-{name}")}
        assert found == {(row["question"], row["answer"]) for row in rows}, name


def test_a_large_json_is_read_in_pieces(tmp_path: Path) -> None:
    rows = {
        f"id{i}": {"question": f"q{i} {'x' * 3000} é", "answer": f"a{i}", "n": [1.5, {"k": "]}"}]} for i in range(900)
    }
    (tmp_path / "keyed.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    (tmp_path / "array.json").write_text(json.dumps([*rows.values()]), encoding="utf-8")
    done = import_data(tmp_path / "keyed.json", tmp_path / "a")
    assert sum(done.rows.values()) == 900 and done.columns["id"] == ("id",)
    assert sum(import_data(tmp_path / "array.json", tmp_path / "b").rows.values()) == 900


def choices(i: int) -> list[str]:
    return [f"red {i}", "green", "blue", "grey"]


CHOICES: dict[str, Callable[[int], dict[str, object]]] = {
    "by letter": lambda i: {"question": f"q{i} w{i}", "options": choices(i), "answer": "ABCD"[i % 4]},
    "by index from 0": lambda i: {"question": f"q{i} w{i}", "choices": choices(i), "answer": i % 4},
    "by index from 1": lambda i: {"question": f"q{i} w{i}", "choices": choices(i), "answer": str(i % 4 + 1)},
    "by text": lambda i: {"question": f"q{i} w{i}", "choices": choices(i), "answer": choices(i)[i % 4].upper()},
    "columns": lambda i: {"q": f"q{i} w{i}", **dict(zip("ABCD", choices(i), strict=True)), "answer": "abcd"[i % 4]},
    "opa": lambda i: {"q": f"q{i} w{i}", **dict(zip(("opa", "opb", "opc", "opd"), choices(i), strict=True)), "cop": i % 4},
    "ARC": lambda i: {"q": f"q{i} w{i}", "choices": {"text": choices(i), "label": [*"1234"]}, "answerKey": "1234"[i % 4]},
    "object": lambda i: {"q": f"q{i} w{i}", "options": dict(zip("ABCD", choices(i), strict=True)), "answer": "ABCD"[i % 4]},
    "one text": lambda i: {"q": f"q{i} w{i}", "options": " | ".join(choices(i)), "answer": "ABCD"[i % 4]},
    "a list as text": lambda i: {"q": f"q{i} w{i}", "options": repr(choices(i)), "answer": f"({'ABCD'[i % 4]})"},
    "lettered": lambda i: {
        "q": f"q{i} w{i}",
        "options": [f"{x}. {c}" for x, c in zip("ABCD", choices(i), strict=True)],
        "answer": "ABCD"[i % 4],
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", CHOICES)
def test_choices_and_the_answer_among_them(tmp_path: Path, kind: str) -> None:
    import_data(lines(tmp_path / "a.jsonl", [CHOICES[kind](i) for i in range(40)]), tmp_path / "out")
    for row in every_row(tmp_path / "out"):
        i = int(str(row["input"]).split("w")[1])
        assert (row["choices"], row["answer"]) == (choices(i), choices(i)[i % 4])
    assert loaded(tmp_path / "out").labels == ()


OTHERS: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "SQuAD": ({"answers": {"text": ["a", "b"], "answer_start": [1, 2]}}, {"references": ["a", "b"]}),
    "BoolQ": ({"passage": "p", "answer": True}, {"context": "p", "answer": "yes"}),
    "PubMedQA": (
        {"CONTEXTS": ["one", "two"], "LONG_ANSWER": "since", "final_decision": "no"},
        {"context": "one\n\ntwo", "rationale": "since", "answer": "no"},
    ),
    "numbers": ({"answer": 42.0, "context": None, "rationale": "nan"}, {"answer": "42"}),
    "Alpaca": ({"instruction": "Say it.", "output": "yes it is"}, {"answer": "yes it is"}),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_layouts_of_known_data(tmp_path: Path, kind: str) -> None:
    given, wanted = OTHERS[kind]
    question = "input" if kind == "Alpaca" else "question"
    import_data(lines(tmp_path / "a.jsonl", [{question: f"q{i} w{i}?", **given} for i in range(20)]), tmp_path / "out")
    row = every_row(tmp_path / "out")[0]
    asked = str(row.pop("input"))
    assert row == wanted and asked.endswith("?") and asked.startswith("Say it.\n\n") == (kind == "Alpaca")
    assert loaded(tmp_path / "out").examples("test")


def test_conversations_and_trl(tmp_path: Path) -> None:
    def user(i: int) -> dict[str, str]:
        return {"role": "user", "content": f"Is {i} thing{i} even?"}

    long = "It depends.\nOn much."
    kinds: dict[str, Callable[[int], dict[str, object]]] = {
        "messages": lambda i: {"messages": [user(i), {"role": "assistant", "content": "Because.\nAnswer: yes"}]},
        "sharegpt": lambda i: {
            "conversations": [{"from": "human", "value": user(i)["content"]}, {"from": "gpt", "value": long}]
        },
        "conversational": lambda i: {"prompt": [user(i)], "completion": [{"role": "assistant", "content": "yes"}]},
        "long": lambda i: {"prompt": user(i)["content"], "completion": long},
        "short": lambda i: {"prompt": user(i)["content"], "completion": "yes"},
    }
    for kind, make in kinds.items():
        import_data(lines(tmp_path / f"{kind}.jsonl", [make(i) for i in range(20)]), tmp_path / kind)
        example = loaded(tmp_path / kind).examples("train")[0]
        assert example.references == ((long,) if kind in ("sharegpt", "long") else ("yes",)), kind
        assert example.target == {"messages": "Because.\nAnswer: yes", "conversational": "yes", "short": None}.get(
            kind, long
        )
        assert example.input.startswith("Is ")


def test_the_same_question_never_lands_on_two_sides(tmp_path: Path) -> None:
    rng = random.Random(3)
    words = ["w" + str(i).translate(str.maketrans("0123456789", "abcdefghij")) for i in range(3000)]
    rows: list[dict[str, object]] = []
    for i in range(300):
        asked = rng.sample(words, 14)
        near = [*asked[:-1], "other"]
        for text in (" ".join(asked), " ".join(asked).upper() + "  ?", " ".join(near)):
            rows.append({"question": text, "answer": "yes" if i % 3 else "no", "family": i})
    done = import_data(lines(tmp_path / "a.jsonl", rows), tmp_path / "out", ["family=metadata"], seed=5)
    sides: dict[str, set[str]] = {}
    for split in SPLITS:
        for row in rows_of(tmp_path / "out", split):
            metadata = row["metadata"]
            assert isinstance(metadata, dict)
            sides.setdefault(metadata["family"], set()).add(split)
    assert sum(len(found) > 1 for found in sides.values()) <= 15, "nearly equal: most; equal ones: see below"
    equal: dict[str, set[str]] = {}
    for split in SPLITS:
        for row in rows_of(tmp_path / "out", split):
            equal.setdefault(str(row["input"]).casefold().strip(" ?"), set()).add(split)
    assert all(len(found) == 1 for found in equal.values())
    assert any("nearly equal" in note for note in done.notes)
    for split, wanted in zip(SPLITS, (720, 90, 90), strict=True):
        assert abs(done.rows[split] - wanted) <= 6
        assert done.labels[split]["no"] / done.rows[split] == pytest.approx(1 / 3, abs=0.07)


def test_questions_of_a_template_are_not_taken_for_one(tmp_path: Path) -> None:
    rows = [
        {"question": f"May a patient with {a} take {n} mg of {b}?", "answer": "yes"}
        for a in ("Kasti", "Dorin", "Batar", "Padir", "Giseler")
        for b in ("Velmo", "Koser", "Zuli", "Gokon")
        for n in range(10, 30)
    ]
    done = import_data(lines(tmp_path / "a.jsonl", rows), tmp_path / "out")
    assert done.rows == {"train": 320, "validation": 40, "test": 40}


def test_groups_and_ids_stay_together(tmp_path: Path) -> None:
    rows = [{"question": f"q{i} w{i}", "answer": "a b", "patient": i // 8, "id": i // 2} for i in range(400)]
    done = import_data(lines(tmp_path / "a.jsonl", rows), tmp_path / "out", ["patient=group"])
    sides: dict[int, set[str]] = {}
    for split in SPLITS:
        for row in rows_of(tmp_path / "out", split):
            sides.setdefault(int(str(row["input"]).split("w")[1]) // 8, set()).add(split)
            assert "id" not in row and row["metadata"]
    assert all(len(found) == 1 for found in sides.values())
    assert any("ids are not unique" in note for note in done.notes)
    assert loaded(tmp_path / "out").examples("train")


def test_a_seed_gives_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    source = table(tmp_path / "a.csv")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        import_data(source, tmp_path / name, seed=seed)
    a, b, c = ([(tmp_path / n / f"{s}.jsonl").read_bytes() for s in SPLITS] for n in "abc")
    assert a == b and a != c


def test_splits_of_the_source_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, start in (("train", 0), ("dev", 100), ("test", 200)):
        lines(folder / f"{name}.jsonl", [{"idx": i, "question": f"q{start + i} w", "answer": "a b"} for i in range(30)])
    lines(folder / "train.jsonl", [{"idx": i, "question": f"q{i + 199} w", "answer": "a b"} for i in range(30)])
    done = import_data(folder, tmp_path / "out")
    assert done.rows == {"train": 1, "validation": 30, "test": 30}
    assert any("29 rows for training or validation ask what a test row asks" in note for note in done.notes)
    assert loaded(tmp_path / "out").examples("train")[0].input == "q199 w"
    (folder / "dev.jsonl").unlink()
    lines(folder / "train.jsonl", [{"question": f"r{i} {i}", "answer": "a b"} for i in range(45)])
    assert import_data(folder, tmp_path / "two").rows == {"train": 40, "validation": 5, "test": 30}
    by_column = [{"question": f"q{i} w", "answer": "a b", "split": ("train", "val", "test")[i % 3]} for i in range(30)]
    assert import_data(lines(tmp_path / "c.jsonl", by_column), tmp_path / "three").rows == dict.fromkeys(SPLITS, 10)


def test_saved_datasets_and_parquet(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    names = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
    made = datasets.Dataset.from_dict(
        {"text": [f"t{i} w{i}" for i in range(40)], "label": [i % 2 for i in range(40)]}, names
    )
    made.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": made, "test": made.select(range(8))}).save_to_disk(tmp_path / "two")
    made.to_parquet(tmp_path / "p.parquet")
    for name in ("one", "p.parquet"):
        assert import_data(tmp_path / name, tmp_path / f"out-{name}").labels["train"] == {"bad": 16, "good": 16}
    done = import_data(tmp_path / "two", tmp_path / "out-two")
    assert done.rows["test"] == 8 and sum(done.rows.values()) == 40


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.csv", b"question,answer\nq,a\nq2,a, and b\n", ":3: 3 fields, and the first line names 2 columns; put quotes"),
        ("a.csv", b'question,answer\nq,a\nq,"a\nb\n', ":3: a quote that is opened here is never closed"),
        ("a.csv", "question,answer\nq,caf\xe9\n".encode("latin-1"), ":2: not utf-8 (byte 0xe9); save the file as UTF-8, or"),
        ("a.csv", b"question,question\n1,2\n", ":1: two columns are named 'question'"),
        ("a.csv", b"What is x?,1\nWhat is y?,2\n", "no column looks like the question (there are: What is x?, 1)"),
        ("a.csv", b"question,b\nx,1\n", "no column looks like the answer (there are: question, b)"),
        ("a.csv", b"question,answer\n", "has no rows"),
        ("a.csv", b"", "is empty"),
        ("a.json", b"", "is empty"),
        ("a.json", b'[{"question":"a","answer":"b"},\n{"question":"c","ans', ":2: ends in the middle of a record"),
        ("a.json", b'[{"question":"a" "answer":"b"}]', ":1: broken JSON"),
        ("a.jsonl", b'{"question":"a","answer":"b"}\n[1]\n', ":2: not an object but a list"),
        ("a.xlsx", b"PK\x03\x04....", "is a zip archive or an Excel workbook; unpack it, or save the sheet as CSV"),
        ("a.bin", bytes(range(256)) * 9, "zero bytes"),
        ("a.csv", b"question,answer\nq,a\nr,b\n", "too few different questions (2)"),
        ("a.csv.gz", b"question,answer\n", "cannot be read"),
        ("a.parquet", b"PAR1 and no more", "cannot be read as Parquet"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_in_a_line(tmp_path: Path, name: str, text: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(CowestError) as caught:
        import_data(tmp_path / name, tmp_path / "out")
    assert told in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_rows_that_cannot_be_used_are_counted_and_named(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"question": f"q{i} w{i}", "answer": f"a{i}"} for i in range(30)]
    rows[4]["answer"], rows[7]["question"] = " ", None
    source = lines(tmp_path / "a.jsonl", rows)
    done = import_data(source, tmp_path / "out")
    assert sum(done.rows.values()) == 28
    assert done.skipped == {'"answer" is empty: no answer': 1, '"question" is empty: no question': 1}
    assert f'{source}:5: "answer" is empty: no answer' in done.notes


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("Frag=input", "did you mean 'Frage'"),
        ("input=Frage", "the column comes first: --map Frage=input"),
        ("Frage=foo", "there is no field 'foo'"),
        ("Frage", "write COLUMN=FIELD"),
    ],
)
def test_a_mapping_that_does_not_fit(tmp_path: Path, given: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        look_at(str(table(tmp_path / "a.csv")), [given])


def test_the_mapping_overrides_the_guess(tmp_path: Path) -> None:
    source = table(tmp_path / "a.csv")
    plan = look_at(str(source), ["Quelle=context", "Antwort="])
    assert plan.columns.columns == {"context": ("Quelle",), "input": ("Frage",)} and plan.columns.unused == ("Antwort",)
    plan = look_at(str(source), ["Quelle=input", "Frage=input"])
    assert plan.preview[0]["input"] == "Buch, Seite\n3\n\nWas ist 0 Größe0?"


def test_nothing_of_yours_is_overwritten_and_a_stopped_import_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = table(tmp_path / "a.csv"), tmp_path / "out"
    import_data(source, out)
    with pytest.raises(ConfigError, match="--overwrite replaces it"):
        import_data(source, out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def stop(*args: object) -> Imported:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(importer, "_write", stop)
        import_data(source, out, seed=2, overwrite=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    import_data(source, out, seed=2, overwrite=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} != before
    (out / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="give a new folder"):
        import_data(source, out, overwrite=True)


@pytest.mark.parametrize("split", ["80/20", "80/10/0", "a/b/c", "80/10/-1", "nan/1/1"])
def test_shares_that_are_none(tmp_path: Path, split: str) -> None:
    with pytest.raises(ConfigError, match="--split"):
        import_data(table(tmp_path / "a.csv"), tmp_path / "out", split=split)


def test_answers_open_classes_none(tmp_path: Path) -> None:
    source = table(tmp_path / "a.csv")
    assert import_data(source, tmp_path / "open", answers="open").labels == {}
    import_data(source, tmp_path / "none", ["Antwort="], answers="none")
    assert all("answer" not in row for row in every_row(tmp_path / "none"))
    many = lines(tmp_path / "b.jsonl", [{"question": f"q{i} {i}", "answer": f"a{i}"} for i in range(40)])
    with pytest.raises(ConfigError, match="are no classes"):
        import_data(many, tmp_path / "classes", answers="classes")
    with pytest.raises(DataError, match="no such file"):
        import_data(tmp_path / "none.csv", tmp_path / "x")


@pytest.mark.parametrize(("said", "first"), [(0, "b"), (1, "a")])
def test_numbers_that_may_count_from_either_are_not_guessed(tmp_path: Path, said: int, first: str) -> None:
    source = lines(
        tmp_path / "rows.jsonl",
        [{"question": f"q{i} w{i}?", "choices": ["a", "b", "c", "d"], "answer": i % 2 + 1} for i in range(40)],
    )
    with pytest.raises(ConfigError, match="--first-index 0, or --first-index 1"):
        import_data(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    import_data(source, tmp_path / "out", first_index=said)
    even = next(row for row in every_row(tmp_path / "out") if row["input"] == "q0 w0?")
    assert even["answer"] == first


def test_the_recipe_names_a_model_that_can_be_bought(tmp_path: Path) -> None:
    source = lines(tmp_path / "rows.jsonl", [{"question": f"q{i} w{i}?", "answer": str(i)} for i in range(40)])
    import_data(source, tmp_path / "out")
    strong = load_config(tmp_path / "out" / "recipe.yaml").strong
    assert isinstance(strong, OpenAIModelConfig)
    assert price_of(strong.model) is not None and end_of(strong.model, strong.base_url) is None
