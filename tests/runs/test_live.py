"""``run.log`` and ``live.json``: what a run tells other processes, and that a killed one is not taken for one at work."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.helpers import Log

from cowest.errors import BudgetExceededError, StageError
from cowest.run.live import LIVE, LOG, LoggedReporter, read_live, working


def test_a_run_is_followed(tmp_path: Path) -> None:
    log = Log()
    reporter = LoggedReporter(log, tmp_path / "run", "run")
    reporter.info("said before")
    assert not (tmp_path / "run").exists(), "a recipe that is refused leaves no folder"
    with reporter.opened():
        assert working(tmp_path / "run")
        reporter.start("sample drafts", 10, 2)
        reporter.advance(3)
        time.sleep(0.6)
        reporter.advance()
        live = read_live(tmp_path / "run")
        assert live is not None
        assert (live.label, live.done, live.total, live.at_start, live.ended) == ("sample drafts", 6, 10, 2, None)
        left = live.left_s(live.step_began + 8)
        assert left == pytest.approx(8)
        reporter.finish()
    live = read_live(tmp_path / "run")
    assert live is not None and live.ended == "done" and live.label == ""
    assert not working(tmp_path / "run")
    text = (tmp_path / "run" / LOG).read_text(encoding="utf-8")
    for said in ("cowest run: process", "said before", "sample drafts: 6 done", "done"):
        assert said in text
    assert log.lines == ["said before"] and log.starts == [("sample drafts", 10, 2)]


@pytest.mark.parametrize(
    ("error", "ended", "logged"),
    [
        (StageError("the disk is full"), "failed", "failed: the disk is full"),
        (BudgetExceededError("USD 5 are spent"), "budget", "budget: USD 5 are spent"),
        (SystemExit(130), "stopped", "stopped"),
        (ZeroDivisionError("by zero"), "failed", "Traceback"),
    ],
)
def test_how_it_ended_is_told(tmp_path: Path, error: BaseException, ended: str, logged: str) -> None:
    with pytest.raises(type(error)), LoggedReporter(Log(), tmp_path, "run").opened():
        raise error
    live = read_live(tmp_path)
    assert live is not None and live.ended == ended
    assert logged in (tmp_path / LOG).read_text(encoding="utf-8")


def test_a_killed_process_is_not_at_work(tmp_path: Path) -> None:
    script = f"""
import time
from pathlib import Path
from cowest.run.live import LoggedReporter
from cowest.run.progress import QuietReporter
with LoggedReporter(QuietReporter(), Path({str(tmp_path)!r}), "run").opened():
    print("open", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "open\n"
    assert working(tmp_path)
    process.kill()
    process.wait()
    process.stdout.close()
    assert not working(tmp_path)
    live = read_live(tmp_path)
    assert live is not None and live.ended is None


def test_a_log_that_grows_long_loses_its_beginning(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text("".join(f"line {n} {'x' * 90}\n" for n in range(50_000)), encoding="utf-8")
    with LoggedReporter(Log(), tmp_path, "run").opened():
        pass
    lines = (tmp_path / LOG).read_text(encoding="utf-8").splitlines()
    assert (tmp_path / LOG).stat().st_size < 2_100_000
    assert lines[0].startswith("line ") and lines[-1].endswith("done") and "line 49999" in lines[-3]


@pytest.mark.skipif(sys.platform == "win32", reason="folders there are writable")
def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with LoggedReporter(Log(), tmp_path / "file", "run").opened():
        pass
    (tmp_path / LIVE).write_text("torn {")
    assert read_live(tmp_path) is None
