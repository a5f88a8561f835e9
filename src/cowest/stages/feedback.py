"""Stages that collect the collaborative feedback: ``sample``, ``feedback`` and ``pairs``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from cowest.collaboration.draft import draft, draft_id
from cowest.collaboration.feedback import feedback
from cowest.collaboration.preference import build_pairs
from cowest.collaboration.refine import refine, solo
from cowest.config import LocalModelConfig
from cowest.scoring.scorer import MetricScorer
from cowest.stages.base import Context, Stage, failures, fill
from cowest.stages.learn import main_metric, sft_model, split_fingerprint, training_queries
from cowest.store import derive_seed, fingerprint, fingerprint_model
from cowest.types import Draft, Example, Feedback, PreferencePair, Refinement, Usage


def _sample_depends(context: Context) -> JsonValue:
    return [
        context.config.draft.model_dump(mode="json"),
        split_fingerprint(training_queries(context)),
        context.config.seed,
    ]


async def _sample(context: Context) -> Mapping[str, int]:
    settings, weak = context.config.draft, context.open_weak(sft_model(context))
    items = [(e, k) for e in training_queries(context) for k in range(settings.samples)]

    async def make(item: tuple[Example, int]) -> Draft:
        example, index = item
        seed = derive_seed(context.config.seed, "draft", example.id, index)
        return await draft(weak, context.frames, example, index, settings.sampling.model_copy(update={"seed": seed}))

    file = context.run.file("drafts.jsonl", Draft)
    drafts = await fill("sample drafts", context, file, items, lambda i: draft_id(*i), lambda d: d.id, make)
    await weak.aclose()
    return {"drafts": len(drafts), "failed": failures(drafts)}


def strong_identity(context: Context) -> JsonValue:
    """What the strong model's answers depend on: not its address, concurrency or device."""
    strong = context.config.strong
    if isinstance(strong, LocalModelConfig):
        return [strong.kind, fingerprint_model(strong.model), strong.adapter]
    return strong.model_dump(
        mode="json", exclude={"concurrency", "timeout_s", "max_attempts", "api_key_env", "base_url"}
    )


def _feedback_depends(context: Context) -> JsonValue:
    first = training_queries(context)[0]
    frames: list[JsonValue] = [m.content for m in (*context.frames.refine(first, "DRAFT"), *context.frames.solo(first))]
    settings = context.config.feedback.model_dump(mode="json")
    return [settings, frames, strong_identity(context), main_metric(context), context.config.seed]


async def _feedback(context: Context) -> Mapping[str, int]:
    queries = {e.id: e for e in training_queries(context)}
    drafts = [d for d in context.run.file("drafts.jsonl", Draft).load() if d.text is not None]
    solos = await _solos(context, list(queries.values()))
    refinements = await _refinements(context, queries, drafts)
    scorer = MetricScorer(context.task, main_metric(context))
    alone = {s.example_id: s for s in solos}
    records = [
        await feedback(scorer, queries[d.example_id], d, r, alone[d.example_id])
        for d, r in zip(drafts, refinements, strict=True)
    ]
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


async def _solos(context: Context, queries: Sequence[Example]) -> list[Refinement]:
    strong, sampling = context.open_strong(), context.config.feedback.sampling

    async def make(example: Example) -> Refinement:
        seed = derive_seed(context.config.seed, "solo", example.id)
        return await solo(strong, context.frames, example, sampling.model_copy(update={"seed": seed}))

    file = context.run.file("solo.jsonl", Refinement)
    return await fill("strong alone", context, file, queries, lambda e: e.id, lambda r: r.example_id, make)


async def _refinements(context: Context, queries: Mapping[str, Example], drafts: Sequence[Draft]) -> list[Refinement]:
    """Refine every draft; equal drafts of a query share one call, since its request would be the same."""
    strong, sampling = context.open_strong(), context.config.feedback.sampling
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
        return await fill("refine drafts", context, file, drafts, lambda d: d.id, lambda r: r.draft_id or "", make)
    finally:
        for call in calls.values():
            call.cancel()


def _pairs_depends(context: Context) -> JsonValue:
    return context.config.pairs.model_dump(mode="json")


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
    )
    context.run.file("pairs.jsonl", PreferencePair).replace(made.pairs)
    return made.counts


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
