"""Every command block of the guides: what it names exists, its settings are a recipe's, and the short ones are run."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer.main
from tests.docs.blocks import ROOT, Command, commands

from cowest.cli.main import app
from cowest.recipe.config import load_config

COWEST: Any = typer.main.get_command(app)  # typer's own copy of click, which has no public types
OURS = commands("cowest")
PLACEHOLDER = re.compile(r"\.\.\.|\b[A-Z]{3,}\b|\$\w+|<\w+>")
QUICK = {"init", "validate", "estimate", "prompts", "ledger", "report", "prices", "runs", "compare", "doctor"}
"""Commands that load no model and pay for nothing: they are run as they stand."""


def _parsed(command: Command) -> tuple[str, Mapping[str, Any]]:
    """The sub-command's name, and the values that its arguments and options are read as. Raises the parser's errors."""
    found, names, words = COWEST, list[str](), list(command.words[1:])
    if words[0] == "ledger" and words[1] not in found.commands["ledger"].commands:
        words.insert(1, "show")  # the one that needs no name
    while hasattr(found, "commands"):
        assert words[0] in found.commands, f"{command}: there is no `cowest {' '.join([*names, words[0]])}`"
        found = found.commands[words[0]]
        names.append(words.pop(0))
    with found.make_context(" ".join(names), words) as made:
        return " ".join(names), made.params


def test_the_guides_have_commands() -> None:
    assert len(OURS) > 50
    assert len({c.page for c in OURS}) >= 8


@pytest.mark.parametrize("command", OURS, ids=str)
def test_a_command_has_no_option_that_is_not_there(command: Command) -> None:
    if not any("..." in word for word in command.words):
        _parsed(command)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has who has followed the guides: a clone's recipes, and `cowest init my-domain`."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("recipes", "examples"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "runs").mkdir()
    done = _run(folder, "init", "my-domain")
    assert done.returncode == 0, done.stderr
    shutil.copy(folder / "my-domain" / "recipe.yaml", folder / "recipe.yaml")
    shutil.copytree(folder / "my-domain" / "data", folder / "data")
    return folder


def _run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "not-a-key"}
    command = [sys.executable, "-m", "cowest", *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder, timeout=240, check=False)


def _settings(params: Mapping[str, Any]) -> tuple[Path, list[str]] | None:
    """The recipe that a command names and what it sets in it."""
    recipe = params.get("recipe")
    if recipe is None or PLACEHOLDER.search(str(recipe)):
        return None
    return Path(recipe), [one for one in params.get("set_") or [] if not PLACEHOLDER.search(one)]


def test_what_a_command_sets_is_a_setting_of_its_recipe(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    seen = 0
    for command in OURS:
        if any("..." in word for word in command.words):
            continue
        found = _settings(_parsed(command)[1])
        if found is None or not found[0].suffix or str(found[0].parent) in _imported():
            continue
        load_config(*found)
        seen += 1
    assert seen > 20


def _imported() -> set[str]:
    """Folders whose recipe the reader has just had written, from data of his own."""
    return {str(_parsed(c)[1]["out"]) for c in OURS if c.words[1] == "import"}


def _quick() -> list[Command]:
    return [
        c
        for c in OURS
        if c.words[1] in QUICK and not PLACEHOLDER.search(" ".join(c.words)) and "--measure" not in c.words
    ]


@pytest.mark.slow
def test_the_quick_ones_run(workspace: Path) -> None:
    ran = set[tuple[str, ...]]()
    for command in _quick():
        words = tuple(command.words[1:])
        if words in ran or not _here(workspace, words):
            continue
        ran.add(words)
        done = _run(workspace, *words)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert len(ran) >= 4


def _here(workspace: Path, words: tuple[str, ...]) -> bool:
    """Whether the files that a command names are in the workspace, and the data that its recipe names on this machine."""
    named = [word for word in words if "/" in word and not word.startswith("-")]
    if words[0] == "init":
        return False  # the workspace's own
    if any("real/" in word or "paper/" in word for word in named) and not os.environ.get("COWEST_DATA_DIR"):
        return False
    return all((workspace / word).exists() for word in named)


def test_a_make_target_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {word for c in commands("make") for word in c.words[1:] if re.fullmatch(r"[a-z-]+", word)}
    assert named and named <= targets


def test_an_extra_is_there() -> None:
    extras = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    )
    named = {
        extra
        for c in commands("pip")
        for word in c.words
        for found in re.findall(r"^(?:cowest|\.)\[([\w,]+)\]", word)
        for extra in found.split(",")
    }
    assert named and named <= extras


def test_a_benchmark_is_there_with_its_options() -> None:
    seen = 0
    for command in commands("python"):
        if command.words[1:2] != ("-m",) or not command.words[2].startswith("benchmarks"):
            continue
        spec = importlib.util.find_spec(command.words[2])
        assert spec is not None and spec.origin is not None, str(command)
        folder = Path(spec.origin).parent
        files = folder.rglob("*.py") if Path(spec.origin).name == "__init__.py" else [Path(spec.origin)]
        source = "".join(p.read_text(encoding="utf-8") for p in files)
        for option in (word for word in command.words if word.startswith("--")):
            assert option.partition("=")[0] in source, f"{command}: no {option}"
        seen += 1
    assert seen > 5
