from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cowest.errors import DataError
from cowest.run.store import JsonlFile, RunDir, StageEntry, derive_seed, fingerprint, fingerprint_model, write_atomic
from cowest.types import Message


def message(text: str) -> Message:
    return Message(role="user", content=text)


def test_append_then_load(tmp_path: Path) -> None:
    file = JsonlFile(tmp_path / "deep" / "m.jsonl", Message)
    assert file.load() == []
    rows = [message("one"), message("zwei\nlines ü \u2028 and one more")]
    for row in rows:
        file.append(row)
        assert file.load()[-1] == row  # on disk before it is used
    file.close()
    assert JsonlFile(file.path, Message).load() == rows
    assert len(file.path.read_bytes().split(b"\n")) == 3


def test_a_torn_last_line_is_dropped_and_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    file = JsonlFile(path, Message)
    file.append(message("whole"))
    file.close()
    with path.open("ab") as handle:
        handle.write(b'{"role":"user","content":"to')
    again = JsonlFile(path, Message)
    assert again.load() == [message("whole")]
    again.append(message("next"))
    again.close()
    assert again.load() == [message("whole"), message("next")]


def test_a_file_that_is_all_torn(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"role"')
    file = JsonlFile(path, Message)
    assert file.load() == []
    file.append(message("first"))
    assert file.load() == [message("first")]
    file.close()


@pytest.mark.parametrize("line", [b"{}", b"nonsense", b'{"role":"user","content":"x","extra":1}', b"", b"\xff\xfe"])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "m.jsonl"
    good = message("fine").model_dump_json().encode()
    path.write_bytes(b"\n".join([good, line, good]) + b"\n")
    with pytest.raises(DataError, match=r"m\.jsonl:2: not a Message record"):
        JsonlFile(path, Message).load()


def test_replace_writes_in_the_given_order_and_may_be_appended_to(tmp_path: Path) -> None:
    file = JsonlFile(tmp_path / "m.jsonl", Message)
    file.append(message("b"))
    file.append(message("a"))
    file.replace([message("a"), message("b")])
    file.append(message("c"))
    file.close()
    assert [m.content for m in file.load()] == ["a", "b", "c"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a" / "results.json"
    write_atomic(path, "old")

    def power_cut(descriptor: int) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "fsync", power_cut)
    with pytest.raises(OSError, match="power cut"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    monkeypatch.undo()
    write_atomic(path, "new ü")
    assert path.read_text(encoding="utf-8") == "new ü"
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_fingerprints_are_stable() -> None:
    # Literal values: if one changes, every run on every disk counts as stale.
    assert fingerprint("sft", 1, {"b": [1, 2.5, None], "a": "ü"}) == "488438e364b03835"
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    different = [
        fingerprint(),
        fingerprint(None),
        fingerprint(1),
        fingerprint("1"),
        fingerprint([1]),
        fingerprint(1, 2),
    ]
    assert len(set(different)) == len(different)


def test_derived_seeds() -> None:
    assert derive_seed(3, "draft", "train-00001", 2) == 142292831
    seeds = [derive_seed("x", i) for i in range(2000)]
    assert len(set(seeds)) == 2000
    assert all(0 <= s < 2**31 for s in seeds) and max(seeds) > 2**30


def test_a_model_is_known_by_what_is_in_its_folder(tmp_path: Path) -> None:
    assert fingerprint_model("org/model") == "org/model"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "notes.txt").write_text(name)
    same = fingerprint_model(str(tmp_path / "a"))
    assert same == fingerprint_model(str(tmp_path / "b"))
    json.dumps(same)
    (tmp_path / "b" / "model.safetensors").write_bytes(b"weights")
    assert same != fingerprint_model(str(tmp_path / "b"))


def test_the_manifest(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert run.manifest().stages == {}
    running = StageEntry(fingerprint="f", status="running", inputs={"x": "y"})
    run.record("sft", running)
    run.record("pairs", StageEntry(fingerprint="g", status="done", counts={"pairs": 3}, seconds=1.5))
    assert RunDir(tmp_path / "run").manifest().stages["sft"] == running
    assert run.manifest().stages["pairs"].counts == {"pairs": 3}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stages": {"sft": 1}}', '{"schema_version": 2}', '{"new": 1}'])
def test_a_damaged_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json: damaged"):
        RunDir(tmp_path).manifest()


def test_removing_outputs(tmp_path: Path) -> None:
    (tmp_path / "align" / "deep").mkdir(parents=True)
    (tmp_path / "pairs.jsonl").write_text("x")
    (tmp_path / "kept").write_text("x")
    RunDir(tmp_path).remove(["align", "pairs.jsonl", "never-there"])
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
