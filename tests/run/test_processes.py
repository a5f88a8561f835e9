"""Domains and seeds side by side: processes of their own, one lock a run directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cowest.errors import StageError
from cowest.run.processes import Job, run_jobs
from cowest.run.progress import QuietReporter
from cowest.run.store import RunDir


class Lines(QuietReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, text: str) -> None:
        self.lines.append(text)


def test_a_failing_job_names_its_log_and_its_reason(tmp_path: Path) -> None:
    job = Job("broken", ("run", str(tmp_path / "none.yaml")), tmp_path / "run.log")
    with pytest.raises(StageError, match=r"broken failed .*no such recipe.*run\.log"):
        run_jobs([job], 2, QuietReporter())


def test_how_a_job_ended_is_logged_and_told_once(tmp_path: Path) -> None:
    lines, log = Lines(), tmp_path / "a" / "run.log"
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: r\ntask: {kind: lab, domain: medicine, train: 20, validation: 4, test: 4}\n"
        "weak: {kind: local, model: 'lab:weak'}\nstrong: {kind: scripted, default: 'Answer: yes'}\n",
        encoding="utf-8",
    )
    # The wrong --only stops it before any model is loaded, with one line on stderr.
    with pytest.raises(StageError, match=r"the run of a failed .--only 'x'"):
        run_jobs([Job("a", ("run", str(recipe), "--only", "x"), log)], 1, lines, echo=True)
    assert "cowest: --only 'x'" in log.read_text(encoding="utf-8")
    assert not any("--only" in line for line in lines.lines), "how a job ended is told once"


def test_a_run_directory_is_held_by_one_process(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from cowest.run.store import RunDir
with RunDir(Path({str(tmp_path)!r})).locked():
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(StageError, match="another cowest process"), RunDir(tmp_path).locked(wait_s=0.3):
            pass
    finally:
        holder.kill()
        holder.wait()
    with RunDir(tmp_path).locked(wait_s=0.3):  # a killed process holds nothing
        pass
