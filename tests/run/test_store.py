from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cowest.errors import DataError
from cowest.run.manifest import StageEntry
from cowest.run.store import JsonlFile, RunDir, named, write_atomic
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


def test_the_manifest(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert run.manifest().stages == {}
    running = StageEntry(fingerprint="f", status="running", inputs={"x": "y"})
    run.record("sft", running)
    run.record("pairs", StageEntry(fingerprint="g", status="done", counts={"pairs": 3}, seconds=1.5))
    assert RunDir(tmp_path / "run").manifest().stages["sft"] == running
    assert run.manifest().stages["pairs"].counts == {"pairs": 3}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"stages": {"sft": 1}}', '{"schema_version": 3}', '{"new": 1}'])
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


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/3"),
    ],
    ids=["system", "safetensors", "torch"],
)
def test_a_full_disk_has_the_files_name_whoever_says_it(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OSError, match="No space left") as told, named(tmp_path / "sft"):
        raise error
    assert told.value.errno == errno.ENOSPC and told.value.filename == str(tmp_path / "sft")
    with pytest.raises(ZeroDivisionError), named(tmp_path):
        raise ZeroDivisionError


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_quota_or_a_folder_that_cannot_be_written_is_told_too(tmp_path: Path, number: int) -> None:
    """As safetensors says it, when a model is saved."""
    with pytest.raises(OSError, match=os.strerror(number)) as told, named(tmp_path / "sft"):
        raise RuntimeError(f"Error while serializing: I/O error: something (os error {number})")
    assert told.value.errno == number and told.value.filename == str(tmp_path / "sft")
