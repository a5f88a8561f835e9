"""Stages that collect the collaborative feedback: ``sample``, ``feedback`` and ``pairs``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from cowest.assembly.context import Context
from cowest.collaboration.draft import draft, draft_id, drafts
from cowest.collaboration.feedback import feedback
from cowest.collaboration.preference import build_pairs
from cowest.collaboration.refine import refine, solo
from cowest.protocols import ManyChatModel, Scorer
from cowest.recipe.config import LocalModelConfig, ModelConfig, OpenAIModelConfig
from cowest.run.store import JsonlFile, derive_seed, fingerprint, fingerprint_model
from cowest.scoring.judge import JudgeScorer
from cowest.scoring.scorer import MetricScorer
from cowest.stages.base import IN_FLIGHT, Stage, failures, fill
from cowest.stages.learn import main_metric, sft_model, split_fingerprint, training_queries
from cowest.tasks.collected import pairs_file
from cowest.types import Draft, Example, Feedback, PreferencePair, Refinement, Sampling, Score, Usage


def _sample_depends(context: Context) -> JsonValue:
    return [
        context.config.draft.model_dump(mode="json"),
        split_fingerprint(training_queries(context)),
        context.config.seed,
    ]


async def _sample(context: Context) -> Mapping[str, int]:
    settings, weak = context.config.draft, context.models.weak(sft_model(context))
    items = [(e, k) for e in training_queries(context) for k in range(settings.samples)]
    shared: dict[str, asyncio.Task[list[Draft]]] = {}

    def seeded(*parts: str | int) -> Sampling:
        return settings.sampling.model_copy(update={"seed": derive_seed(context.config.seed, "draft", *parts)})

    async def make(item: tuple[Example, int]) -> Draft:
        example, index = item
        if not isinstance(weak, ManyChatModel):
            return await draft(weak, context.frames, example, index, seeded(example.id, index))
        if example.id not in shared:
            together = drafts(weak, context.frames, example, settings.samples, seeded(example.id))
            shared[example.id] = asyncio.ensure_future(together)
        return (await shared[example.id])[index]

    file = context.run.file("drafts.jsonl", Draft)
    try:
        made = await fill("sample drafts", context, file, items, lambda i: draft_id(*i), lambda d: d.id, make)
    finally:
        for call in shared.values():
            call.cancel()
        await weak.aclose()
    return {"drafts": len(made), "failed": failures(made)}


def strong_identity(context: Context) -> JsonValue:
    """What the strong model's answers depend on."""
    return model_identity(context.config.strong)


def model_identity(strong: ModelConfig) -> JsonValue:
    """What a model's answers depend on: not its address, concurrency, price or device."""
    if isinstance(strong, LocalModelConfig):
        return [strong.kind, fingerprint_model(strong.model), strong.adapter]
    if isinstance(strong, OpenAIModelConfig):
        return [strong.kind, strong.model, strong.extra]
    return strong.model_dump(mode="json")


def _feedback_depends(context: Context) -> JsonValue:
    first = training_queries(context)[0]
    frames: list[JsonValue] = [m.content for m in (*context.frames.refine(first, "DRAFT"), *context.frames.solo(first))]
    settings = context.config.feedback.model_dump(mode="json", exclude={"mode", "judge"})
    judge = context.config.feedback.judge
    settings["judge"] = None if judge is None else model_identity(judge)
    return [settings, frames, strong_identity(context), main_metric(context), context.config.seed]


async def _feedback(context: Context) -> Mapping[str, int]:
    queries = {e.id: e for e in training_queries(context)}
    drafts = [d for d in context.run.file("drafts.jsonl", Draft).load() if d.text is not None]
    solos = await _solos(context, list(queries.values()))
    refinements = await _refinements(context, queries, drafts)
    alone = {s.example_id: s for s in solos}
    work = [(queries[d.example_id], d, r, alone[d.example_id]) for d, r in zip(drafts, refinements, strict=True)]
    records = await _scored(context, work)
    context.run.file("feedback.jsonl", Feedback).replace(records)
    calls = sum(r.usage.calls for r in refinements)
    return {
        "solo": len(solos),
        "solo_failed": failures(solos),
        "refined": len(refinements),
        "refined_by_shared_draft": len(refinements) - calls - failures(refinements),
        "refined_failed": failures(refinements),
        "scored": sum(r.gain is not None for r in records),
        "unscored": sum(r.gain is None for r in records),
    }


class _Once:
    """A scorer that judges equal answers to a query once: the strong model's own is compared with every draft's."""

    def __init__(self, inner: Scorer) -> None:
        self._inner, self._known = inner, dict[tuple[str, str | None], asyncio.Task[Score]]()

    async def score(self, example: Example, text: str | None) -> Score:
        key = (example.id, text)
        if key not in self._known:
            self._known[key] = asyncio.ensure_future(self._inner.score(example, text))
        return await self._known[key]


async def _scored(
    context: Context, work: Sequence[tuple[Example, Draft, Refinement, Refinement]]
) -> Sequence[Feedback]:
    if context.config.feedback.judge is None:
        scorer = MetricScorer(context.task, main_metric(context))
        return [await feedback(scorer, *item) for item in work]
    judge = _Once(JudgeScorer(context.models.judge()))
    context.reporter.start(f"{context.label}judge answers", len(work))
    limit = asyncio.Semaphore(IN_FLIGHT)

    async def one(item: tuple[Example, Draft, Refinement, Refinement]) -> Feedback:
        async with limit:
            record = await feedback(judge, *item)
        context.reporter.advance()
        return record

    running = [asyncio.ensure_future(one(item)) for item in work]
    try:
        return await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()
        context.reporter.finish()


async def _solos(context: Context, queries: Sequence[Example]) -> list[Refinement]:
    strong, sampling = context.models.strong(context.config.feedback.mode), context.config.feedback.sampling

    async def make(example: Example) -> Refinement:
        seed = derive_seed(context.config.seed, "solo", example.id)
        return await solo(strong, context.frames, example, sampling.model_copy(update={"seed": seed}))

    file = context.run.file("solo.jsonl", Refinement)
    return await fill(
        "strong alone", context, file, queries, lambda e: e.id, lambda r: r.example_id, make, _at_once(context)
    )


def _at_once(context: Context) -> int:
    """A batch takes what comes together, so that all has to."""
    strong = context.config.strong
    if context.config.feedback.mode == "batch" and isinstance(strong, OpenAIModelConfig):
        return strong.batch.max_requests
    return IN_FLIGHT


async def _refinements(context: Context, queries: Mapping[str, Example], drafts: Sequence[Draft]) -> list[Refinement]:
    """Refine every draft; equal drafts of a query share one call, since its request would be the same."""
    strong, sampling = context.models.strong(context.config.feedback.mode), context.config.feedback.sampling
    calls: dict[str, asyncio.Task[Refinement]] = {}
    file = context.run.file("refinements.jsonl", Refinement)
    texts = {d.id: fingerprint(d.example_id, d.text) for d in drafts}
    known = {texts[r.draft_id]: r for r in file.load() if r.error is None and r.draft_id in texts}

    async def ask(item: Draft) -> Refinement:
        seed = derive_seed(context.config.seed, "refine", texts[item.id])
        settings = sampling.model_copy(update={"seed": seed})
        return await refine(strong, context.frames, queries[item.example_id], item, settings)

    async def make(item: Draft) -> Refinement:
        key = texts[item.id]
        if key in known:
            done, first = known[key], False
        else:
            first = key not in calls
            if first:
                calls[key] = asyncio.ensure_future(ask(item))
            done = await calls[key]
        if first:
            return done
        return done.model_copy(update={"draft_id": item.id, "usage": Usage(), "latency_s": 0.0})

    try:
        return await fill(
            "refine drafts", context, file, drafts, lambda d: d.id, lambda r: r.draft_id or "", make, _at_once(context)
        )
    finally:
        for call in calls.values():
            call.cancel()


def _pairs_depends(context: Context) -> JsonValue:
    settings, collected = context.config.pairs, _collected(context)
    found: list[JsonValue] = [settings.model_dump(mode="json"), context.config.seed if settings.limit else None]
    return [*found, fingerprint(*(pair.model_dump(mode="json") for pair in collected))] if collected else found


def _collected(context: Context) -> list[PreferencePair]:
    """The preference pairs of ``cowest collect``, where the recipe names a file of it."""
    task = context.config.task
    if task is None or task.collected is None:
        return []
    return JsonlFile(pairs_file(task.collected), PreferencePair).load()


async def _pairs(context: Context) -> Mapping[str, int]:
    settings = context.config.pairs
    made = build_pairs(
        training_queries(context),
        context.run.file("drafts.jsonl", Draft).load(),
        context.run.file("feedback.jsonl", Feedback).load(),
        context.frames,
        rule=settings.rule,
        min_margin=settings.min_margin,
        max_per_query=settings.max_per_query,
        limit=settings.limit,
        signal=settings.signal,
        seed=derive_seed(context.config.seed, "pairs"),
    )
    collected = _collected(context)
    context.run.file("pairs.jsonl", PreferencePair).replace([*made.pairs, *collected])
    if not collected:
        return made.counts
    return {**made.counts, "pairs": len(made.pairs) + len(collected), "pairs_collected": len(collected)}


SAMPLE = Stage("sample", 1, ("sft",), ("drafts.jsonl",), _sample_depends, _sample)
FEEDBACK = Stage(
    "feedback",
    1,
    ("drafts.jsonl",),
    ("solo.jsonl", "refinements.jsonl", "feedback.jsonl"),
    _feedback_depends,
    _feedback,
)
PAIRS = Stage("pairs", 1, ("drafts.jsonl", "feedback.jsonl"), ("pairs.jsonl",), _pairs_depends, _pairs)
