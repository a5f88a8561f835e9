"""A short run of the fuzzing benchmark: no 5xx, errors in OpenAI's shape, nothing left inside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the benchmark ends its processes by signals")
def test_fuzzed_requests_get_no_5xx() -> None:
    command = [sys.executable, "-m", "benchmarks.serving", "fuzz", "--requests", "400"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "requests 400\nmust not be 0\nfailures logged 0\n" in done.stdout
