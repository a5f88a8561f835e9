"""A row as a stage of its variant's run directory: it reads what was trained there, and writes one prediction a test query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from cowest.assembly.build import build_baseline_frames
from cowest.assembly.context import Context
from cowest.assembly.row_systems import Retrievers, build_system
from cowest.assembly.rows import Row, Which
from cowest.errors import StageError
from cowest.protocols import ChatModel
from cowest.recipe.config import LocalModelConfig, RunConfig
from cowest.run.store import JsonlFile
from cowest.stages.base import Stage, failures, fill
from cowest.stages.evaluate import test_queries
from cowest.stages.feedback import model_identity
from cowest.stages.learn import selection, sft_model, split_fingerprint
from cowest.types import Example, ModelRef, Prediction


def row_file(row: Row) -> str:
    """Where a row's predictions are, within its variant's run directory."""
    return f"rows/{row.name}.jsonl"


def row_stage(row: Row, config: RunConfig, retrievers: Retrievers) -> Stage:
    """The stage that evaluates ``row`` on the test queries."""
    trained = isinstance(config.weak, LocalModelConfig)
    reads = {"nothing": (), "sft": ("sft",), "sample": ("sft", "drafts.jsonl"), "align": ("align",)}[row.needs]
    reads = reads if trained else tuple(name for name in reads if name != "sft")

    async def evaluate(context: Context) -> Mapping[str, int]:
        return await _evaluate(context, row, retrievers)

    return Stage(f"row {row.name}", 1, reads, (row_file(row),), lambda c: _depends(c, row), evaluate)


def _depends(context: Context, row: Row) -> JsonValue:
    c, queries = context.config, test_queries(context)
    baseline, frames = build_baseline_frames(c, context.task), context.frames
    probes = (
        frames.draft(queries[0]), frames.solo(queries[0]), frames.refine(queries[0], "DRAFT"),
        baseline.zero_shot(queries[0]), baseline.self_refine(queries[0], "ANSWER"),
        baseline.predicted(queries[0], "LABEL", 0.5), baseline.choose(queries[0], ["A", "B"]),
    )  # fmt: skip
    found: list[JsonValue] = [
        row.name,
        [c.evaluate.draft.model_dump(mode="json"), c.evaluate.answer.model_dump(mode="json"), c.evaluate.queries],
        c.draft.sampling.model_dump(mode="json"),
        c.comparison.model_dump(mode="json", exclude={"rows", "baseline", "seeds", "axis", "grid"}),
        [split_fingerprint(queries), split_fingerprint(context.task.examples("train"))],
        [m.content for messages in probes for m in messages],
        c.seed,
    ]
    if row.uses != "weak":
        found.append(model_identity(c.strong))
    if row.uses != "strong" and row.needs == "nothing":
        found.append(model_identity(c.weak))
    return found


async def _evaluate(context: Context, row: Row, retrievers: Retrievers) -> Mapping[str, int]:
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
    return {
        "queries": len(queries),
        "failed": failures(made),
        "truncated": sum(p.truncated for p in made),
        "truncated_context": sum(p.truncated_context for p in made),
    }


def _failed(file: JsonlFile[Prediction], queries: Sequence[Example], row: str, why: str) -> list[Prediction]:
    made = [Prediction(example_id=e.id, system=row, text=None, error=f"no_logprobs: {why}") for e in queries]
    file.replace(made)
    return made


def _ref(context: Context, which: Which) -> ModelRef:
    weak = context.config.weak
    if which == "aligned":
        return selection(context).model
    if which == "sft" or not isinstance(weak, LocalModelConfig):
        return sft_model(context)
    return ModelRef(base=weak.model, adapter=weak.adapter)
