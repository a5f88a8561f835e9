"""A row as a stage of its variant's run directory: it reads what was trained there, and writes one prediction a test query."""

from __future__ import annotations

from cowest.assembly.context import Context
from cowest.assembly.systems import Retrievers
from cowest.recipe.config import RunConfig
from cowest.run.freshness import Depends
from cowest.stages import depends
from cowest.stages.base import Done, Stage, failures
from cowest.stages.evaluate import answer_queries, not_aligned, system_depends
from cowest.systems.spec import SystemSpec
from cowest.types import Prediction


def row_file(row: SystemSpec) -> str:
    """Where a row's predictions are, within its variant's run directory."""
    return f"rows/{row.name}.jsonl"


def row_stage(row: SystemSpec, config: RunConfig, retrievers: Retrievers) -> Stage:
    """The stage that evaluates ``row`` on the test queries."""
    trained = config.weak.trainable
    reads = {"nothing": (), "sft": ("sft",), "sample": ("sft", "drafts.jsonl"), "align": ("align",)}[row.needs]
    reads = reads if trained else tuple(name for name in reads if name != "sft")

    def follows_from(context: Context) -> Depends:
        return depends.value("row", row.name) | system_depends(context, row)

    async def evaluate(context: Context) -> Done:
        why = not_aligned(context, row)
        if why is not None:
            context.reporter.info(f"{context.label}warning: no row {row.name}: {why}")
            context.run.file(row_file(row), Prediction).replace([])
            return Done({"queries": 0})
        made = await answer_queries(context, row, context.run.file(row_file(row), Prediction), row.name, retrievers)
        failed = failures(made)
        counts = {
            "queries": len(made),
            "failed": failed,
            "truncated": sum(p.truncated for p in made),
            "truncated_context": sum(p.truncated_context for p in made),
        }
        return Done(counts, failed)

    return Stage(f"row {row.name}", 1, reads, (row_file(row),), follows_from, evaluate)
