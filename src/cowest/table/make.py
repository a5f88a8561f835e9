"""A whole table: its units (in processes of their own, where several go side by side), then its numbers, files and plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cowest.assembly.prepare import check_installed
from cowest.ledger.summary import LedgerSummary
from cowest.protocols import Reporter
from cowest.run import stopping
from cowest.run.progress import QuietReporter
from cowest.run.side_by_side import side_by_side
from cowest.table.plan import Plan
from cowest.table.results import Pool, TableResults, pools, results_of
from cowest.table.run import check_plan_here, open_plan, run_table
from cowest.table.write import write_table


@dataclass(frozen=True, slots=True)
class Made:
    """A finished table, the answers behind it, its files, and the bill where something was paid for."""

    results: TableResults
    pools: Sequence[Pool]
    written: Sequence[Path]
    bill: LedgerSummary | None


def make_table(
    plan: Plan,
    recipe: Path,
    overrides: Sequence[str],
    out: Path,
    jobs: int,
    reporter: Reporter,
    reuse: Sequence[Path] = (),
) -> Made:
    """Run or continue the table in ``out``, and write its files. ``recipe`` and ``overrides`` are what the processes are told.

    Raises what :func:`cowest.table.run.run_table` raises, and StageError with the log's path where a process fails.
    """
    if jobs > 1 and len(plan.units) > 1:
        check_installed(plan.config)
        open_plan(plan, out, QuietReporter())
        check_plan_here(plan)
        more = [word for other in reuse for word in ("--reuse", str(other))]
        side_by_side("table", [unit.name for unit in plan.units], recipe, out, overrides, jobs, reporter, more)
    return finished(plan, out, stopping.run(run_table(plan, out, reporter, reuse=reuse)))


def finished(plan: Plan, out: Path, bill: LedgerSummary | None) -> Made:
    """The numbers, files and plots of a table whose units are done."""
    from cowest.table.plots import write_plots

    found = pools(plan, open_plan(plan, out, QuietReporter(), offline=True))
    results = results_of(plan, found)
    written = [*write_table(results, out).values(), *write_plots(results, out)]
    return Made(results, found, written, bill)
