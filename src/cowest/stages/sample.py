"""The stage ``sample``: K drafts of each training query, which are to differ."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from cowest.assembly.context import Context
from cowest.collaboration.calls import many_at_once
from cowest.collaboration.draft import alike, draft, draft_id, drafts, unlike
from cowest.protocols import ChatModel
from cowest.recipe.outcome import settings_of
from cowest.run.freshness import Depends
from cowest.stages import asks, depends
from cowest.stages.base import Done, Stage, failures, fill
from cowest.stages.in_turn import in_turn, turn_depends
from cowest.stages.learn import training_queries
from cowest.stages.rounds import Round
from cowest.types import Draft, Example

Item = tuple[Example, int]
"""A query and the index of its draft."""


def _sample_depends(context: Context, round_: Round) -> Depends:
    c = context.config
    found = (
        settings_of("draft", c.draft)
        | depends.questions("drafted", training_queries(context, round_))
        | depends.prompt("a draft", *(frames.draft(context.task.examples("train")[0]) for _, frames in context.ways))
        | depends.seen(context, "weak")
        | depends.value("seed", c.seed)
        | turn_depends(context)
    )
    if context.weak.trainable:
        return found | settings_of("weak", c.weak, leave_out=("model", "adapter"))  # the weights are the policy's
    return found | context.weak.identity("weak")


class _Drawing:
    """How a round's drafts are made. What is drawn for a whole query is begun by the first that asks for one of its drafts.

    ``there``: the drafts that a stopped run has left, by id, which stay as they are.
    """

    def __init__(self, context: Context, round_: Round, weak: ChatModel, there: Mapping[str, Draft]) -> None:
        self._context, self._round, self._weak, self._there = context, round_, weak, there
        self._settings, self._many, self._ways = context.config.draft, many_at_once(weak), context.ways
        self._groups, self._queries = dict[str, asyncio.Future[list[Draft]]](), dict[str, asyncio.Future[list[Draft]]]()

    async def make(self, item: Item) -> Draft:
        """One draft."""
        example, index = item
        if not self._settings.redraw:
            return await self._first(item)
        if example.id not in self._queries:
            self._queries[example.id] = asyncio.ensure_future(self._unlike(example))
        return (await self._queries[example.id])[index]

    def close(self) -> None:
        """Give up what is under way."""
        for call in (*self._queries.values(), *self._groups.values()):
            call.cancel()

    async def _unlike(self, example: Example) -> list[Draft]:
        indexes = range(self._settings.samples)
        known = {index: self._there.get(draft_id(example, index)) for index in indexes}
        made = await asyncio.gather(*(_given(known[index], self._first, (example, index)) for index in indexes))
        settled = [index for index, draft_ in known.items() if draft_ is not None]
        return await unlike(made, lambda index, n: self._one((example, index), n), self._settings.redraw, settled)

    async def _first(self, item: Item) -> Draft:
        example, index = item
        many = self._many
        if many is None or self._settings.ladder or len(self._ways) > 1:  # each has a request of its own
            return await self._one(item)
        if example.id not in self._groups:
            sampling = asks.draft_series(self._context, self._round, example).together(self._settings.sampling)
            together = drafts(many, self._context.frames, example, self._settings.samples, sampling)
            self._groups[example.id] = asyncio.ensure_future(together)
        return (await self._groups[example.id])[index]

    async def _one(self, item: Item, attempt: int = 0) -> Draft:
        example, index = item
        sampling = asks.draft_sampling(self._context, self._round, example, index, attempt)
        _, frames = self._ways[index % len(self._ways)]
        return await draft(self._weak, frames, example, index, sampling)


async def _given(there: Draft | None, make: Callable[[Item], Awaitable[Draft]], item: Item) -> Draft:
    return await make(item) if there is None else there


async def _sample(context: Context, round_: Round) -> Done:
    context = in_turn(context, round_)
    settings, weak = context.config.draft, context.models.weak(round_.policy.weights(context))
    items = [(e, k) for e in training_queries(context, round_) for k in range(settings.samples)]
    file = context.run.file(round_.file("drafts.jsonl"), Draft)
    there = {d.id: d for d in file.load() if d.error is None} if settings.redraw else {}
    drawing = _Drawing(context, round_, weak, there)
    try:
        made = await fill(
            "sample drafts",
            context,
            file,
            items,
            lambda i: draft_id(*i),
            lambda d: d.id,
            drawing.make,
            limit="draft.sampling.max_tokens",
        )
    finally:
        drawing.close()
        await weak.aclose()
    failed = failures(made)
    counts = {"drafts": len(made), "failed": failed, "cut_off": sum(d.truncated for d in made)}
    if settings.redraw:
        counts |= {"redrawn": sum(d.redrawn for d in made), "still_alike": alike(made)}
    return Done(counts, failed)


def sample_stage(round_: Round) -> Stage:
    """K drafts for each training query, by the round's policy."""

    def follows_from(context: Context) -> Depends:
        return _sample_depends(context, round_)

    async def execute(context: Context) -> Done:
        return await _sample(context, round_)

    writes = (round_.file("drafts.jsonl"),)
    reads = (*round_.policy.reads, *round_.opened)
    return Stage(round_.stage("sample"), 1, reads, writes, follows_from, execute)
