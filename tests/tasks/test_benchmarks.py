"""The three benchmarks as tasks: the shipped samples, the hub's layout, and every kind of file that is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest
from pydantic import JsonValue

from cowest.assembly.build import build_task
from cowest.errors import ConfigError, DataError
from cowest.recipe.config import IfqaTaskConfig, ProsocialTaskConfig, PubmedqaTaskConfig, RunConfig, config_from_dict
from cowest.scoring.metrics import accuracy, exact_match
from cowest.tasks import hub
from cowest.tasks.base import SPLITS, SimpleTask, notes_of
from cowest.tasks.benchmark import SAMPLES, cut_text
from cowest.tasks.evidence import MOST_CHARS
from cowest.tasks.ifqa import load_ifqa
from cowest.tasks.prosocial import LABELS, load_prosocial
from cowest.tasks.pubmedqa import load_pubmedqa
from cowest.types import Example

KINDS = ("ifqa", "pubmedqa", "prosocial")
Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"


def load(kind: str, folder: Path | None = None, **settings: JsonValue) -> SimpleTask:
    """A task of data of one's own in ``folder``, or with other settings of the shipped sample."""
    source: dict[str, JsonValue] = {"sample": True} if folder is None else {"path": str(folder), "official": False}
    values = {"kind": kind, **source, **settings}
    if kind == "ifqa":
        return load_ifqa(IfqaTaskConfig.model_validate(values))
    if kind == "pubmedqa":
        return load_pubmedqa(PubmedqaTaskConfig.model_validate(values))
    return load_prosocial(ProsocialTaskConfig.model_validate(values))


def recipe(task: JsonValue, folder: Path = Path()) -> RunConfig:
    models: dict[str, JsonValue] = {
        "weak": {"kind": "local", "model": "org/m"},
        "strong": {"kind": "scripted", "default": "x"},
    }
    return config_from_dict({"name": "r", "task": task, **models}, folder)


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """A folder with a copy of every sample."""
    return Path(shutil.copytree(SAMPLES, tmp_path / "data"))


def ids(task: SimpleTask) -> dict[str, list[str]]:
    return {split: [e.id for e in task.examples(split)] for split in SPLITS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_a_whole_task(kind: str) -> None:
    task = build_task(recipe({"kind": kind, "sample": True}))
    assert task.name == kind
    every = [e for split in SPLITS for e in task.examples(split)]
    value = accuracy if task.labels else exact_match
    assert len({e.id for e in every}) == len(every) and all(task.examples(split) for split in SPLITS)
    assert "Answer: ..." in task.instruction and all(label in task.instruction for label in task.labels)
    for example in every:
        target = task.target(example)
        assert target.endswith(f"Answer: {example.references[0]}")
        assert value(task.extract(target, example), example.references) == 1
        assert example.rationale is None or target.startswith(example.rationale)


def test_ifqa_takes_passages_as_rationale_and_shows_none() -> None:
    task = load("ifqa")
    assert (task.metrics, task.labels) == (("squad_em", "squad_f1"), ())
    third = task.examples("train")[2]
    assert third.context is None
    assert third.rationale and third.rationale.split("\n\n") == [
        "Torvale was founded by Mira Ost in 1871.",
        "Brenn, founded in 1902, is the second oldest town of Ostrel after Torvale.",
    ]
    assert task.examples("train")[1].references == ("640 m", "640 metres")
    assert ids(task)["validation"] == ["validation-0", "validation-1"]


def test_pubmedqa_shows_the_abstract_or_not() -> None:
    task, alone = load("pubmedqa"), load("pubmedqa", context=False)
    assert (task.metrics, task.labels) == (("accuracy", "macro_f1"), ("yes", "no", "maybe"))
    first = task.examples("test")[0]
    assert first.id == "90000009" and first.references == ("yes",)
    assert first.context and first.context.splitlines()[0].startswith("BACKGROUND: Earlier reports")
    assert first.rationale == "The kell test found most cases at little cost and is useful in screening."
    assert alone.examples("test")[0] == first.model_copy(update={"context": None})
    assert ids(alone) == ids(task) and len(ids(task)["test"]) == 4


def test_pubmedqa_folds_of_own_data_share_no_validation_row() -> None:
    seen = [load("pubmedqa", fold=fold).examples("validation")[0].id for fold in range(8)]
    assert len(set(seen)) == 8


def test_prosocial_has_rules_as_rationale_and_the_dialogue_before() -> None:
    task = load("prosocial")
    assert (task.metrics, task.labels) == (("accuracy", "macro_f1"), LABELS)
    first, second, third = task.examples("train")[:3]
    assert (first.context, first.rationale, task.target(first)) == (None, None, "Answer: __casual__")
    assert second.input == "Rye. I left out the one who plays loud music."
    assert second.context == (
        "Speaker: I baked bread for my neighbours today.\nAnswer to the speaker: How kind! What sort of bread?"
    )
    assert third.rationale == "You shouldn't copy others' work.\nIt's wrong to cheat." and third.context is None
    assert all(e.context is None for s in SPLITS for e in load("prosocial", history=False).examples(s))
    assert {e.references[0] for s in SPLITS for e in task.examples(s)} == set(LABELS)


def test_prosocial_reads_each_published_layout(copies: Path) -> None:
    folder = copies / "prosocial"
    wanted = {s: load("prosocial", folder).examples(s) for s in SPLITS}
    for name in ("train", "valid", "test"):
        path = folder / f"{name}.json"
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if name == "train":  # the direct download: dialogues of turns
            dialogues: dict[int, list[Json]] = {}
            for row in rows:
                turn = {k: row[k] for k in ("rots", "safety_label", "source", "episode_done")}
                turn |= {"text": row["context"], "labels": [row["response"]]}
                dialogues.setdefault(row["dialogue_id"], []).append(turn)
            path.write_text(json.dumps(list(dialogues.values())), encoding="utf-8")
        elif name == "valid":  # a slice of the hub's table
            path.write_text(json.dumps({key: [row[key] for row in rows] for key in rows[0]}), encoding="utf-8")
        else:
            path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    assert {s: load("prosocial", folder).examples(s) for s in SPLITS} == wanted


def test_rationales_are_cut_at_a_sentence_and_counted() -> None:
    task = load("ifqa", max_rationale_chars=70)
    first = task.examples("train")[0]
    assert first.rationale == "Torvale is a fishing town on the east coast of the island of Ostrel."
    assert first.metadata["rationale_cut_from"] == "146"
    assert task.target(first) == f"{first.rationale}\nAnswer: at sea"
    whole = load("ifqa").examples("train")
    assert all(len(e.rationale or "") <= 70 for e in task.examples("train"))
    long = sum(len(e.rationale or "") > 70 for e in whole)
    assert task.notes[0] == f"{long} of 6 rationales of train cut to at most 70 characters"
    assert len(notes_of(task)) == 3 and notes_of(load("ifqa")) == ()


@pytest.mark.parametrize(
    ("text", "limit", "cut"),
    [
        ("One two. Three four.", 20, "One two. Three four."),
        ("One two. Three four.", 19, "One two."),
        ("One two. Three four.", 8, "One two."),
        ("One two. Three four.", 7, "One"),
        ("One two. Three four.", 6, "One"),
        ("One two. Three four.", 2, "On"),
        ("It rose by 3.5 mm a year on the coast", 12, "It rose by"),
        ('He said "no." Then he left the room', 20, 'He said "no."'),
        ("\u6771\u4eac\u306b\u884c\u304f", 3, "\u6771\u4eac\u306b"),
    ],
)
def test_cutting(text: str, limit: int, cut: str) -> None:
    assert cut_text(text, limit) == cut


def test_leaks_are_kept_and_told_or_left_out(copies: Path) -> None:
    def leak(rows: list[dict[str, Json]]) -> None:
        rows[0]["question"] = "If Mount Kell stood on the  MAINLAND, which hill would be the highest of Ostrel?"

    change(copies / "ifqa" / "train.json", leak)
    kept = load("ifqa", copies / "ifqa")
    assert len(kept.examples("train")) == 6
    assert kept.notes == (
        "1 questions of train occur in a later split, too: kept as published (drop_leaked: true leaves them out)",
    )
    dropped = load("ifqa", copies / "ifqa", drop_leaked=True)
    assert ids(dropped)["train"] == [f"train-{i}" for i in range(1, 6)]
    assert dropped.notes == ("1 questions of train occur in a later split, too: left out (drop_leaked)",)


def change(path: Path, edit: Callable[[list[dict[str, Json]]], object]) -> None:
    rows = json.loads(path.read_text(encoding="utf-8"))
    edit(rows)
    path.write_text(json.dumps(rows, indent=4), encoding="utf-8")


def swap(path: Path, old: str, new: str) -> int:
    """Replace the first ``old``; the line where it stood."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return text[: text.index(old)].count("\n") + 1


def problem(kind: str, folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        load(kind, folder)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{folder}/", "")


@pytest.mark.parametrize(
    ("kind", "file", "old", "new", "message"),
    [
        ("ifqa", "train.json", '"question": "If Mira', '"query": "If Mira', '"question" is missing; add a non-empty'),
        ("ifqa", "train.json", '"640 m"', "640", '"answers" holds a number; give a list of non-empty strings'),
        ("ifqa", "train.json", '"640 m"', '" "', '"answers" holds empty; give a list of non-empty strings'),
        ("ifqa", "train.json", '"640 m"', '"\\ud83d"', "holds half a surrogate pair"),
        ("ifqa", "train.json", '"answers": [', '"answers": [],"x": [', '"answers" is an empty list'),
        ("prosocial", "train.json", "__needs_caution__", "__needs_cautoin__", "did you mean '__needs_caution__'?"),
        ("prosocial", "train.json", '"rots": []', '"rots": null', '"rots" is null, and not a list of strings'),
        (
            "prosocial",
            "valid.json",
            '"dialogue_id": 0',
            '"dialogue_id": "0"',
            '"dialogue_id" is a string; give a whole',
        ),
        ("prosocial", "test.json", '"response": "Where', '"rsponse": "Where', '"response" is missing'),
        (
            "pubmedqa",
            "ori_pqal.json",
            '"final_decision": "yes"',
            '"final_decision": "Yes"',
            "is 'Yes', and not yes, no or",
        ),
        ("pubmedqa", "ori_pqal.json", '"LABELS": [', '"LABELS": ["MORE",', '"LABELS" has 3 names for 2 "CONTEXTS"'),
        ("pubmedqa", "ori_pqal.json", '"LONG_ANSWER"', '"long_answer"', '"LONG_ANSWER" is missing'),
        ("pubmedqa", "test_ground_truth.json", '"90000009"', '"90000099"', '"90000099" is not in ori_pqal.json'),
        ("pubmedqa", "test_ground_truth.json", '"yes"', '"no"', "is 'no' here and 'yes' in ori_pqal.json; fetch both"),
        ("pubmedqa", "test_ground_truth.json", '"yes"', "true", '"90000009" is a boolean, and not yes, no or maybe'),
    ],
)
def test_a_wrong_field_is_told_with_file_and_line(
    copies: Path, kind: str, file: str, old: str, new: str, message: str
) -> None:
    path = copies / kind / file
    line = swap(path, old, new)
    told = problem(kind, copies / kind)
    where, _, what = told.partition(": ")
    assert message in what, told
    name, _, number = where.partition(":")
    # a record is named by the line where it starts, at most its own length above
    starts = [i for i, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if text.strip()]
    assert name == file and int(number) in starts and line - 22 <= int(number) <= line, told


def test_the_line_is_the_one_where_the_record_starts(copies: Path) -> None:
    path = copies / "ifqa" / "train.json"
    line = swap(path, '"question": "If Mira', '"query": "If Mira')
    lines = path.read_text(encoding="utf-8").splitlines()
    start = max(i for i, text in enumerate(lines[:line], 1) if text == "    {")
    assert problem("ifqa", copies / "ifqa").startswith(f"train.json:{start}: ")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_off_anywhere_is_called_truncated(copies: Path, kind: str) -> None:
    path = copies / kind / {"ifqa": "test.json", "pubmedqa": "ori_pqal.json", "prosocial": "train.json"}[kind]
    whole = path.read_bytes().rstrip()
    for share in (0.1, 0.37, 0.5, 0.93):
        path.write_bytes(whole[: int(len(whole) * share)])
        told = problem(kind, copies / kind)
        assert f"{path.name}:" in told and "truncated; fetch it again" in told, told
    path.write_bytes(whole[:-1])
    assert "truncated; fetch it again" in problem(kind, copies / kind)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "test.json: no such file; put the published file there, or mend task.path"),
        (b"", "test.json: is empty; fetch the file again"),
        (b"[]", "the test split is empty"),
        (b'[\n{"question": "q"},\n oops]', "test.json:3: broken JSON (Expecting value); fetch the file again"),
        (b"[1]", "test.json:1: not an object but a number; fetch the file again"),
        (b'[{"question": "q"}] []', "test.json:1: text after the end of the data; fetch the file again"),
        (b'[{"question": "q"} {}]', "test.json:1: broken JSON (',' expected); fetch the file again"),
        (b"\n\n\xff", "test.json:3: not UTF-8; fetch the file again"),
        (b"<html>Not found</html>", "test.json:1: broken JSON (Expecting value); fetch the file again"),
        (b"[" * 100_000, "test.json:1: broken JSON (RecursionError); fetch the file again"),
        (b'{"question": ["q"], "answers": []}', 'test.json: column "answers" has 0 rows, others 1; fetch'),
        (b'{"question": ["q"], "answers": [["a"]]}', 'test.json: row 1: "context" is missing; add a list'),
    ],
)
def test_a_file_that_is_no_dataset(copies: Path, content: bytes | None, message: str) -> None:
    path = copies / "ifqa" / "test.json"
    path.unlink() if content is None else path.write_bytes(content)
    if content == b"[]":
        assert load("ifqa", copies / "ifqa").examples("test") == ()  # the run refuses an empty split by its name
        return
    assert message in problem("ifqa", copies / "ifqa")


def test_all_missing_files_are_told_at_once(tmp_path: Path) -> None:
    for kind, count in (("ifqa", 3), ("prosocial", 3), ("pubmedqa", 2)):
        assert problem(kind, tmp_path / "no").count("no such file") == count


def test_an_id_that_occurs_twice_is_told(copies: Path) -> None:
    path = copies / "pubmedqa" / "ori_pqal.json"
    swap(path, '"90000002": {', '"90000001": {')
    assert '"90000001" is already at' in problem("pubmedqa", copies / "pubmedqa")
    path.write_text("[]", encoding="utf-8")
    assert "ori_pqal.json:1: not an object of records by id" in problem("pubmedqa", copies / "pubmedqa")


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_does_not_pass_for_the_published_data(copies: Path, kind: str) -> None:
    with pytest.raises(DataError, match=r"set official: false") as caught:
        load(kind, copies / kind, official=True)
    told = str(caught.value)
    counts = {"ifqa": "6 rows, and IfQA has 2,400", "prosocial": "6 rows, and ProsocialDialog has 120,236"}
    assert counts.get(kind, "holds 4 ids, and not just the 500 published ones") in told


def test_settings_that_contradict_or_lack_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COWEST_DATA_DIR", raising=False)
    with pytest.raises(
        ConfigError, match=r"ifqa: where is its data\? Set COWEST_DATA_DIR to a folder that holds ifqa/ .*is not set"
    ):
        build_task(recipe({"kind": "ifqa"}))
    with pytest.raises(ConfigError, match="context: false and context_for: weak contradict each other"):
        recipe({"kind": "pubmedqa", "context": False, "context_for": "weak"})
    with pytest.raises(ConfigError, match="documents are looked up for nobody"):
        recipe({"kind": "pubmedqa", "documents": {"folder": "x"}, "context_for": "none"})
    with pytest.raises(ConfigError, match="give either 'path' or 'sample: true', not both"):
        recipe({"kind": "ifqa", "path": "x", "sample": True})
    with pytest.raises(ConfigError, match=r"task\.fold: .*less than or equal to 9"):
        recipe({"kind": "pubmedqa", "fold": 10})
    with pytest.raises(ConfigError, match=r"task\.contxt: unknown key; did you mean 'context'\?"):
        recipe({"kind": "pubmedqa", "contxt": True})


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_folder_the_data_is_looked_for_where_everyones_is(
    copies: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = build_task(recipe({"kind": kind, "path": str(copies / kind), "official": False}))
    monkeypatch.setenv("COWEST_DATA_DIR", str(copies))
    found = build_task(recipe({"kind": kind, "official": False}))
    assert list(found.examples("test")) == list(named.examples("test"))
    monkeypatch.setenv("COWEST_DATA_DIR", str(copies / "nothing"))
    monkeypatch.setattr(hub, "hub_records", lambda *_: pytest.fail("asked the hub"))
    if kind == "ifqa":
        with pytest.raises(ConfigError, match="nothing has no folder 'ifqa'"):
            build_task(recipe({"kind": kind, "official": False}))


def test_ifqas_passages_are_the_context_for_whom_the_recipe_names(copies: Path) -> None:
    def train(**settings: JsonValue) -> Sequence[Example]:
        config: dict[str, JsonValue] = {"kind": "ifqa", "path": str(copies / "ifqa"), "official": False}
        return build_task(recipe(config | settings)).examples("train")

    plain, weak, strong = train(), train(context_for="weak"), train(context_for="strong")
    assert train(context_for="none") == plain and train(context_for="both") == weak
    assert all(e.context is None and e.rationale for e in plain)
    assert [e.context for e in weak] == [e.rationale for e in plain] == [e.rationale for e in strong]
    for e in weak:  # it learns to write a part of what it reads
        assert e.context and e.rationale and len(e.rationale) <= MOST_CHARS
        assert all(part in e.context for part in e.rationale.split(". ")[:1])


def test_an_open_book_is_searched_for_every_question(copies: Path) -> None:
    config: dict[str, JsonValue] = {"kind": "ifqa", "path": str(copies / "ifqa"), "official": False}
    task = build_task(recipe(config | {"documents": {"passages": 2}, "context_for": "weak"}))
    published = {s: build_task(recipe(config)).examples(s) for s in SPLITS}
    book = "\n".join(e.rationale or "" for rows in published.values() for e in rows)
    for example in task.examples("test"):
        assert example.context and all(text in book for text in example.context.split("\n\n"))
    assert any("looked up by bm25 for weak" in note for note in notes_of(task))


def test_a_relative_path_starts_at_the_recipe_and_survives_a_second_reading(copies: Path) -> None:
    config = recipe({"kind": "prosocial", "path": "data/prosocial", "official": False}, copies.parent)
    assert isinstance(config.task, ProsocialTaskConfig) and config.task.path == (copies / "prosocial").resolve()
    again = RunConfig.model_validate(config.model_dump(mode="json"))
    assert again.task == config.task
    assert len(build_task(again).examples("train")) == 6
