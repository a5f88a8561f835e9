"""The stage ``feedback``: it collects the collaborative feedback."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from cowest.assembly.context import Context
from cowest.collaboration.adaptive import Why
from cowest.collaboration.feedback import NOT_ASKED, feedback
from cowest.collaboration.refine import refine, solo
from cowest.protocols import ChatModel, Scorer
from cowest.recipe.outcome import settings_of
from cowest.run.freshness import Depends
from cowest.run.store import write_atomic
from cowest.scoring.once import Once
from cowest.stages import asks, depends
from cowest.stages.adaptive import TOLD, Asked, Lots, Spared, first_solos, in_lots, lot_of
from cowest.stages.base import IN_FLIGHT, Done, Filling, Stage, failures, filled
from cowest.stages.comparing import Judging, compared_feedback, judging_counts
from cowest.stages.draft_watch import DraftWatch, Limits
from cowest.stages.expecting import expect_of, expected_counts, expected_warnings, strong_model
from cowest.stages.in_turn import in_turn, turn_depends
from cowest.stages.learn import training_queries
from cowest.stages.rounds import Round
from cowest.stages.toll import prompt_price
from cowest.stages.verdicts import compared_files, judges_depend
from cowest.types import Draft, Example, Feedback, Prediction, Refinement, Usage


def _feedback_depends(context: Context, round_: Round) -> Depends:
    first, c, judge = context.task.examples("train")[0], context.config, context.models.sources.judge
    unused = ("alike", "calls") if c.feedback.adaptive == "off" else ()
    return (
        settings_of("feedback", c.feedback, leave_out=("judge", "compare", *unused))
        | (depends.value("feedback.judge", None) if judge is None else judge.identity("feedback.judge"))
        | judges_depend(context)
        | depends.questions("drafted", training_queries(context, round_))
        | depends.prompt("the collaboration", context.frames.refine(first, "DRAFT"))
        | depends.prompt("the strong model alone", context.frames.solo(first))
        | depends.seen(context, "strong")
        | context.strong.identity("strong")
        | depends.value("the metric", context.metric)
        | depends.value("seed", c.seed)
        | turn_depends(context)
        | Depends(
            {"what is asked": [str(name) for name in sorted(context.signal.asks)]},
            {"what is asked": ["refine", "solo"]},
        )
        | (Depends({}) if c.feedback.adaptive == "off" else _contrast_depends(context, round_))
    )


def _contrast_depends(context: Context, round_: Round) -> Depends:
    """Which drafts are asked for follows from what makes a pair, and with a limit from when the answers are looked at."""
    lot = depends.value("steps in a lot", lot_of(context, len(training_queries(context, round_))))
    names = tuple(f"pairs.{name}" for name in ("rule", "min_margin", "signal", "price_per_word", "price_per_usd"))
    price = Depends({"the price of a prompt": prompt_price(context)}, {"the price of a prompt": None})
    return (
        settings_of("pairs", context.config.pairs).only(*names)
        | price
        | (Depends({}) if context.config.feedback.calls is None else lot)
    )


async def _feedback(context: Context, round_: Round) -> Done:
    context = in_turn(context, round_)
    queries = {e.id: e for e in training_queries(context, round_)}
    drafts = [d for d in context.run.file(round_.file("drafts.jsonl"), Draft).load() if d.text is not None]
    watch = _watch(context, queries, drafts)
    scorer = Once(context.scorer()) if context.config.feedback.judge is not None else context.scorer()
    solos, refinements, spared = await _answers(context, round_, queries, drafts, watch, scorer)
    alone, saved = {s.example_id: s for s in solos}, spared.drafts
    refined = {r.draft_id: r for r in refinements}
    work = [
        (
            queries[d.example_id],
            d,
            refined.get(d.id) or unasked(d, saved.get(d.id)),
            alone.get(d.example_id) or unasked(d, saved.get(d.id)),
        )
        for d in drafts
    ]
    records, judging, told = await _judged(context, round_, scorer, work, saved)
    silent = 0 if judging is None else sum(note.failed for note in judging.judges)
    context.run.file(round_.file("feedback.jsonl"), Feedback).replace(records)
    for name in ("solo.jsonl", "refinements.jsonl"):
        context.path(round_.file(name)).touch()  # also where the signal asked for nothing
    calls = sum(r.usage.calls > 0 for r in refinements)
    solo_failed, refined_failed = failures(solos), failures(refinements)
    counts = {
        "solo": len(solos),
        "solo_failed": solo_failed,
        "refined": len(refinements),
        "refined_by_shared_draft": len(refinements) - calls - refined_failed,
        "refined_failed": refined_failed,
        "solo_cut_off": sum(s.truncated for s in solos),
        "refined_cut_off": sum(r.truncated for r in refinements),
        "scored": sum(context.signal.value(r) is not None for r in records),
        "unscored": sum(context.signal.value(r) is None and r.draft_id not in saved for r in records),
        **spared.counts,
    }
    expected = expected_counts(context, [*solos, *refinements])
    warnings = (*expected_warnings(context, expected), *told)
    for text in warnings:
        context.reporter.info(f"{context.label}feedback: warning: {text}")
    judged = {} if judging is None else judging_counts(judging)
    return Done(counts | expected | judged, solo_failed + refined_failed + silent, (*watch.warnings, *warnings))


def _watch(context: Context, queries: Mapping[str, Example], drafts: Sequence[Draft]) -> DraftWatch:
    settings, texts = context.config.feedback, {d.id: d.text for d in drafts}
    judged = (
        bool(settings.compare)
        or settings.judge is not None
        or settings.scorer is not None
        or context.objects.scorer is not None
    )

    def draft_of(answer: Refinement | Prediction) -> str | None:
        return None if isinstance(answer, Prediction) else texts.get(answer.draft_id or "")

    return DraftWatch(
        context,
        "refine drafts",
        settings.watch,
        "feedback.watch",
        Limits("feedback.sampling.max_tokens", settings.sampling.max_tokens, reads=not judged),
        {d.id: queries[d.example_id] for d in _firsts(drafts)},
        draft_of,
        None if "solo" in context.signal.asks else {},
        in_order=settings.adaptive == "off",
    )


def _firsts(drafts: Sequence[Draft]) -> list[Draft]:
    """The first draft of each query."""
    by_query: dict[str, Draft] = {}
    for item in drafts:
        by_query.setdefault(item.example_id, item)
    return list(by_query.values())


def unasked(draft: Draft, why: Why | None = None) -> Refinement:
    """In the place of an answer that the signal, or the query, has no need of."""
    told = "the signal needs no such call" if why is None else TOLD[why]
    return Refinement(example_id=draft.example_id, draft_id=draft.id, text=None, error=f"{NOT_ASKED}: {told}")


async def _judged(
    context: Context,
    round_: Round,
    scorer: Scorer,
    work: Sequence[tuple[Example, Draft, Refinement, Refinement]],
    saved: Mapping[str, Why],
) -> tuple[Sequence[Feedback], Judging | None, tuple[str, ...]]:
    """The scores of all, by comparison where the recipe has judges for that; with what these came to, and warnings."""
    if not context.config.feedback.compare:
        return await _scored(context, scorer, work, saved), None, ()
    records, judging, warnings = await compared_feedback(context, round_.file("compared"), work)
    write_atomic(context.path(round_.file("judging.json")), judging.model_dump_json(indent=2) + "\n")
    return records, judging, warnings


async def _scored(
    context: Context,
    scorer: Scorer,
    work: Sequence[tuple[Example, Draft, Refinement, Refinement]],
    saved: Mapping[str, Why],
) -> Sequence[Feedback]:
    draft_tokens, answer_tokens = context.config.draft.sampling.max_tokens, context.config.feedback.sampling.max_tokens
    if context.config.feedback.judge is None:
        return [await feedback(scorer, *item, draft_tokens=draft_tokens, answer_tokens=answer_tokens) for item in work]
    context.reporter.start(f"{context.label}judge answers", len(work))
    limit = asyncio.Semaphore(IN_FLIGHT)

    async def one(item: tuple[Example, Draft, Refinement, Refinement]) -> Feedback:
        async with limit:
            alone = item[1].id not in saved  # a draft that is not asked for is not judged either
            record = await feedback(
                scorer, *item, draft_tokens=draft_tokens, answer_tokens=answer_tokens, judge_draft=alone
            )
        context.reporter.advance()
        return record

    running = [asyncio.ensure_future(one(item)) for item in work]
    try:
        return await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()
        context.reporter.finish()


async def _answers(
    context: Context,
    round_: Round,
    queries: Mapping[str, Example],
    drafts: Sequence[Draft],
    watch: DraftWatch,
    scorer: Scorer,
) -> tuple[list[Refinement], list[Refinement], Spared]:
    """The strong model's answers alone and with each draft, as far as the signal needs them. ``watch`` looks at them as they come.

    Beside them what ``feedback.adaptive`` did not ask for.

    Query by query: what the requests of a query share is then read once, by a model in this process, by a server that keeps
    prefixes, and, at a discount, by a provider that caches prompts (for those that come after the first answer began). A batch
    takes a day: there everything of one kind is asked together, and looked at when it is back.
    """
    strong = strong_model(context)
    alone = _solos(context, round_, strong, queries, watch) if "solo" in context.signal.asks else None
    refined = None
    if "refine" in context.signal.asks:
        refined = _refinements(context, round_, strong, queries, drafts, alone, watch)
    if refined is not None and context.config.feedback.adaptive != "off":
        lots = Asked(alone, refined, watch, _at_once(context))
        return await in_lots(context, round_, scorer, queries, drafts, lots)
    asked = [filling for filling in (alone, refined) if filling is not None]
    batch = context.config.feedback.mode == "batch"
    for together in [[filling] for filling in asked] if batch or len(asked) < 2 else [asked]:
        label = "strong answers" if len(together) > 1 else together[0].label
        await filled(label, context, together, _at_once(context))
    return (alone.records() if alone is not None else []), (refined.records() if refined is not None else []), Spared()


def _filling(context: Context) -> type[Filling[Any, Any]]:
    return Filling if context.config.feedback.adaptive == "off" else Lots


def _at_once(context: Context) -> int:
    """A batch takes what comes together, so that all has to."""
    batch = context.strong.batch_requests
    return batch if context.config.feedback.mode == "batch" and batch is not None else IN_FLIGHT


def _solos(
    context: Context, round_: Round, strong: ChatModel, queries: Mapping[str, Example], watch: DraftWatch
) -> Filling[Example, Refinement]:
    """The strong model alone, once a query."""
    places = {id: n for n, id in enumerate(queries)}
    known = {r.example_id: r for name in first_solos(round_) for r in context.run.file(name, Refinement).load()}

    async def make(example: Example) -> Refinement:
        if (there := known.get(example.id)) is not None and there.error is None:
            return there.model_copy(update={"usage": Usage(), "latency_s": 0.0})
        asked = asks.solo_requests(context, example)
        return await solo(strong, context.frames, example, asked[0].sampling, expect_of(context, example, asked))

    return _filling(context)(
        "strong alone",
        context,
        context.run.file(round_.file("solo.jsonl"), Refinement),
        list(queries.values()),
        lambda e: e.id,
        lambda r: r.example_id,
        make,
        "feedback.sampling.max_tokens",
        looking=watch,
        rank=lambda e: places[e.id],
    )


def _refinements(
    context: Context,
    round_: Round,
    strong: ChatModel,
    queries: Mapping[str, Example],
    drafts: Sequence[Draft],
    alone: Filling[Example, Refinement] | None,
    watch: DraftWatch,
) -> Filling[Draft, Refinement]:
    """Every draft refined; equal drafts of a query share one call, since its request would be the same.

    ``alone``: where the same model answers alone, which shows that it is not out of order.
    """
    file = context.run.file(round_.file("refinements.jsonl"), Refinement)
    places, texts = {id: n for n, id in enumerate(queries)}, {d.id: asks.draft_key(d) for d in drafts}
    answers = dict[str, asyncio.Future[Refinement]]()
    for record in file.load():
        if record.error is None and record.draft_id in texts:
            answers[texts[record.draft_id]] = known = asyncio.get_running_loop().create_future()
            known.set_result(record)

    async def make(item: Draft) -> Refinement:
        key, example = texts[item.id], queries[item.example_id]
        if key in answers:
            done = await asyncio.shield(answers[key])
            return done.model_copy(update={"draft_id": item.id, "usage": Usage(), "latency_s": 0.0})
        answer = answers[key] = asyncio.get_running_loop().create_future()
        asked = asks.refine_requests(context, example, item)
        try:  # here and in no task of its own, in which it would come behind all that begin with it
            done = await refine(
                strong, context.frames, example, item, asked[0].sampling, expect_of(context, example, asked)
            )
        except BaseException:
            answer.cancel()
            raise
        answer.set_result(done)
        return done

    return _filling(context)(
        "refine drafts",
        context,
        file,
        drafts,
        lambda d: d.id,
        lambda r: r.draft_id or "",
        make,
        "feedback.sampling.max_tokens",
        lambda: alone is not None and alone.answered,
        watch,
        lambda d: places[d.example_id],
    )


def feedback_stage(round_: Round, judges: int = 0) -> Stage:
    """Every draft refined, every query answered alone, and the scores of both; ``judges``: how many compare the two."""

    def follows_from(context: Context) -> Depends:
        return _feedback_depends(context, round_)

    async def execute(context: Context) -> Done:
        return await _feedback(context, round_)

    reads = (round_.file("drafts.jsonl"), *round_.opened, *first_solos(round_))
    writes = tuple(round_.file(name) for name in ("solo.jsonl", "refinements.jsonl", "feedback.jsonl"))
    if judges:
        writes += (*compared_files(round_.file("compared"), judges), round_.file("judging.json"))
    return Stage(round_.stage("feedback"), 1, reads, writes, follows_from, execute)
