"""The files for a public host and for pre-commit: what they name exists, and says what the project does."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import typer
import yaml

from cowest.cli.main import app

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def load(name: str) -> dict[str, Any]:
    found = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


WORKFLOW = load(".github/workflows/ci.yml")
JOBS: dict[str, dict[str, Any]] = WORKFLOW["jobs"]


def lines() -> list[str]:
    steps = [step for job in JOBS.values() for step in job["steps"]]
    return [line.strip() for step in steps for line in str(step.get("run", "")).splitlines() if line.strip()]


def test_every_system_and_python_is_tried() -> None:
    matrix = JOBS["platforms"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    assert matrix["python"] == ["3.11", "3.12", "3.13"]  # as text: 3.10 would be 3.1
    assert PYPROJECT["project"]["requires-python"] == f">={matrix['python'][0]}"


def test_a_workflow_may_only_read_and_its_actions_have_a_version() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    for job in JOBS.values():
        assert job["timeout-minutes"] and job["runs-on"]
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            if "uses" in step:
                assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])


def test_every_make_target_and_command_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    commands = set(getattr(typer.main.get_command(app), "commands", {}))
    seen = set()
    for line in lines():
        for part in line.split("&&"):
            words = shlex.split(part)
            if words[0] == "make":
                assert {word for word in words[1:] if "=" not in word} <= targets
                seen.add("make")
            if words[0] == "cowest":
                assert words[1] in commands
                assert all((ROOT / word).exists() for word in words[2:] if word.startswith("recipes/"))
                seen.add("cowest")
    assert seen == {"make", "cowest"} and "make check" in lines()


def test_markers_folders_and_extras_are_there() -> None:
    text = "\n".join(lines())
    markers = {marker.partition(":")[0] for marker in PYPROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    assert set(re.findall(r"not (\w+)", text)) <= markers
    assert all((ROOT / path).exists() for path in re.findall(r"\btests/\S+", text))
    extras = {name for found in re.findall(r"\.\[([\w,]+)\]", text) for name in found.split(",")}
    assert extras <= set(PYPROJECT["project"]["optional-dependencies"])


def test_the_hooks_are_local_and_run_what_make_lint_runs() -> None:
    (repo,) = load(".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for hook in repo["hooks"]:
        assert hook["language"] == "system"
        tool = hook["entry"].removeprefix(".venv/bin/").split()[0]
        assert f"$(BIN)/{tool}" in makefile
