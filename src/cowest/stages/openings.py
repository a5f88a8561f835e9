"""The stage ``openings``: what comes before the weak model's turn (``draft.turn``), once a query.

Before advice the strong model's attempt, before a revision the weak model's draft and the critique of it, before a reply the strong
model's question. They stay as they are: the drafts of the stages after it are several of the weak model's turns behind the same
opening, and what is learned is which of them leaves the strong model with the better answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from cowest.assembly.build import build_interaction_frames
from cowest.assembly.context import Context
from cowest.collaboration.calls import CallFailed, Tally
from cowest.collaboration.draft import draft
from cowest.protocols import ChatModel, InteractionFrames
from cowest.recipe.outcome import settings_of
from cowest.run.freshness import Depends
from cowest.stages import asks, depends
from cowest.stages.base import IN_FLIGHT, Done, Stage, failures, fill
from cowest.stages.in_turn import Opening, turn_depends
from cowest.stages.learn import training_queries
from cowest.stages.rounds import OPENINGS, Round
from cowest.systems.interactions.advise import attempted
from cowest.systems.interactions.consult import first_question
from cowest.systems.interactions.critique import criticised
from cowest.types import Draft, Example

FIRST_DRAFTS = "first_drafts.jsonl"


def _depends(context: Context, round_: Round) -> Depends:
    c = context.config
    found = (
        turn_depends(context)
        | settings_of("feedback.sampling", c.feedback.sampling)
        | depends.questions("drafted", training_queries(context, round_))
        | depends.seen(context, "weak", "strong")
        | context.strong.identity("strong")
        | depends.value("seed", c.seed)
    )
    if c.draft.turn != "revise":
        return found
    found |= settings_of("evaluate.draft", c.evaluate.draft)
    if context.weak.trainable:
        return found | settings_of("weak", c.weak, leave_out=("model", "adapter"))
    return found | context.weak.identity("weak")


Make = Callable[[Example, Tally], Awaitable[tuple[str, ...]]]


async def _openings(context: Context, round_: Round) -> Done:
    queries, kind = training_queries(context, round_), context.config.draft.turn
    drafts = await _first_drafts(context, round_, queries) if kind == "revise" else {}
    strong = context.models.strong(context.config.feedback.mode)
    turns = build_interaction_frames(context.config, context.task, context.objects.format)
    make = _making(context, strong, turns, drafts)
    batch = context.strong.batch_requests if context.config.feedback.mode == "batch" else None

    async def opening(example: Example) -> Opening:
        tally = Tally()
        texts, error, cut = tuple[str, ...](), None, False
        try:
            texts = await make(example, tally)
        except CallFailed as failed:
            error, cut = failed.error, failed.cut
        return Opening(
            example_id=example.id,
            texts=texts,
            truncated=cut,
            truncated_context=tally.truncated_context,
            error=error,
            usage=tally.usage,
            latency_s=tally.latency_s,
        )

    made = await fill(
        f"before {_SPOKEN[kind]}",
        context,
        context.run.file(round_.file(OPENINGS), Opening),
        [e for e in queries if kind != "revise" or e.id in drafts],
        lambda e: e.id,
        lambda o: o.example_id,
        opening,
        at_once=batch or IN_FLIGHT,
        limit="feedback.sampling.max_tokens",
    )
    failed = failures(made) + len(queries) - len(made)
    there = sum(bool(o.texts) for o in made)
    without = len(queries) - there
    if without:
        context.reporter.info(
            f"{context.label}openings: {without} of {len(queries)} queries do not come to {_SPOKEN[kind]}"
            + (f" (the strong model asks nothing at {without - failed})" if kind == "reply" else "")
            + ": nothing is drawn for them"
        )
    counts = {"openings": there, "failed": failed, "without": without - failed}
    return Done(counts | {"cut_off": sum(o.truncated for o in made)}, failed)


_SPOKEN: Mapping[str, str] = {"revise": "a revision", "advise": "advice", "reply": "a reply"}


def _making(context: Context, strong: ChatModel, turns: InteractionFrames, drafts: Mapping[str, str]) -> Make:
    """How a query's opening is made. Each call has the seed of the strong model's answer alone, whose request an attempt is."""
    kind, questions = context.config.draft.turn, context.config.comparison.questions
    window = context.strong.window(context.config.feedback.sampling.max_tokens)

    async def make(example: Example, tally: Tally) -> tuple[str, ...]:
        sampling = asks.solo_requests(context, example)[0].sampling
        if kind == "advise":
            return await attempted(tally, strong, context.frames, example, sampling)
        if kind == "revise":
            return await criticised(tally, strong, turns, example, drafts[example.id], sampling, window)
        return await first_question(tally, strong, turns, example, sampling, questions)

    return make


async def _first_drafts(context: Context, round_: Round, queries: Sequence[Example]) -> Mapping[str, str]:
    """The drafts that are criticised, by the query's id: one of each, decoded as in evaluation."""
    weak, sampling = context.models.weak(round_.policy.weights(context)), context.config.evaluate.draft
    try:
        made = await fill(
            "first drafts",
            context,
            context.run.file(round_.file(FIRST_DRAFTS), Draft),
            queries,
            lambda e: e.id,
            lambda d: d.example_id,
            lambda e: draft(weak, context.frames, e, 0, sampling),
            limit="evaluate.draft.max_tokens",
        )
    finally:
        await weak.aclose()
    return {d.example_id: d.text for d in made if d.text is not None}


def openings_stage(round_: Round) -> tuple[Stage, ...]:
    """What comes before the weak model's turn in a round; no stage where that is a draft, which nothing comes before."""
    if round_.turn == "draft":
        return ()

    def follows_from(context: Context) -> Depends:
        return _depends(context, round_)

    async def execute(context: Context) -> Done:
        return await _openings(context, round_)

    drafts = round_.turn == "revise"
    reads = round_.policy.reads if drafts else ()
    writes = (*round_.opened, *((round_.file(FIRST_DRAFTS),) if drafts else ()))
    return (Stage(round_.stage("openings"), 1, reads, writes, follows_from, execute),)
