"""The parts of a run (domains, a table's units) in processes of their own; the whole then finds them done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cowest.protocols import Reporter
from cowest.run.processes import Job, run_jobs


def side_by_side(
    command: str,
    names: Sequence[str],
    recipe: Path,
    out: Path,
    overrides: Sequence[str],
    jobs: int,
    reporter: Reporter,
    more: Sequence[str] = (),
) -> None:
    """``cowest COMMAND RECIPE --only NAME`` for each name, ``jobs`` at a time. Raises StageError when one fails."""
    sets = [word for override in overrides for word in ("--set", override)]
    runs = [
        Job(name, (command, str(recipe), "--out", str(out), "--only", name, *sets, *more), out / name / "run.log")
        for name in names
    ]
    run_jobs(runs, jobs, reporter, echo=True)
