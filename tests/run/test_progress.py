from __future__ import annotations

import sys

import pytest

from cowest.protocols import Reporter
from cowest.run.progress import LineReporter, QuietReporter, RichReporter, default_reporter


@pytest.mark.parametrize("reporter", [QuietReporter(), LineReporter(every_s=0.0), RichReporter()])
def test_nothing_of_it_goes_to_stdout(reporter: Reporter, capsys: pytest.CaptureFixture[str]) -> None:
    reporter.finish()  # nothing begun: no harm
    reporter.start("sample drafts", 3, 1)
    reporter.advance()
    reporter.start("unknown length", None)
    reporter.advance(2)
    reporter.info("sft: [bold]run[/bold]")
    reporter.finish()
    reporter.finish()
    assert capsys.readouterr().out == ""


def test_lines_tell_the_state_the_estimate_and_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("cowest.run.progress.time.monotonic", lambda: now)
    reporter = LineReporter(every_s=10.0)
    reporter.start("refine", 100, 40)
    now += 5
    reporter.advance(10)  # too early for a line
    now += 10
    reporter.advance(20)
    now += 15
    reporter.advance(30)
    reporter.finish()
    # 30 of the 60 that were left took 15 s, so the other 30 take 15 s more; those done before do not count as speed
    assert capsys.readouterr().err.splitlines() == [
        "  refine: 70/100, about 15 s left",
        "  refine: 100/100, about 0 s left",
        "  refine: 100/100 in 30.0 s",
    ]


def test_text_in_brackets_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    RichReporter().info("collab [red]x[/red]: run")
    assert "[red]x[/red]" in capsys.readouterr().err


def test_lines_where_stderr_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert isinstance(default_reporter(), LineReporter)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert isinstance(default_reporter(), RichReporter)
