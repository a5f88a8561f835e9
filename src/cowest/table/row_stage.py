"""A row as a stage of its variant's run directory: it reads what was trained there, and writes one prediction a test query."""

from __future__ import annotations

from cowest.assembly.context import Context
from cowest.assembly.systems import GUARD, Retrievers
from cowest.run.freshness import Depends
from cowest.run.store import RunDir
from cowest.stages import depends
from cowest.stages.base import Done, Stage, failures
from cowest.stages.evaluate import answer_queries, not_aligned, system_depends
from cowest.stages.loop import begun
from cowest.systems.optimised import optimised_file
from cowest.systems.registry import STRONG
from cowest.systems.spec import SystemSpec
from cowest.types import Prediction


def row_file(row: SystemSpec) -> str:
    """Where a row's predictions are, within its variant's run directory."""
    return f"rows/{row.name}.jsonl"


def row_stage(row: SystemSpec, context: Context, retrievers: Retrievers) -> Stage:
    """The stage that evaluates ``row`` on the test queries."""
    reads = _reads(row, context)

    def follows_from(context: Context) -> Depends:
        return depends.value("row", row.name) | system_depends(context, row)

    async def evaluate(context: Context) -> Done:
        why = not_aligned(context, row)
        if why is not None:
            context.reporter.info(f"{context.label}warning: no row {row.name}: {why}")
            context.run.file(row_file(row), Prediction).replace([])
            return Done({"queries": 0})
        file, alone = context.run.file(row_file(row), Prediction), _alone(context, row)
        done = await answer_queries(context, row, file, row.name, retrievers, alone=alone)
        made = done.predictions
        failed = failures(made)
        counts = {
            "queries": len(made),
            "failed": failed,
            "truncated": sum(p.truncated for p in made),
            "truncated_context": sum(p.truncated_context for p in made),
        }
        return Done(counts, failed, done.warnings)

    return Stage(f"row {row.name}", 1, reads, (row_file(row),), follows_from, evaluate)


def _reads(row: SystemSpec, context: Context) -> tuple[str, ...]:
    """What a row's answers follow from of what its variant's stages have left."""
    trained = context.weak.trainable
    aligned = tuple(round_.file("align") for round_ in begun(context))
    of_guard = ("sft", *(aligned if trained and context.config.align.objective != "off" else ()), GUARD)
    needs = {"nothing": (), "sft": ("sft",), "sample": ("sft", "drafts.jsonl"), "align": aligned, "guard": of_guard}
    optimised = (optimised_file(row.name),) if row.optimises else ()
    return (*(name for name in needs[row.needs] if trained or name != "sft"), *optimised)


def _alone(context: Context, row: SystemSpec) -> list[Prediction]:
    """The strong model alone, where that row has been made: in the main variant's folder, which is beside this one's."""
    if row.uses == "weak":
        return []
    name, main = row_file(STRONG), context.run.path.parent / "main"
    found = next((RunDir(folder) for folder in (context.run.path, main) if (folder / name).is_file()), None)
    return [] if found is None else found.file(name, Prediction).load()
