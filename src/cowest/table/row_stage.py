"""A row as a stage of its variant's run directory: it reads what was trained there, and writes one prediction a test query."""

from __future__ import annotations

from collections.abc import Sequence

from cowest.assembly.build import build_baseline_frames
from cowest.assembly.context import Context
from cowest.assembly.row_systems import Retrievers, build_system
from cowest.assembly.rows import Row, Which
from cowest.errors import StageError
from cowest.protocols import BaselineFrames, ChatModel
from cowest.recipe.config import LocalModelConfig, RunConfig
from cowest.recipe.outcome import settings_of
from cowest.run.freshness import Depends
from cowest.run.store import JsonlFile
from cowest.stages import depends
from cowest.stages.base import Done, Stage, failures, fill
from cowest.stages.evaluate import test_queries
from cowest.stages.learn import selection, sft_model
from cowest.types import Example, ModelRef, Prediction


def row_file(row: Row) -> str:
    """Where a row's predictions are, within its variant's run directory."""
    return f"rows/{row.name}.jsonl"


def row_stage(row: Row, config: RunConfig, retrievers: Retrievers) -> Stage:
    """The stage that evaluates ``row`` on the test queries."""
    trained = isinstance(config.weak, LocalModelConfig)
    reads = {"nothing": (), "sft": ("sft",), "sample": ("sft", "drafts.jsonl"), "align": ("align",)}[row.needs]
    reads = reads if trained else tuple(name for name in reads if name != "sft")

    async def evaluate(context: Context) -> Done:
        return await _evaluate(context, row, retrievers)

    return Stage(f"row {row.name}", 1, reads, (row_file(row),), lambda c: _depends(c, row), evaluate)


def _depends(context: Context, row: Row) -> Depends:
    c, queries, baseline, frames = context.config, test_queries(context), _baseline(context), context.frames
    first = queries[0]
    found = (
        depends.value("row", row.name)
        | settings_of("evaluate", c.evaluate, leave_out=("systems",))
        | settings_of("draft.sampling", c.draft.sampling)
        | settings_of("table", c.comparison, leave_out=("rows", "baseline", "seeds", "axis", "grid"))
        | depends.questions("test", queries)
        | depends.questions("training", context.task.examples("train"))
        | depends.prompt("a draft", frames.draft(first))
        | depends.prompt("the strong model alone", frames.solo(first))
        | depends.prompt("the collaboration", frames.refine(first, "DRAFT"))
        | depends.prompt(
            "the baselines",
            baseline.zero_shot(first),
            baseline.self_refine(first, "ANSWER"),
            baseline.predicted(first, "LABEL", 0.5),
            baseline.choose(first, ["A", "B"]),
        )
        | depends.value("seed", c.seed)
    )
    if row.uses != "weak":
        found |= context.strong.identity("strong")
    if row.uses != "strong" and row.needs == "nothing":
        found |= context.weak.identity("weak")
    return found


def _baseline(context: Context) -> BaselineFrames:
    return build_baseline_frames(context.config, context.task)


async def _evaluate(context: Context, row: Row, retrievers: Retrievers) -> Done:
    opened: list[ChatModel] = []

    def weak(which: Which) -> ChatModel:
        model = context.models.weak(_ref(context, which))
        opened.append(model)
        return model

    system = build_system(context, row, context.models.strong, weak, lambda kind: retrievers.of(kind, context))
    queries, file = test_queries(context), context.run.file(row_file(row), Prediction)
    try:
        made = await fill(row.name, context, file, queries, lambda e: e.id, lambda p: p.example_id, system.answer)
    except StageError as error:
        # One row that a model cannot serve does not take the others' away: it stays in the table, as failed.
        if "no_logprobs" not in str(error):
            raise
        context.reporter.info(f"{context.label}{row.name}: given up: {error}")
        made = _failed(file, queries, row.name, str(error))
    finally:
        for model in opened:
            await model.aclose()
    failed = failures(made)
    counts = {
        "queries": len(queries),
        "failed": failed,
        "truncated": sum(p.truncated for p in made),
        "truncated_context": sum(p.truncated_context for p in made),
    }
    return Done(counts, failed)


def _failed(file: JsonlFile[Prediction], queries: Sequence[Example], row: str, why: str) -> list[Prediction]:
    made = [Prediction(example_id=e.id, system=row, text=None, error=f"no_logprobs: {why}") for e in queries]
    file.replace(made)
    return made


def _ref(context: Context, which: Which) -> ModelRef:
    if which == "aligned":
        return context.located(selection(context).model)
    return sft_model(context) if which == "sft" and context.weak.trainable else context.weak.base()
