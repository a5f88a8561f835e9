"""Every example runs as a user would run it, the guides' among them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Scripts; a folder holds an example of its own kind: task_plugin is installed by tests/tasks/test_plugins.py.
ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ENV = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_every_example_is_found() -> None:
    assert [p.name for p in EXAMPLES] == ["quickstart.py"]


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.name)
def test_example_runs(example: Path) -> None:
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, env=ENV, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "reference:" in done.stdout
    for system in ("weak", "strong", "collab", "collab_aligned"):
        assert any(line.startswith(f"{system} ") and "accuracy 0." in line for line in done.stdout.splitlines()), (
            done.stdout
        )


@pytest.mark.slow
def test_the_guide_s_python_runs_beside_a_new_recipe(tmp_path: Path) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)
    for command in (["-m", "cowest", "init", "my-domain"], ["-c", script]):
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, env=ENV, cwd=tmp_path, timeout=280
        )
        assert done.returncode == 0, done.stderr
    found = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert {"weak", "strong", "collab", "always_no"} <= set(found)
    assert float(found["always_no"]) == 0.4


def test_the_guide_names_every_entry_point_group() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    groups = {
        group for call in re.findall(r"Registry\(([^)]*)", sources) for group in re.findall(r'"(cowest\.\w+)"', call)
    }
    listed = set(
        re.findall(r"^\| `(cowest\.\w+)` \|", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert len(groups) >= 8 and listed == groups | {"cowest.tasks"}
