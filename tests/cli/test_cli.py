"""The command as a user meets it: exit codes, what is on stdout and what on stderr, help."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
import yaml
from tests.helpers import SIZES, WORLD, Oracle, cowest_main, save_tiny_model, tiny_recipe, unused_url

import cowest
from cowest.cli.main import app
from cowest.models.endpoint import make_app, serve

RECIPE = {
    "name": "mine",
    "task": WORLD | SIZES,
    "weak": {"kind": "local", "model": "org/small"},
    "strong": {"kind": "scripted", "default": "Answer: yes"},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cowest_main(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"{cowest.__version__}\n"


def commands() -> list[list[str]]:
    found: list[list[str]] = [[]]

    def walk(group: object, path: list[str]) -> None:
        for name, command in getattr(group, "commands", {}).items():
            found.append([*path, name])
            walk(command, [*path, name])

    walk(typer.main.get_command(app), [])
    return found


def test_the_commands_are_known() -> None:
    expected = {
        "",
        "run",
        "validate",
        "import",
        "report",
        "doctor",
        "estimate",
        "guard",
        "ledger",
        "ledger show",
        "ledger recover",
        "ledger sent",
        "collect",
        "init",
        "merge",
        "serve",
        "table",
        "prompts",
        "watch",
        "runs",
        "prune",
        "prices",
        "compare",
        "lab",
        "lab study",
        "lab pretrain",
        "lab serve-strong",
    }
    assert {" ".join(c) for c in commands()} == expected


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_help_shows_an_example(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cowest_main(monkeypatch, *command, "--help") == 0
    out = capsys.readouterr().out
    assert f"Example: cowest {' '.join(command)}".strip() in " ".join(out.split())


def test_validate(recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cowest_main(monkeypatch, "validate", str(recipe)) == 0
    out, err = capsys.readouterr()
    head = "  medicine: 40 train, 8 validation, 12 test\n    accuracy, macro_f1; a classification: yes, no, maybe\n"
    assert out.startswith(f"{recipe}:\n{head}")
    assert "    ! 12 test rows: only large differences" in out and out.endswith(f"{recipe}: valid\n") and err == ""
    assert cowest_main(monkeypatch, "validate", str(recipe), "--json", "--set", "task.test=5") == 0
    sizes = {"train": 40, "validation": 8, "test": 5}
    found = json.loads(capsys.readouterr().out)
    assert (found["valid"], found["name"], found["tasks"]) == (True, "mine", {"medicine": sizes})
    assert found["data"]["medicine"]["lengths"]["question"]["median"] >= 10
    assert [f["kind"] for f in found["data"]["medicine"]["findings"]][-1] == "few_tests"


def test_the_schema_describes_every_setting(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cowest_main(monkeypatch, "validate", str(recipe), "--schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"name", "seed", "weak", "strong", "sft", "align"} <= set(schema["properties"])


def test_wrong_input_is_exit_code_2_and_one_line_on_stderr(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COWEST_TEST_KEY", raising=False)
    strong = "strong={kind: openai, model: m, api_key_env: COWEST_TEST_KEY}"
    wrong = {
        "no such recipe": ["run", str(tmp_path / "none.yaml")],
        "did you mean 'seed'?": ["validate", str(recipe), "--set", "sede=1"],
        "KEY=VALUE": ["run", str(recipe), "--set", "seed"],
        "no such lab model": ["run", str(recipe), "--set", "weak.model=lab:nothing"],
        "COWEST_TEST_KEY is not set": ["run", str(recipe), "--set", strong],
        "no run directory": ["report", str(tmp_path / "elsewhere")],
        "makes one": ["merge", str(tmp_path / "elsewhere"), "--out", str(tmp_path / "merged")],
        "is not empty": ["init", str(tmp_path)],
        "there are strong, strong-small, strong-tiny": ["lab", "pretrain", "huge"],
        "whole numbers": ["lab", "study", "--seeds", "a,b", "--out", str(tmp_path / "s")],
        "unknown domain": ["lab", "study", "--domains", "cooking", "--out", str(tmp_path / "s")],
    }
    before = sorted(tmp_path.rglob("*"))
    for hint, arguments in wrong.items():
        assert cowest_main(monkeypatch, *arguments) == 2, arguments
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("cowest: ") and hint in err, (arguments, err)
        assert "Traceback" not in err and err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before  # nothing was begun


def test_a_file_where_a_folder_should_be(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cowest_main(monkeypatch, "run", str(recipe), "--out", str(recipe), "--set", "weak.model=lab:weak") == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("cowest: ") and str(recipe) in err


@pytest.mark.parametrize(
    "arguments", [["runn"], ["run"], ["run", "x.yaml", "--nonsense"], ["lab", "study", "--jobs", "0"]]
)
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cowest_main(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Usage: " in err


def test_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cowest_main(monkeypatch, "init", str(tmp_path / "new")) == 0
    assert all(Path(line).exists() for line in capsys.readouterr().out.splitlines())


def in_a_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cowest", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False)


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("weak"))


@pytest.mark.slow
def test_run_and_report(weak: str, tmp_path: Path) -> None:
    path, out = tmp_path / "recipe.yaml", tmp_path / "run"

    async def go(*more: str) -> subprocess.CompletedProcess[str]:
        async with serve(make_app(Oracle(), model_name="strong")) as url:
            path.write_text(yaml.safe_dump(tiny_recipe(weak, url)))
            return await asyncio.to_thread(in_a_process, "run", str(path), "--out", str(out), *more)

    first = asyncio.run(go())
    assert first.returncode == 0, first.stderr
    for word in ("weak", "strong", "collab", "collab_aligned", "accuracy", f"Report: {out / 'report.html'}"):
        assert word in first.stdout
    assert "sft: run" in first.stderr and "sft: run" not in first.stdout
    assert "Traceback" not in first.stderr and "Warning" not in first.stderr
    second = asyncio.run(go("--json"))
    assert second.returncode == 0, second.stderr
    expected = json.loads((out / "results.json").read_text()) | {"report": str(out / "report.html")}
    assert json.loads(second.stdout) == expected
    assert "evaluate: reused" in second.stderr
    report = in_a_process("report", str(out), "--json")
    assert report.returncode == 0 and json.loads(report.stdout) == expected


@pytest.mark.slow
def test_a_failure_while_running_is_exit_code_1(weak: str, tmp_path: Path) -> None:
    with unused_url() as url:
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe(weak, url)))
        done = in_a_process("run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.search(r"^cowest: (strong alone|refine drafts): the first (12|20) calls all failed", done.stderr, re.M)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_ctrl_c_stops_training_and_says_how_to_go_on(weak: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with unused_url() as url:
        recipe = tiny_recipe(weak, url)
        recipe["sft"] = {"method": "full", "max_steps": 100_000, "batch_size": 4, "max_length": 128, "device": "cpu"}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        command = [sys.executable, "-m", "cowest", "run", str(tmp_path / "recipe.yaml"), "--out", str(out)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                deadline = time.monotonic() + 90
                while not (out / "sft" / "log.jsonl").exists() and time.monotonic() < deadline:
                    time.sleep(0.1)
                process.send_signal(signal.SIGINT)
                printed, err = process.communicate(timeout=30)
            finally:
                process.kill()
    assert process.returncode == 130, err
    assert printed == "" and "stopped; the same command continues" in err and "Traceback" not in err
    assert json.loads((out / "manifest.json").read_text())["stages"]["sft"]["status"] == "running"
