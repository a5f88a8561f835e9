"""Tasks of other packages: the shipped example, installed as a user would install it, and plug-ins that are wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import JsonValue

from cowest.assembly.build import build_task
from cowest.errors import ConfigError, DataError
from cowest.recipe.config import PluginTaskConfig, config_from_dict, load_config
from cowest.tasks.plugins import load_plugin_task, plugin_tasks

EXAMPLE = Path(__file__).parents[2] / "examples" / "task_plugin"

SHOW = """
import json, sys
from pathlib import Path
from cowest.assembly.build import build_task
from cowest.recipe.config import load_config
task = build_task(load_config(Path(sys.argv[1]), sys.argv[2:]))
first = task.examples("test")[0]
print(json.dumps({
    "sizes": [len(task.examples(s)) for s in ("train", "validation", "test")],
    "target": task.target(first), "read": task.extract(task.target(first), first), "references": first.references,
}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example installed by pip, without network; its sources stay untouched."""
    pytest.importorskip("setuptools", reason="pip builds the example with setuptools", minversion="70.1")
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(EXAMPLE, folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index"]
    how = ["--no-deps", "--no-build-isolation", "--target", str(folder / "site"), str(folder / "source")]
    done = subprocess.run([*pip, *how], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def show(site: Path, recipe: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", SHOW, str(recipe), *overrides]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=False)


def test_the_example_is_found_by_its_entry_point(site: Path) -> None:
    done = show(site, EXAMPLE / "recipe.yaml")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["sizes"] == [9, 3, 3]
    assert shown["target"].endswith(f"\nAnswer: {shown['references'][0]}")
    assert shown["read"] == shown["references"][0]
    assert done.stdout == show(site, EXAMPLE / "recipe.yaml").stdout  # the same seed, the same splits
    assert show(site, EXAMPLE / "recipe.yaml", "seed=1").stdout != done.stdout


def test_relative_paths_in_options_start_at_the_recipe(site: Path, tmp_path: Path) -> None:
    shutil.copy(EXAMPLE / "recipe.yaml", tmp_path / "recipe.yaml")
    text = "country,capital,note\n" + "".join(f"Land {i},Town {i},\n" for i in range(5))
    (tmp_path / "own.csv").write_text(text, encoding="utf-8")
    done = show(site, tmp_path / "recipe.yaml", "task.options.file=own.csv")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sizes"] == [3, 1, 1]
    (tmp_path / "own.csv").write_text(text + "Nowhere,,\n", encoding="utf-8")
    failed = show(site, tmp_path / "recipe.yaml", "task.options.file=own.csv")
    assert f"DataError: {tmp_path / 'own.csv'}:7: country and capital are needed" in failed.stderr.replace(
        "cowest.errors.", ""
    )
    assert "task.options.fiel: unknown" in show(site, tmp_path / "recipe.yaml", "task.options.fiel=1").stderr


def test_a_name_that_is_not_installed_lists_what_is(site: Path) -> None:
    failed = show(site, EXAMPLE / "recipe.yaml", "task.name=capitols")
    assert "there is no task plug-in 'capitols'; did you mean 'capitals'?; installed are capitals" in failed.stderr


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with a package whose entry points are wrong, each in its own way."""
    info = tmp_path / "wrong_plugins-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wrong-plugins\nVersion: 1\n", encoding="utf-8")
    points = "absent = wrong_plugins:absent\nraises = wrong_plugins:raises\nnumber = wrong_plugins:number\n"
    points += "metric = wrong_plugins:metric\ndata = wrong_plugins:data\n"
    (info / "entry_points.txt").write_text(f"[cowest.tasks]\n{points}", encoding="utf-8")
    module = """
from cowest.errors import DataError
from cowest.tasks.base import SimpleTask
def raises(options, folder, seed): return {}["capital"]
def number(options, folder, seed): return 7
def metric(options, folder, seed): return SimpleTask("t", ("blue",), (), "say", {})
def data(options, folder, seed): raise DataError(f"{folder}: no rows; {sorted(options)}")
"""
    (tmp_path / "wrong_plugins.py").write_text(module, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("wrong_plugins", None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", r"'absent' \(wrong_plugins:absent\) failed: AttributeError: .*absent"),
        ("raises", r"'raises' \(wrong_plugins:raises\) failed: KeyError: 'capital'"),
        ("number", r"gave no Task: it has no name, metrics, labels, instruction, examples, target, extract"),
        ("metric", r"metrics: there is no metric 'blue'; there are: em, f1, squad_em, squad_f1, accuracy, macro_f1"),
        ("nobody", r"task\.name: there is no task plug-in 'nobody'; installed are "),
    ],
)
def test_a_plugin_that_is_wrong_is_a_clear_error(plugins: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_plugin_task(PluginTaskConfig(kind="plugin", name=name), 0)


def test_a_plugin_says_itself_what_is_wrong_with_its_data(plugins: Path) -> None:
    config = PluginTaskConfig(kind="plugin", name="data", options={"size": 3}, folder=plugins)
    with pytest.raises(DataError) as caught:
        load_plugin_task(config, 0)
    assert str(caught.value) == f"{plugins}: no rows; ['size']"


def test_two_packages_with_one_name_are_refused(plugins: Path) -> None:
    info = plugins / "more_plugins-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: more-plugins\nVersion: 1\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[cowest.tasks]\nnumber = more_plugins:number\n", encoding="utf-8")
    assert len(plugin_tasks()["number"]) == 2
    with pytest.raises(
        ConfigError, match=r"several packages have a task plug-in 'number' \(more_plugins:number, wrong_"
    ):
        load_plugin_task(PluginTaskConfig(kind="plugin", name="number"), 0)


def test_a_recipe_keeps_its_folder_for_the_plugin(plugins: Path, tmp_path: Path) -> None:
    models: dict[str, JsonValue] = {
        "weak": {"kind": "local", "model": "org/m"},
        "strong": {"kind": "scripted", "default": "x"},
    }
    recipe: dict[str, JsonValue] = {"name": "r", "task": {"kind": "plugin", "name": "data", "folder": "sub"}, **models}
    config = config_from_dict(recipe, tmp_path)
    assert isinstance(config.task, PluginTaskConfig) and config.task.folder == tmp_path.resolve() / "sub"
    with pytest.raises(DataError, match="sub: no rows"):
        build_task(config)
    text = load_config(EXAMPLE / "recipe.yaml").task
    assert isinstance(text, PluginTaskConfig) and text.folder == EXAMPLE.resolve()
