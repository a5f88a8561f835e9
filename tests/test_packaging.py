"""The package as a whole: what imports, what importing costs, what is declared, pinned and shipped."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import cowest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "src" / "cowest"
HEAVY = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "tokenizers",
    "scipy",
    "matplotlib",
    "sklearn",
    "safetensors",
)
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
DISTRIBUTION = {
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "dotenv": "python-dotenv",
    "pydantic_core": "pydantic",  # which needs one exact version of it
}  # import name -> name on the index, where they differ


def requirements(*extras: str) -> dict[str, Requirement]:
    """The declared requirements of the core and these extras, `cowest[...]` resolved, by canonical name."""
    found: dict[str, Requirement] = {}
    for line in [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]:
        requirement = Requirement(line)
        if requirement.name == "cowest":
            found |= requirements(*requirement.extras)
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def imports_of(folder: Path) -> dict[str, str]:
    """Top-level names of the libraries imported anywhere under a folder, each with one file that does."""
    found: dict[str, str] = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.append(node.module)
            for name in names:
                found.setdefault(name.split(".")[0], str(path.relative_to(ROOT)))
    return {k: v for k, v in found.items() if k not in sys.stdlib_module_names and k not in {"cowest", "tests"}}


def loaded_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after a statement."""
    code = f"import sys, json\n{statement}\nprint(json.dumps(sorted(m.split('.')[0] for m in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", ["cowest", "cowest.cli.main"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    loaded = loaded_after(f"import {module}")
    assert "cowest" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_help_answers_and_loads_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-c", "from cowest.cli.main import main; main()", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "run" in done.stdout and "report" in done.stdout
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "cowest" in loaded
    assert loaded.isdisjoint(HEAVY)


def modules() -> list[str]:
    return [m.name for m in pkgutil.walk_packages([str(SOURCES)], prefix="cowest.") if not m.name.endswith("__main__")]


@pytest.mark.slow
def test_every_module_imports() -> None:
    for name in modules():
        importlib.import_module(name)


def test_every_module_is_found() -> None:
    # walk_packages passes over folders without __init__.py, and so would the wheel's users.
    files = [p for p in SOURCES.rglob("*.py") if p.name not in {"__init__.py", "__main__.py"}]
    leaves = [name for name in modules() if (SOURCES / Path(*name.split(".")[1:])).with_suffix(".py").exists()]
    assert len(leaves) == len(files) > 20


LAYERS, HEAVY_PLACES = PYPROJECT["tool"]["importlinter"]["contracts"]


WITHOUT_EXTRAS = f"""
import importlib, sys
class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {[name for name in HEAVY if name != "scipy"]}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuses())
"""


def test_every_module_and_package_is_in_both_import_contracts() -> None:
    named = {name.strip() for line in LAYERS["layers"] for name in re.split(r"[|:]", line)}
    there = {p.stem for p in SOURCES.glob("*.py")} | {p.name for p in SOURCES.iterdir() if list(p.glob("*.py"))}
    assert named == {f"cowest.{name}" for name in there - {"__init__"}}
    assert HEAVY_PLACES["source_modules"] == ["cowest"]  # with everything in it
    assert set(HEAVY_PLACES["forbidden_modules"]) >= set(HEAVY)


def test_without_the_extras_all_but_the_named_places_import() -> None:
    places = {line.split(" -> ")[0].removesuffix(".*") for line in HEAVY_PLACES["ignore_imports"]}
    places.add("cowest.report.html")  # the page stands on its plots
    light = [n for n in modules() if not any(n == place or n.startswith(f"{place}.") for place in places)]
    assert len(light) > 150
    loaded_after(f"{WITHOUT_EXTRAS}for name in {light}: importlib.import_module(name)")


def test_functions_and_files_stay_short() -> None:
    long = []
    for path in sorted(SOURCES.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT)
        if (lines := len(text.splitlines())) > 500:
            long.append(f"{name}: {lines} lines of 500")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > 80:
                    long.append(f"{name}:{node.lineno} {node.name}: {lines} lines of 80")
    assert not long


def test_what_the_package_imports_is_declared() -> None:
    # What comes with a declared library and is imported beside it need not be declared itself.
    declared = set(
        requirements("local", "train", "plots", "serve", "structured", "retrieval", "gepa", "llamacpp", "data")
    )
    missing = {
        n: f for n, f in imports_of(SOURCES).items() if canonicalize_name(DISTRIBUTION.get(n, n)) not in declared
    }
    assert not missing


def test_what_the_tests_import_is_declared() -> None:
    declared = set(requirements("all", "dev"))
    missing = {
        n: f for n, f in imports_of(ROOT / "tests").items() if canonicalize_name(DISTRIBUTION.get(n, n)) not in declared
    }
    missing.pop("benchmarks", None)  # beside the tests in every checkout
    assert not missing


def test_core_needs_no_model_library() -> None:
    assert {"torch", "transformers", "trl", "peft", "datasets", "matplotlib"}.isdisjoint(requirements())
    assert "torch" not in requirements("dev")
    assert {"torch", "trl", "peft"} <= set(requirements("train"))
    assert set(EXTRAS) == {
        "local",
        "train",
        "plots",
        "serve",
        "structured",
        "retrieval",
        "gepa",
        "llamacpp",
        "all",
        "data",
        "docs",
        "dev",
    }


def test_constraints_pin_every_dependency_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.]*)", line)
            assert match, f"not an exact pin without a local part: {line}"
            assert canonicalize_name(match[1]) not in pins, f"pinned twice: {line}"
            pins[canonicalize_name(match[1])] = match[2]
    for name, requirement in requirements("all", "dev").items():
        assert name in pins, f"{name} is not in constraints.txt"
        assert requirement.specifier.contains(pins[name]), f"{requirement} excludes {pins[name]}"


def test_the_command_is_declared() -> None:
    assert PROJECT["scripts"] == {"cowest": "cowest.cli.main:main"}
    assert PROJECT["dynamic"] == ["version"]  # it is in the package, once
    assert cowest.__version__ == importlib.metadata.version("cowest")
