"""Running a table: unit by unit, point by point, variant by variant; nothing that two of them share is done twice.

    runs/NAME/TASK-SEED[/LABEL]/VARIANT/    an ordinary run directory, with rows/ROW.jsonl beside the stages' files
    runs/NAME/answers.sqlite                what local models answered; ledger.sqlite has what was paid

Two mechanisms share: a stage whose fingerprint another run directory of the unit has finished is taken over from there (SFT and
drafts among the strong models of a grid, feedback among the ways to train); and any request that some row has made is answered
from the ledger, or from answers.sqlite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cowest.assembly.build import frames_of
from cowest.assembly.context import Context
from cowest.assembly.here import check_here
from cowest.assembly.opened import OpenModels, ledger_path
from cowest.assembly.prepare import check_installed, prepare
from cowest.assembly.systems import Retrievers, check_systems
from cowest.assembly.turns import check_turn
from cowest.errors import ConfigError
from cowest.ledger.ledger import LedgerSummary
from cowest.pipeline import run_stages, stages_now
from cowest.protocols import Reporter
from cowest.recipe.config import RunConfig
from cowest.recipe.kept import keep_recipe
from cowest.run.live import LoggedReporter
from cowest.run.progress import QuietReporter
from cowest.run.store import RunDir
from cowest.stages.base import Stage
from cowest.stages.evaluate import EVALUATE
from cowest.stages.gepa import GEPA, check_queries, gepa_stages
from cowest.stages.guard import CALIBRATE, CERTIFY, check_rows, guard_stages
from cowest.stages.loop import begun
from cowest.stages.sample import sample_stage
from cowest.systems.registry import variant_of
from cowest.systems.spec import SystemSpec
from cowest.table.plan import Plan, Unit
from cowest.table.row_stage import row_stage
from cowest.tasks.base import notes_of

ORDER = ("nothing", "sft", "sample", "align")
"""How far the weak model is made, from what a system needs; a guard needs the last of these that the recipe has."""


@dataclass(frozen=True, slots=True)
class Variant:
    """The rows of one variant at one point of a unit's grid, and the context in which they are made."""

    label: str
    name: str
    rows: tuple[SystemSpec, ...]
    context: Context


def open_plan(plan: Plan, out: Path, reporter: Reporter, offline: bool = False) -> list[list[Variant]]:
    """The variants of each unit, with everything checked that can be before a model is loaded or a call is paid."""
    return [list(_variants(plan, unit, out, reporter, offline)) for unit in plan.units]


def _variants(plan: Plan, unit: Unit, out: Path, reporter: Reporter, offline: bool) -> Iterator[Variant]:
    ledger = ledger_path(plan.config, out)
    for label, config in unit.points.items():
        folder = out / unit.name / label if label else out / unit.name
        # Prices, keys and data of every point are checked here; notes on the data are told once, below.
        base = prepare(config.model_copy(update={"ledger": ledger}), folder, QuietReporter(), offline, plan.objects)[0]
        resolved = base.config
        models = OpenModels(resolved, out, out / "answers.sqlite", plan.objects, reporter)
        check_systems(base, plan.rows, "table.rows")
        if base.judged(base.task.examples("test")):
            raise ConfigError(
                f"task {base.task.name}: a table needs references in the test split; `cowest run` judges without"
            )
        if label == plan.labels[0]:
            for note in notes_of(base.task):
                reporter.info(f"{unit.name}: {note}")
        grouped: dict[str, tuple[RunConfig, list[SystemSpec]]] = {}
        for row in plan.rows:
            name, changed = variant_of(resolved, row)
            grouped.setdefault(name, (changed, []))[1].append(row)
        for name, (changed, rows) in grouped.items():
            told = f"{unit.name}{f' {label}' if label else ''} {name}"
            context = replace(
                base,
                name=told,
                config=changed,
                frames=frames_of(changed, base.task, plan.objects),
                run=RunDir(folder / name),
                reporter=reporter,
                models=models,
            )
            if not offline:
                check_turn(context)
                check_rows(context, rows)
                check_queries(context, rows)
            yield Variant(label, name, tuple(rows), context)


def check_plan_here(plan: Plan) -> None:
    """Raise ModelNotFoundError for a model of some point, or the rows' encoder, that is not here and cannot be fetched."""
    for unit in plan.units:
        for point in unit.points.values():
            check_here(point, plan.rows)


def stages_for(rows: Sequence[SystemSpec], retrievers: Retrievers, context: Context) -> list[Stage]:
    """The stages of the variant's recipe as far as its ``rows`` need them, then a stage for each row."""
    guarded = guard_stages(context.config, begun(context)) if any(row.needs == "guard" for row in rows) else ()
    wanted = max((trained_for(row, context) for row in rows), key=ORDER.index)
    others = (EVALUATE, CALIBRATE, CERTIFY)
    stages = [s for s in stages_now(context) if s.name not in others and not s.name.startswith(f"{GEPA} ")]
    last = {"nothing": None, "sft": "sft", "sample": "sample", "align": "align"}[wanted]
    if last == "sft" and not context.weak.trainable:
        last = None  # it is tuned elsewhere
    if any(row.needs == "sample" for row in rows) and all(stage.name != "sample" for stage in stages):
        drafting = sample_stage(begun(context)[0])  # an alignment that draws drafts of its own has no such stage
        stages = [*stages[:1], drafting, *stages[1:]]
    names = [stage.name for stage in stages]
    if last == "align":
        last = names[-1]  # of the last round
    kept = stages[: names.index(last) + 1] if last else ()
    optimised = gepa_stages(context.config, begun(context), rows, counted=wanted == "align")
    return [*kept, *guarded, *optimised, *(row_stage(row, context, retrievers) for row in rows)]


def trained_for(row: SystemSpec, context: Context) -> str:
    """How far a row's weak model has to be made in its variant, one of ``ORDER``; that of a guard is aligned where it can be."""
    if row.needs != "guard":
        return row.needs
    if not context.weak.trainable:
        return "nothing"
    return "sft" if context.config.align.objective == "off" else "align"


async def run_unit(
    plan: Plan, unit: Unit, out: Path, reporter: Reporter, reuse: Sequence[Path] = (), keep: bool = False
) -> LedgerSummary | None:
    """Run or continue all variants of a unit; returns the bill so far where something is paid for.

    ``reuse``: folders of other tables, from whose unit of this name finished stages are taken over. ``keep``: write the recipe
    into the table's folder, once the unit is this process's.
    """
    retrievers = Retrievers()
    pool = [RunDir(file.parent) for table in reuse for file in sorted((table / unit.name).rglob("manifest.json"))]
    variants = list(_variants(plan, unit, out, reporter, offline=False))
    bill: LedgerSummary | None = None
    with RunDir(out / unit.name).locked():
        if keep:
            keep_recipe(plan.config, out)
        for models, group in _by_models(variants):
            try:
                for variant in group:
                    await run_stages(variant.context, partial(stages_for, variant.rows, retrievers), pool)
                    pool.append(variant.context.run)
                bill = models.bill() or bill
            finally:
                await models.aclose()
    return bill


def _by_models(variants: Sequence[Variant]) -> Iterator[tuple[OpenModels, list[Variant]]]:
    """Variants of one point share its models; those are closed before the next point's are opened."""
    groups: dict[int, tuple[OpenModels, list[Variant]]] = {}
    for variant in variants:
        models = variant.context.models
        groups.setdefault(id(models), (models, []))[1].append(variant)
    yield from groups.values()


async def run_table(
    plan: Plan, out: Path, reporter: Reporter, only: str | None = None, reuse: Sequence[Path] = ()
) -> LedgerSummary | None:
    """Run or continue a whole table (or one unit of it) in ``out``. Raises what :func:`cowest.pipeline.run` raises."""
    check_installed(plan.config)
    units = [unit for unit in plan.units if only in (None, unit.name)]
    if not units:
        raise ConfigError(f"--only {only!r}: the table's units are {', '.join(u.name for u in plan.units)}")
    open_plan(plan, out, QuietReporter())  # what is wrong in the last unit is said before the first is paid for
    check_plan_here(plan)
    bill: LedgerSummary | None = None
    logged = LoggedReporter(reporter, out / (only or ""), "table", log=only is None)
    with logged.opened():
        for unit in units:
            bill = await run_unit(plan, unit, out, logged, reuse, keep=only is None) or bill
    return bill
