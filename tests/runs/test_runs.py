"""``cowest runs``, ``watch``, ``compare``, ``prune`` on real runs of a tiny model against a counting endpoint."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue
from tests.helpers import Oracle, cowest_main, run_tiny, save_tiny_model

from cowest.errors import ConfigError, DataError, StageError
from cowest.run.manifest import Manifest
from cowest.run.store import JsonlFile
from cowest.runs.compare import compare_runs
from cowest.runs.found import disk_bytes, found, runs_in
from cowest.runs.prune import removable, remove
from cowest.runs.watch import look
from cowest.types import Prediction

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Two:
    """Two runs of one task in ``folder``: ``first``, and ``second`` with fewer drafts a query."""

    folder: Path
    weak: str


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Two:
    folder, weak = tmp_path_factory.mktemp("runs"), save_tiny_model(tmp_path_factory.mktemp("weak"))
    run_tiny(weak, folder / "first", Oracle())
    sampling: dict[str, JsonValue] = {"temperature": 1.0, "top_p": 0.8, "max_tokens": 12}
    run_tiny(
        weak, folder / "second", Oracle(), draft={"samples": 2, "queries": 12, "sampling": sampling}, budget_calls=5000
    )
    return Two(folder, weak)


@pytest.fixture
def copied(two: Two, tmp_path: Path) -> Two:
    """The same to be changed."""
    shutil.copytree(two.folder, tmp_path / "runs")
    return Two(tmp_path / "runs", two.weak)


def _json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    capsys.readouterr()
    assert cowest_main(monkeypatch, *words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_runs_lists_them(two: Two, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    listed = _json(capsys, monkeypatch, "runs", str(two.folder))
    assert [Path(run["path"]).name for run in listed] == ["first", "second"]
    for run in listed:
        assert (run["state"], run["kind"], run["task"], run["strong"]) == ("done", "run", "medicine", "strong")
        assert run["calls"] > 0 and run["usd"] is None, "the endpoint has no price: unknown is not 0"
        results = json.loads((Path(run["path"]) / "results.json").read_text())
        told = {score["system"]: score["value"]["mean"] for score in run["scores"][""]}
        assert told == {name: s["metrics"]["accuracy"]["mean"] for name, s in results["systems"].items()}
        assert run["bytes"] == disk_bytes(Path(run["path"]))
    assert cowest_main(monkeypatch, "runs", str(two.folder)) == 0
    shown = capsys.readouterr().out
    assert "done" in shown and "calls" in shown and "first" in shown


def test_one_run_is_listed_alone(two: Two) -> None:
    assert runs_in(two.folder / "first") == [two.folder / "first"]
    assert runs_in(two.folder / "first" / "predictions") == []


def _stage(folder: Path, name: str, status: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["stages"][name]["status"] = status
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _ended(folder: Path, ended: str | None, error: str | None = None) -> None:
    live = json.loads((folder / "live.json").read_text())
    (folder / "live.json").write_text(json.dumps(live | {"ended": ended, "error": error}))


def _torn(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"stages": {"sft"')


def _killed(folder: Path) -> None:
    _stage(folder, "evaluate", "running")
    _ended(folder, None)


def _interrupted(folder: Path) -> None:
    _stage(folder, "feedback", "running")
    _ended(folder, "stopped")


@pytest.mark.parametrize(
    ("change", "state", "why"),
    [
        (_killed, "stopped", "is gone"),
        (_interrupted, "stopped", ""),
        (lambda f: _ended(f, "failed", "the endpoint is gone"), "failed", "the endpoint is gone"),
        (lambda f: _ended(f, "budget", "USD 3 are spent"), "stopped", "USD 3 are spent"),
        (_torn, "damaged", "Manifest"),
        (lambda f: (f / "recipe.yaml").write_text("- not\n- a recipe"), "damaged", "not a recipe"),
        (lambda f: (f / "results.json").write_text("{}"), "damaged", "Results"),
        (lambda f: (f / "ledger.sqlite").write_bytes(b"SQLite?" * 99), "done", ""),
    ],
    ids=["killed", "stopped", "failed", "budget", "torn manifest", "no recipe", "old results", "damaged ledger"],
)
def test_how_a_run_stands(copied: Two, change: Callable[[Path], object], state: str, why: str) -> None:
    change(copied.folder / "first")
    run = found(copied.folder / "first")
    assert run.state == state and why in run.why
    assert len(runs_in(copied.folder)) == 2


def test_a_run_at_work_is_running(copied: Two) -> None:
    _stage(copied.folder / "first", "feedback", "running")
    with (copied.folder / "first" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = found(copied.folder / "first")
        assert (run.state, run.stage) == ("running", "feedback")
        assert not look(copied.folder / "first").over
        with pytest.raises(StageError, match="a process works in it"):
            removable(copied.folder / "first")
    assert found(copied.folder / "first").state == "stopped"


def test_watch_ends_with_the_run(
    two: Two, copied: Two, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cowest_main(monkeypatch, "watch", str(two.folder / "second")) == 0
    shown = capsys.readouterr().out
    assert "cowest run: process" in shown and "sample drafts" in shown
    assert "second: done" in shown and "calls paid" in shown
    _killed(copied.folder / "first")
    assert cowest_main(monkeypatch, "watch", str(copied.folder / "first"), "--json") == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["run"]["state"] == "stopped"
    assert cowest_main(monkeypatch, "watch", str(two.folder / "none")) == 2
    assert "no such run" in capsys.readouterr().err


def test_the_log_is_read_on_where_it_was_left(copied: Two) -> None:
    log = copied.folder / "first" / "run.log"
    first = look(copied.folder / "first")
    assert first.new and not look(copied.folder / "first", first).new
    with log.open("a") as handle:
        handle.write("a line\nhalf a")
    second = look(copied.folder / "first", first)
    assert list(second.new) == ["a line"]
    with log.open("a") as handle:
        handle.write(" line\n")
    assert look(copied.folder / "first", second).new == ["half a line"]


def test_predictions_say_what_was_read(two: Two) -> None:
    results = json.loads((two.folder / "first" / "results.json").read_text())
    for name, system in results["systems"].items():
        rows = JsonlFile(two.folder / "first" / f"predictions/{name}.jsonl", Prediction).load()
        assert all(row.references for row in rows)
        scores = [row.score for row in rows if row.score is not None]
        assert len(scores) == system["metrics"]["accuracy"]["n"]
        assert sum(scores) / len(scores) == pytest.approx(system["metrics"]["accuracy"]["mean"])


def test_compare_is_paired(two: Two, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(two.folder / name) for name in ("first", "second")]
    done = _json(capsys, monkeypatch, "compare", *paths, "--system", "collab")
    (task,) = done["tasks"]
    assert (task["metric"], task["n"], task["only"]) == ("accuracy", 12, {"first": 0, "second": 0})
    means = {side["run"]: side["shared"]["mean"] for side in task["sides"]}
    assert {d["test"] for d in task["differences"]} == {"paired_bootstrap", "mcnemar_exact"}
    for difference in task["differences"]:
        assert difference["diff"] == pytest.approx(means["second"] - means["first"])
    assert done["settings"]["draft.samples"] == {"first": 3, "second": 2}
    assert done["settings"]["budget_calls"] == {"first": None, "second": 5000}
    assert "name" not in done["settings"]
    assert cowest_main(monkeypatch, "compare", *paths) == 0
    shown = capsys.readouterr().out
    assert "second - first" in shown and "draft.samples" in shown


def test_compare_reads_older_runs(copied: Two) -> None:
    """Whose predictions have texts alone."""
    new = compare_runs([copied.folder / "first", copied.folder / "second"])
    for file in copied.folder.glob("*/predictions/*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            for name in ("answer", "score", "references"):
                row.pop(name, None)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    old = compare_runs([copied.folder / "first", copied.folder / "second"])
    assert old.tasks == new.tasks


def _fewer(folder: Path, keep: int) -> None:
    for file in (folder / "predictions").glob("*.jsonl"):
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:keep]))


def test_compare_keeps_to_common_queries(copied: Two) -> None:
    _fewer(copied.folder / "second", 7)
    (task,) = compare_runs([copied.folder / "first", copied.folder / "second"]).tasks
    assert (task.n, dict(task.only)) == (7, {"first": 5, "second": 0})


def _replaced(file: Path, old: str, new: str) -> None:
    file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda f: _fewer(f, 0), DataError, "no query is in all"),
        (lambda f: shutil.rmtree(f / "predictions"), DataError, "are gone"),
        (lambda f: _replaced(f / "results.json", "accuracy", "em"), DataError, "measured otherwise"),
        (lambda f: shutil.rmtree(f), ConfigError, "no run directory"),
        (
            lambda f: _replaced(f / "predictions/collab.jsonl", 'references":["', 'references":["not '),
            DataError,
            "other references",
        ),
    ],
    ids=["no query", "no answers", "other metric", "no run", "other data"],
)
def test_what_cannot_be_compared(
    copied: Two, change: Callable[[Path], object], error: type[Exception], said: str
) -> None:
    change(copied.folder / "second")
    with pytest.raises(error, match=said):
        compare_runs([copied.folder / "first", copied.folder / "second"], "collab")


def test_compare_wants_two_and_a_system_that_is_there(two: Two) -> None:
    first, second = two.folder / "first", two.folder / "second"
    for paths, said in (([first], "two runs"), ([first, first], "named twice")):
        with pytest.raises(ConfigError, match=said):
            compare_runs(paths)
    with pytest.raises(ConfigError, match="no system 'flare'"):
        compare_runs([first, second], "flare")


def test_a_pruned_run_is_still_done(
    copied: Two, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied.folder / "first"
    (run / "drafts.jsonl.damaged").write_text("x" * 1000)
    (run / "align" / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    (run / "align" / "checkpoints" / "checkpoint-2" / "optimizer.pt").write_bytes(b"x" * 5000)
    chosen = json.loads((run / "align" / "selection.json").read_text())["chosen"]
    kept, before = run / "align" / f"step-{chosen}", disk_bytes(run)
    assert cowest_main(monkeypatch, "prune", str(run), "--dry-run") == 0
    assert "checkpoint that was not chosen" in capsys.readouterr().out
    assert cowest_main(monkeypatch, "prune", str(run)) == 2, "no terminal to ask in"
    assert "--yes" in capsys.readouterr().err and disk_bytes(run) == before
    told = _json(capsys, monkeypatch, "prune", str(run), "--yes")
    names = {str(Path(part["path"]).relative_to(run)) for part in told["removed"]}
    assert {"drafts.jsonl.damaged", "align/checkpoints/checkpoint-2"} <= names
    assert told["bytes"] == before - disk_bytes(run) > 5000
    assert chosen == 0 or kept.is_dir()
    assert removable(run) == []
    oracle = Oracle()
    again = run_tiny(copied.weak, run, oracle)
    assert not oracle.requests, "nothing is paid again"
    assert again.results[""].systems.keys() >= {"collab"}
    assert cowest_main(monkeypatch, "report", str(run)) == 0
    assert cowest_main(monkeypatch, "merge", str(run), "--out", str(copied.folder / "merged"), "--which", "sft") == 0


def test_prune_leaves_a_stage_that_is_not_done(copied: Two) -> None:
    run = copied.folder / "first"
    steps = sorted(p.name for p in (run / "align").glob("step-*"))
    _stage(run, "align", "running")
    assert [part.path for part in removable(run)] == []
    assert sorted(p.name for p in (run / "align").glob("step-*")) == steps


def test_prune_counts_what_the_disk_gets_back(copied: Two) -> None:
    run, other = copied.folder / "first", copied.folder / "elsewhere.damaged"
    os.link(run / "drafts.jsonl", run / "kept.damaged")
    other.write_text("not of a run")
    (part,) = [p for p in removable(run) if p.path.endswith(".damaged")]
    assert part.bytes == 0, "it has another name"
    assert remove(run, [part]) == 0
    assert (run / "drafts.jsonl").exists() and other.exists()


def test_prune_wants_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run directory"):
        removable(tmp_path)


def test_the_manifest_names_no_live_file(two: Two) -> None:
    manifest = Manifest.model_validate_json((two.folder / "first" / "manifest.json").read_bytes())
    named = {name for entry in manifest.stages.values() for note in entry.outputs.values() for name in note.files}
    assert named and not {name for name in named if "live" in name or name.endswith(".log")}
