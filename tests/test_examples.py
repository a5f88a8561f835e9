"""Every example runs as a user would run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Scripts; a folder holds an example of its own kind: task_plugin is installed by tests/tasks/test_plugins.py.
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def test_every_example_is_found() -> None:
    assert [p.name for p in EXAMPLES] == ["quickstart.py"]


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda p: p.name)
def test_example_runs(example: Path) -> None:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, env=env, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "reference:" in done.stdout
    for system in ("weak", "strong", "collab", "collab_aligned"):
        assert any(line.startswith(f"{system} ") and "accuracy 0." in line for line in done.stdout.splitlines()), (
            done.stdout
        )
