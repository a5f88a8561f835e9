"""Documents of the user's own: read from a folder, looked up for each question."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydantic import JsonValue

from cowest.assembly.build import build_task
from cowest.errors import ConfigError, DataError
from cowest.models.gguf import cache_folder
from cowest.recipe.config import RunConfig, config_from_dict
from cowest.retrieval.folder import read_folder
from cowest.tasks.base import notes_of

pytest.importorskip("bm25s")
QUESTIONS = ("Is Velmo safe?", "Who leads Torvale?", "Zzz?")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe's folder with data and documents."""
    docs = tmp_path / "docs"
    (docs / "sub").mkdir(parents=True)
    (docs / "drugs.md").write_text("# Drugs\nVelmo is safe up to 62 mg. Kasti lowers limits.\n", encoding="utf-8")
    (docs / "sub" / "towns.txt").write_text("Torvale is a town in the east, led by Mira Ost.", encoding="utf-8")
    row = {"title": "Peaks", "text": "Mount Hul is high."}
    (docs / "more.jsonl").write_text(json.dumps(row) + "\n\n" + json.dumps({"text": "Velmo is bitter."}) + "\n")
    (docs / ".hidden.txt").write_text("Velmo is a secret.")
    (docs / "picture.png").write_bytes(b"\x89PNG")
    for split in ("train", "validation", "test"):
        asked = [f"{text} ({split})" for text in QUESTIONS]
        lines = [
            json.dumps({"input": text, "answer": "x", "context": "Own." if "Zzz" in text else None}) for text in asked
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines).replace(', "context": null', "") + "\n")
    return tmp_path


def recipe(at: Path, **settings: JsonValue) -> RunConfig:
    files: dict[str, JsonValue] = {split: f"{split}.jsonl" for split in ("train", "validation", "test")}
    task: dict[str, JsonValue] = {"kind": "jsonl", **files, "documents": {"folder": "docs", **settings}}
    models: dict[str, JsonValue] = {"weak": {"kind": "local", "model": "org/m"}, "strong": {"kind": "scripted"}}
    return config_from_dict({"name": "r", "task": task, **models}, at)


def test_every_kind_of_file_is_read_in_the_order_of_names(folder: Path) -> None:
    found = [(d.id, d.text) for d in read_folder(folder / "docs", 400)]
    assert [id_ for id_, _ in found] == ["drugs.md#1", "more.jsonl#1", "more.jsonl#2", "sub/towns.txt#1"]
    assert found[1][1] == "Peaks\nMount Hul is high."
    short = read_folder(folder / "docs", 30)
    assert all(len(d.text) <= 30 for d in short) and len(short) > 4


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"{", r"a\.jsonl:1: not JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}', r'a\.jsonl:2: no "text" that is a string'),
        ("a.jsonl", b'["x"]', r'a\.jsonl:1: no "text"'),
        ("a.txt", b"\xff\xfe", r"a\.txt: cannot be read as UTF-8"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(folder: Path, name: str, content: bytes, said: str) -> None:
    (folder / "docs" / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        build_task(recipe(folder))


def test_a_folder_that_is_not_there_or_empty(folder: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is no folder; name one with \.txt, \.md, \.jsonl"):
        build_task(recipe(folder, folder="nowhere"))
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no text"):
        build_task(recipe(folder, folder="empty"))
    with pytest.raises(ConfigError, match="give folder, where your documents are"):
        build_task(recipe(folder, folder=None))


def test_each_question_gets_its_passages_before_its_own_context(folder: Path) -> None:
    task = build_task(recipe(folder, passages=1))
    drug, town, nothing = (e.context for e in task.examples("test"))
    assert (
        drug == "# Drugs\nVelmo is safe up to 62 mg. Kasti lowers limits."
        and town == "Torvale is a town in the east, led by Mira Ost."
    )
    assert nothing == "Own."  # no word of the question is in any document
    assert "for 3 of 9 questions nothing was found" in notes_of(task)[-1]
    both = build_task(recipe(folder, passages=2)).examples("test")[0].context
    assert both == f"{drug}\n\nVelmo is bitter."


def test_a_changed_document_changes_the_questions(folder: Path) -> None:
    before = build_task(recipe(folder)).examples("test")
    assert build_task(recipe(folder)).examples("test") == before
    (folder / "docs" / "sub" / "towns.txt").write_text("Torvale has no mayor.", encoding="utf-8")
    after = build_task(recipe(folder)).examples("test")
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]


class Letters:
    """Embeds a text by its letters; counts the texts."""

    seen = 0

    def __init__(self, model: str) -> None:
        assert model == "org/encoder"

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        Letters.seen += len(texts)
        rows = np.array([[t.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for t in texts], dtype=np.float32)
        unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit


def test_dense_look_ups_are_kept_and_a_damaged_cache_is_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cowest.retrieval.embedding.TransformerEmbedder", Letters)
    monkeypatch.setenv("COWEST_CACHE_DIR", str(folder / "cache"))
    config = recipe(folder, retriever="dense", embedder="org/encoder", passages=1)
    first = build_task(config).examples("test")
    assert first[1].context == "Torvale is a town in the east, led by Mira Ost." and Letters.seen == 4 + 9
    assert build_task(config).examples("test") == first and Letters.seen == 13
    (kept,) = (cache_folder() / "retrieved").glob("*.json")
    kept.write_text("[[999]")
    assert build_task(config).examples("test") == first and Letters.seen == 26
    with (folder / "docs" / "sub" / "towns.txt").open("a") as handle:
        handle.write(" It is old.")
    assert build_task(config).examples("test")[1].context != first[1].context and Letters.seen == 39
