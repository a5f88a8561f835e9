"""A run directory is a thing: copied, moved, renamed, continued from anywhere, it answers with its own weights or says why not."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import JsonValue
from safetensors.torch import load_file, save_file
from tests.helpers import Log, Oracle, cowest_main, run_tiny, save_tiny_model, tiny_recipe

from cowest.errors import DataError, StageError
from cowest.pipeline import export_weak, report_again
from cowest.results import Results
from cowest.run.identity import fingerprint, hash_model
from cowest.server.opening import open_served
from cowest.server.settings import Settings
from cowest.stages.choosing import Selection

pytestmark = pytest.mark.slow
SHARED: Mapping[str, JsonValue] = {"batch_size": 4, "max_length": 128, "device": "cpu"}
WAYS = ("full", "lora", "full then lora")


def training(way: str) -> dict[str, JsonValue]:
    """How SFT and alignment train."""
    sft, align = {"full": ("full", "full"), "lora": ("lora", "lora"), "full then lora": ("full", "lora")}[way]
    return {
        "sft": {**SHARED, "method": sft, "learning_rate": 1e-2, "max_steps": 60},
        "align": {**SHARED, "method": align, "learning_rate": 1e-2, "max_steps": 4, "checkpoints": 2},
    }


@dataclass(frozen=True)
class Made:
    way: str
    weak: str
    out: Path
    results: Results


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("weak"))


@pytest.fixture(scope="module", params=WAYS)
def made(request: pytest.FixtureRequest, weak: str, tmp_path_factory: pytest.TempPathFactory) -> Made:
    way: str = request.param
    out = tmp_path_factory.mktemp("runs") / "original"
    found = run_tiny(weak, out, Oracle(), Log(), **training(way)).results[""]
    return Made(way, weak, out, found)


def weights_of(run: Path) -> list[Path]:
    return sorted(run.rglob("*.safetensors"))


def spoil(file: Path, by: float = 0.5) -> None:
    """Other weights of the same shape."""
    found = load_file(file)
    save_file({name: tensor + by for name, tensor in found.items()}, file, metadata={"format": "pt"})


def evaluated(results: Results) -> object:
    return (results.systems, results.comparisons)


def test_no_file_names_another_place(made: Made) -> None:
    """But for the models and data that the recipe's author has named."""
    naming = {
        path.relative_to(made.out).as_posix()
        for path in made.out.rglob("*")
        if path.is_file() and str(made.out.parent).encode() in path.read_bytes()
    }
    assert naming == set()


def test_a_copy_goes_on_with_its_own_weights(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The original's weights are spoilt, then it is deleted; the copy is renamed, continued, served, merged and reported."""
    original = Path(shutil.copytree(made.out, tmp_path / "first" / "original"))
    run = Path(shutil.copytree(original, tmp_path / "second" / "copy"))
    for file in weights_of(original):
        spoil(file)
    monkeypatch.chdir(original)  # where the same relative names lead to other weights
    before = {file: file.stat().st_mtime_ns for file in weights_of(run)}
    log = Log()
    evaluate: JsonValue = {"systems": ["weak", "strong", "collab", "collab_aligned", "weak_aligned"]}
    recipe = tiny_recipe(made.weak, "")["evaluate"]
    assert isinstance(evaluate, dict) and isinstance(recipe, dict)
    again = run_tiny(made.weak, run, Oracle(), log, **training(made.way), evaluate=recipe | evaluate).results[""]
    assert [name for name, why in log.verdicts.items() if not why.startswith("reused")] == ["evaluate"]
    assert {file: file.stat().st_mtime_ns for file in weights_of(run)} == before
    assert {name: again.systems[name] for name in made.results.systems} == made.results.systems

    shutil.rmtree(original)
    moved = run.rename(tmp_path / "third")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    relative = os.path.relpath(moved)
    assert asyncio.run(report_again(Path(relative))).results[""].systems == again.systems
    for which in ("sft", "aligned"):
        assert cowest_main(monkeypatch, "merge", relative, "--out", which, "--which", which) == 0
        assert (elsewhere / which / "model.safetensors").exists()
    opened = open_served(Path(relative), Settings())
    assert "tiny.collab_aligned" in opened.served
    asyncio.run(opened.aclose())
    log = Log()
    run_tiny(made.weak, moved, Oracle(), log, **training(made.way), evaluate=recipe | evaluate)
    assert all(why.startswith("reused") for why in log.verdicts.values()), log.verdicts


def test_merged_weights_are_those_of_the_copy(made: Made, tmp_path: Path) -> None:
    """Equal from original and copy; and the two differ where alignment has chosen a later step."""
    copy = Path(shutil.copytree(made.out, tmp_path / "copy"))
    for which in ("sft", "aligned"):
        export_weak(made.out, which, tmp_path / f"{which} of the original")
        export_weak(copy, which, tmp_path / f"{which} of the copy")
        one, other = (hash_model(str(tmp_path / f"{which} of the {whose}")) for whose in ("original", "copy"))
        assert one == other


def test_swapped_weights_are_refused(made: Made, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made.out, tmp_path / "copy"))
    spoil(next(file for file in weights_of(run) if "sft" in file.relative_to(run).parts))
    for read in (
        lambda: asyncio.run(report_again(run)),
        lambda: open_served(run, Settings()),
        lambda: export_weak(run, "sft", tmp_path / "merged"),
    ):
        with pytest.raises((StageError, DataError), match="is not as it was left") as told:
            read()
        assert "\n" not in str(told.value) and ".safetensors" in str(told.value)
    assert not (tmp_path / "merged").exists()


def test_the_recipes_weak_model_is_elsewhere_now(made: Made, tmp_path: Path) -> None:
    """Whole weights do without it; adapters say that it is gone, and go on once the recipe says where it is."""
    run = Path(shutil.copytree(made.out, tmp_path / "copy"))
    place = shutil.move(made.weak, tmp_path / "another disk")
    try:
        asyncio.run(report_again(run))
        if made.way == "lora":
            with pytest.raises(DataError, match=r"the model '.*' is not there"):
                open_served(run, Settings())
        else:
            asyncio.run(open_served(run, Settings()).aclose())
            export_weak(run, "aligned", tmp_path / "merged")
        log = Log()
        run_tiny(str(place), run, Oracle(), log, **training(made.way))
        assert all(why.startswith("reused") for why in log.verdicts.values()), log.verdicts
        asyncio.run(open_served(run, Settings()).aclose())
        export_weak(run, "aligned", tmp_path / "merged with the new place")
    finally:
        shutil.move(place, made.weak)


# Runs of earlier versions


def to_schema_1(run: Path, where: str) -> None:
    """Rewrite a run as versions before did: fingerprints in place of names, and weights by a path from where they started."""
    manifest = json.loads((run / "manifest.json").read_text())
    prints = {name: fingerprint("old", name) for name in manifest["stages"]}
    made = {
        output: (name, entry["failed"]) for name, entry in manifest["stages"].items() for output in entry["outputs"]
    }
    for name, entry in manifest["stages"].items():
        inputs = {}
        for read in entry["inputs"]:
            writer, failed = made[read]
            inputs[read] = fingerprint(prints[writer], failed) if failed else prints[writer]
        kept_ = {key: entry[key] for key in ("status", "counts", "seconds")}
        manifest["stages"][name] = kept_ | {"fingerprint": prints[name], "inputs": inputs}
    manifest["schema_version"] = 1
    (run / "manifest.json").write_text(json.dumps(manifest))

    def old(weights: dict[str, str | None]) -> dict[str, str | None]:
        own = ("sft", "align")
        return {
            key: f"{where}/{name}" if name and Path(name).parts[0] in own else name
            for key, name in weights.items()
            if key != "hashes"
        }

    file = run / "sft/model_ref.json"
    file.write_text(json.dumps(old(json.loads(file.read_text()))))
    file = run / "align/selection.json"
    found = json.loads(file.read_text())
    found.pop("skipped")
    for checkpoint in found["checkpoints"]:
        checkpoint["model"] = old(checkpoint["model"])
    file.write_text(json.dumps(found))


@pytest.fixture(params=["a path from another folder", "the original's full path"])
def old(request: pytest.FixtureRequest, made: Made, tmp_path: Path) -> Path:
    """A copy of a run by an earlier version; its original is there, with other weights."""
    original = Path(shutil.copytree(made.out, tmp_path / "first" / "original"))
    for file in weights_of(original):
        spoil(file)
    run = Path(shutil.copytree(made.out, tmp_path / "second" / "copy"))
    to_schema_1(run, "first/original" if request.param.startswith("a path") else str(original))
    return run


def test_an_older_run_is_read_and_goes_on(
    made: Made, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the older names lead to the original
    assert evaluated(asyncio.run(report_again(old)).results[""]) == evaluated(made.results)
    asyncio.run(open_served(old, Settings()).aclose())
    export_weak(old, "aligned", tmp_path / "old")
    export_weak(made.out, "aligned", tmp_path / "new")
    assert hash_model(str(tmp_path / "old")) == hash_model(str(tmp_path / "new"))

    before, log = {file: file.stat().st_mtime_ns for file in weights_of(old)}, Log()
    (old / "predictions/collab_aligned.jsonl").unlink()  # is asked again, with the copy's weights
    manifest = json.loads((old / "manifest.json").read_text())
    manifest["stages"]["evaluate"]["status"] = "running"
    (old / "manifest.json").write_text(json.dumps(manifest))
    again = run_tiny(made.weak, old, Oracle(), log, **training(made.way)).results[""]
    assert [name for name, why in log.verdicts.items() if not why.startswith("reused")] == ["evaluate"]
    assert log.verdicts["evaluate"] == "continued where it stopped"
    assert {file: file.stat().st_mtime_ns for file in weights_of(old)} == before
    assert evaluated(again) == evaluated(made.results)
    for name in ("sft/model_ref.json", "align/selection.json"):
        assert "original" not in (old / name).read_text()
    spoil(next(file for file in weights_of(old) if "sft" in file.relative_to(old).parts))
    with pytest.raises(StageError, match="is not as it was left"):  # as in any run of today
        asyncio.run(report_again(old))


def test_an_older_copy_without_its_weights_does_not_take_the_originals(
    made: Made, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(old / "sft" / ("adapter" if made.way == "lora" else "model"))
    with pytest.raises(DataError, match="is not there; `cowest run` with its recipe makes it again"):
        export_weak(old, "sft", tmp_path / "merged")
    log = Log()
    again = run_tiny(made.weak, old, Oracle(), log, **training(made.way)).results[""]
    assert log.verdicts["sft"].startswith("run again") and evaluated(again) == evaluated(made.results)


@pytest.mark.parametrize("made", ["full"], indirect=True)
def test_an_older_run_that_is_continued_with_another_model_is_made_again(made: Made, old: Path, tmp_path: Path) -> None:
    """What is finished was made with the recipe that is kept, and not with the one that continues it."""
    other = save_tiny_model(tmp_path / "other")
    spoil(tmp_path / "other" / "model.safetensors", by=1e-3)
    log = Log()
    run_tiny(other, old, Oracle(), log, **training(made.way))
    assert log.verdicts["sft"].startswith("run again, because weak.model changed from ")


# Several domains


@pytest.fixture(scope="module")
def several(weak: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    task, out = tiny_recipe("", "")["task"], tmp_path_factory.mktemp("several") / "run"
    run_tiny(weak, out, Oracle(), Log(), task=None, tasks={"one": task, "two": task}, **training("full"))
    return out


def test_merge_with_several_domains(
    several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(several, tmp_path / "moved"))
    monkeypatch.chdir(tmp_path)
    assert cowest_main(monkeypatch, "merge", "moved", "--out", "m") == 2
    assert capsys.readouterr().err == "cowest: moved: which of its domains? Say --task with one of one, two\n"
    assert cowest_main(monkeypatch, "merge", "moved", "--out", "m", "--task", "three") == 2
    assert "--task with one of one, two" in capsys.readouterr().err
    assert cowest_main(monkeypatch, "merge", "moved", "--out", "by task", "--task", "two") == 0
    assert cowest_main(monkeypatch, "merge", "moved/two", "--out", "by folder") == 0
    monkeypatch.chdir(run / "two")
    assert cowest_main(monkeypatch, "merge", ".", "--out", "../../from within") == 0
    hashes = {hash_model(str(tmp_path / name)) for name in ("by task", "by folder", "from within")}
    assert len(hashes) == 1
    chosen = Selection.model_validate_json((run / "two/align/selection.json").read_bytes()).model
    assert chosen.adapter is None
    assert load_equal(run / "two" / chosen.base, tmp_path / "by task")


def load_equal(one: Path, other: Path) -> bool:
    found = [load_file(folder / "model.safetensors") for folder in (one, other)]
    return all(bool((found[0][name] == found[1][name]).all()) for name in found[0])


def test_an_older_run_of_several_domains_is_upgraded_before_another_recipe_is_kept(
    weak: str, several: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(several, tmp_path / "run"))
    for name in ("one", "two"):
        to_schema_1(run / name, f"elsewhere/{name}")
    task, log, changed = tiny_recipe("", "")["task"], Log(), training("full")
    changed["sft"] = {**SHARED, "method": "full", "learning_rate": 1e-2, "max_steps": 50}
    run_tiny(weak, run, Oracle(), log, task=None, tasks={"one": task, "two": task}, **changed)
    told = [line for line in log.lines if "sft: run again" in line]
    assert told == [f"{name}: sft: run again, because sft.max_steps changed from 60 to 50" for name in ("one", "two")]
