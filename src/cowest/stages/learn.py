"""Stages that train the weak model: ``sft``, and ``align`` with its choice of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import JsonValue

from cowest.assembly.context import Context
from cowest.collaboration.prompts import completion
from cowest.errors import ConfigError, StageError
from cowest.protocols import System
from cowest.recipe.config import LocalModelConfig
from cowest.run.store import derive_seed, fingerprint, fingerprint_model, write_atomic
from cowest.scoring.scorer import MetricScorer
from cowest.stages.base import Stage, fill, in_thread
from cowest.systems.collaboration import Collaboration
from cowest.systems.single import SingleCall
from cowest.types import Example, ModelRef, Prediction, PreferencePair, Record

if TYPE_CHECKING:
    from cowest.training.checkpoints import Checkpoint


class CheckpointScore(Record):
    """The mean score on validation queries of the collaboration (of the weak model alone, with ``pairs.signal: draft``)."""

    step: int
    model: ModelRef
    score: float | None
    n: int
    n_failed: int


class Selection(Record):
    """Every checkpoint's score (step 0 is the SFT model) and the step that was chosen."""

    metric: str
    checkpoints: list[CheckpointScore]
    chosen: int

    @property
    def model(self) -> ModelRef:
        """The aligned weak model."""
        return next(c.model for c in self.checkpoints if c.step == self.chosen)


def split_fingerprint(examples: Sequence[Example]) -> str:
    """Identifies a split's data."""
    return fingerprint(*(e.model_dump(mode="json") for e in examples))


def main_metric(context: Context) -> str:
    """The metric behind scores and gains."""
    return context.config.feedback.metric or context.task.metrics[0]


def training_queries(context: Context) -> Sequence[Example]:
    """The training queries that are drafted, refined and paired."""
    settings, train = context.config.draft, context.task.examples("train")
    if settings.queries is None:
        return train
    return train[-settings.queries :] if settings.held_out else train[: settings.queries]


def sft_examples(context: Context) -> Sequence[Example]:
    """The training examples of SFT: all, or those that ``draft.held_out`` leaves."""
    settings, train = context.config.draft, context.task.examples("train")
    return train[: -settings.queries] if settings.held_out and settings.queries else train


def trained(context: Context) -> LocalModelConfig:
    """The weak model's section, in a stage that trains it. Raises ConfigError for one that is served elsewhere."""
    weak = context.config.weak
    if not isinstance(weak, LocalModelConfig):
        raise ConfigError("weak.kind: openai: a model behind an endpoint cannot be trained here")
    return weak


def _sft_depends(context: Context) -> JsonValue:
    c, model = context.config, trained(context)
    weak: list[JsonValue] = [fingerprint_model(model.model), model.adapter]
    data = split_fingerprint(sft_examples(context))
    frames: list[JsonValue] = [m.content for m in context.frames.draft(context.task.examples("train")[0])]
    return [c.sft.model_dump(mode="json"), weak, data, c.draft.format, frames, c.seed]


async def _sft(context: Context) -> Mapping[str, int]:
    from cowest.training.sft import SftRow, train_sft

    config, rows, skipped = context.config, [], 0
    for example in sft_examples(context):
        text = completion(config.draft.format, context.task.target(example), example)
        if text is None:
            skipped += 1
            continue
        rows.append(SftRow(prompt=context.frames.draft(example), completion=text))
    if not rows:
        raise StageError(
            "sft: no training row has a rationale, which draft.format 'knowledge' needs; add them or change it"
        )
    base = ModelRef(base=trained(context).model, adapter=trained(context).adapter)
    out = context.path("sft")
    seed = derive_seed(config.seed, "sft")
    model = await in_thread(lambda reporter: train_sft(base, rows, config.sft, out, seed, reporter), context.reporter)
    write_atomic(out / "model_ref.json", model.model_dump_json(indent=2) + "\n")
    return {"rows": len(rows), "skipped_without_rationale": skipped}


def sft_model(context: Context) -> ModelRef:
    """The SFT weak model of a run, or the one that an endpoint serves."""
    if not isinstance(context.config.weak, LocalModelConfig):
        return ModelRef(base=context.config.weak.model)
    return ModelRef.model_validate_json(context.path("sft/model_ref.json").read_bytes())


def selection(context: Context) -> Selection:
    """The outcome of the align stage."""
    return Selection.model_validate_json(context.path("align/selection.json").read_bytes())


def _align_depends(context: Context) -> JsonValue:
    c = context.config
    validation = split_fingerprint(context.task.examples("validation"))
    sampling: list[JsonValue] = [c.evaluate.draft.model_dump(mode="json"), c.evaluate.answer.model_dump(mode="json")]
    selected_by = "weak" if c.pairs.signal == "draft" else "collaboration"
    return [c.align.model_dump(mode="json"), validation, sampling, main_metric(context), selected_by, c.seed]


async def _align(context: Context) -> Mapping[str, int]:
    from cowest.training.positives import train_positives
    from cowest.training.preference import train_preference

    pairs = context.run.file("pairs.jsonl", PreferencePair).load()
    if not pairs:
        raise StageError(
            "align: no preference pair was built, so there is nothing to learn from (counts: see manifest.json, stage pairs). "
            "More draft.samples, a higher draft.sampling.temperature or pairs.rule=ordered give more."
        )
    sft, out = sft_model(context), context.path("align")
    seed = derive_seed(context.config.seed, "align")
    settings = context.config.align
    train = train_positives if settings.objective == "positives" else train_preference
    trained: list[Checkpoint] = await in_thread(
        lambda reporter: train(sft, pairs, settings, out, seed, reporter), context.reporter
    )
    candidates = [(0, sft), *((c.step, c.model) for c in trained)]
    scores = [await _score(context, step, model) for step, model in candidates]
    best = max(scores, key=lambda s: (s.score if s.score is not None else -1.0, -s.step))
    chosen = Selection(metric=main_metric(context), checkpoints=scores, chosen=best.step)
    write_atomic(out / "selection.json", chosen.model_dump_json(indent=2) + "\n")
    return {"pairs": len(pairs), "checkpoints": len(trained), "chosen_step": best.step}


async def _score(context: Context, step: int, model: ModelRef) -> CheckpointScore:
    """Collaboration with this checkpoint on validation queries: what alignment is for, and where DPO over-trains first."""
    evaluate = context.config.evaluate
    queries = context.task.examples("validation")[: context.config.align.selection_queries]
    weak, name = context.models.weak(model), f"step-{step}"
    system: System = (
        SingleCall(weak, context.frames.draft, evaluate.draft, name)
        if context.config.pairs.signal == "draft"  # such a weak model is tuned to answer by itself, and so chosen
        else Collaboration(weak, context.models.strong(), context.frames, evaluate.draft, evaluate.answer, name)
    )
    file = context.run.file(f"align/validation/step-{step}.jsonl", Prediction)
    answers = await fill(
        f"choose: step {step}", context, file, queries, lambda e: e.id, lambda p: p.example_id, system.answer
    )
    await weak.aclose()
    scorer = MetricScorer(context.task, main_metric(context))
    scores = [await scorer.score(e, p.text) for e, p in zip(queries, answers, strict=True)]
    values = [s.value for s in scores if s.value is not None]
    return CheckpointScore(
        step=step,
        model=model,
        score=sum(values) / len(values) if values else None,
        n=len(values),
        n_failed=len(scores) - len(values),
    )


SFT = Stage("sft", 1, (), ("sft",), _sft_depends, _sft)
ALIGN = Stage("align", 1, ("sft", "pairs.jsonl"), ("align",), _align_depends, _align)
