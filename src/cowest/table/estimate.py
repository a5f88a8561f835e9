"""What a table will cost: the stages of its variants, each once however many rows read it, and the calls of its rows.

A row's calls are counted by answering some of its queries with stand-ins (:mod:`cowest.costs.systems`); requests that an earlier
row makes as well are free.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from cowest.assembly.context import Context
from cowest.assembly.opened import ledger_path
from cowest.assembly.systems import Retrievers
from cowest.costs.estimate import Estimate, estimate_work, paid_requests
from cowest.costs.gepa import gepa_work
from cowest.costs.guard import calibration_work
from cowest.costs.local import Learner
from cowest.costs.systems import known_as, lineage_of, system_work
from cowest.costs.work import Work
from cowest.costs.workload import workload
from cowest.protocols import Reporter
from cowest.recipe.config import RunConfig
from cowest.run.identity import fingerprint
from cowest.run.progress import QuietReporter
from cowest.stages.guard import CALIBRATE
from cowest.stages.loop import rounds_of
from cowest.table.plan import make_plan
from cowest.table.row_stage import row_file
from cowest.table.run import Variant, check_plan_here, open_plan, trained_for
from cowest.types import Prediction


def estimate_table(config: RunConfig, out: Path, measure: Reporter | None = None) -> Estimate:
    """Estimate what a table would still cost if it were run in ``out``; ``measure`` as for :func:`cowest.costs.estimate.estimate`.

    Raises what :func:`cowest.table.plan.make_plan` raises, and with ``measure`` ModelNotFoundError.
    """
    plan = make_plan(config)
    if measure is not None:
        check_plan_here(plan)
    ledger = ledger_path(config, out)
    work, learners = list[tuple[Context, Work]](), list[Learner]()
    for variants in open_plan(plan, out, QuietReporter(), offline=True):
        work += _training(variants, paid_requests(ledger))
        work += _prompts(variants)
        work += _rows(variants)
        learners += _learners(variants)
    return estimate_work(config, ledger, work, learners, measure)


def _needed(variant: Variant) -> tuple[str, ...]:
    """The stages that its rows need."""
    needs = {row.needs for row in variant.rows}
    trained = {trained_for(row, variant.context) for row in variant.rows}
    guard = (CALIBRATE,) if "guard" in needs else ()
    if "align" in trained:
        return ("sft", "openings", "sample", "feedback", "align", *guard)
    return (*(("sft", "sample") if "sample" in trained else ("sft",) if "sft" in trained else ()), *guard)


def _learners(variants: Sequence[Variant]) -> Iterator[Learner]:
    """Who trains what; a training that two variants share is the first one's."""
    seen: set[str] = set()
    for variant in variants:
        prints, needed = lineage_of(variant.context), _needed(variant)
        trained = ["sft", *(round_.stage("align") for round_ in rounds_of(variant.context.config))]
        others = {
            name
            for name in trained
            if ("sft" if name == "sft" else "align") not in needed or prints.get(name) in (None, *seen)
        }
        seen.update(prints[name] for name in trained if name not in others)
        yield Learner(variant.context, frozenset(others))


def _training(variants: Sequence[Variant], paid: frozenset[str]) -> Iterator[tuple[Context, Work]]:
    """The calls of the variants' stages; a stage that two variants share is counted once."""
    seen: set[str] = set()
    for variant in variants:
        wanted = _needed(variant)
        guarded = CALIBRATE in wanted
        prints = lineage_of(variant.context, guarded)
        calibration, mine = calibration_work(variant.context, paid) if guarded else (), set[str]()
        for work in (*workload(variant.context, paid), *calibration):
            if work.stage not in wanted:
                continue
            key = prints[work.made_in]
            if work.calls_for.startswith(
                "strong alone"
            ):  # the same request in every draft format, answered from the ledger
                key = fingerprint(known_as(work.model), work.sampling.model_dump(mode="json"))
            key = f"{key} {work.calls_for}"
            if key not in seen:
                mine.add(key)  # a variant's own calls are all made: two turns of one choice are two
                yield variant.context, work
        seen |= mine


def _prompts(variants: Sequence[Variant]) -> Iterator[tuple[Context, Work]]:
    """The calls that prompts are optimised with."""
    for variant in variants:
        aligned = any(trained_for(row, variant.context) == "align" for row in variant.rows)
        yield from ((variant.context, work) for work in gepa_work(variant.context, variant.rows, counted=aligned))


def _rows(variants: Sequence[Variant]) -> Iterator[tuple[Context, Work]]:
    retrievers, seen = Retrievers(), set[str]()
    for variant in variants:
        context = variant.context
        for row in variant.rows:
            done = {p.example_id for p in context.run.file(row_file(row), Prediction).load() if p.error is None}
            yield from ((context, work) for work in system_work(context, row, "rows", done, retrievers, seen, True))
