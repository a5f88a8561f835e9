"""Feedback in lots (``feedback.adaptive``): what :mod:`cowest.collaboration.adaptive` decides, asked for and scored."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

from cowest.assembly.context import Context
from cowest.collaboration.adaptive import LOT, Look, Plan, Said, Step, Why, ordered, saved
from cowest.collaboration.feedback import feedback
from cowest.collaboration.preference import build_pairs
from cowest.protocols import Scorer
from cowest.stages import asks
from cowest.stages.base import IN_FLIGHT, Filling, filled
from cowest.stages.draft_watch import DraftWatch
from cowest.stages.rounds import Round
from cowest.stages.toll import toll
from cowest.types import Draft, Example, Feedback, Refinement

I = TypeVar("I")  # noqa: E741
TOLD: Final[Mapping[Why, str]] = {
    "contrast": "its query has a pair already",
    "alike": "it is like another draft of its query",
    "no hope": "no pair can come of its query",
    "the limit": "feedback.calls is used up",
}
MOST: Final = 1.0
"""The highest score: a strong model that has it alone leaves rule ``paper`` nothing to gain."""


class Lots(Filling[I, Refinement]):
    """A file whose items are asked for in several goes. It is put into order, and what nobody asked for left out, at the end."""

    _begun = False

    def take(self, ids: Sequence[str], every: Mapping[str, I]) -> None:
        """These items are next; ``every`` holds all that may ever be, by id and in the file's order."""
        wanted = {self._key_of_item(item) for item in (self.items if self._begun else ())} | set(ids)
        self.items = [item for id, item in every.items() if id in wanted]
        self.todo = [every[id] for id in ids if id not in self.done]

    def begin(self) -> None:
        """Look at what is there, once."""
        if not self._begun:
            super().begin()
        self._begun = True

    def end(self) -> None:
        """Another lot may follow."""

    def finish(self) -> list[Refinement]:
        """All lots are done: the file in its order. Raises StageError where ``looking`` does."""
        if not self._begun:
            self.take([], {})
        super().end()
        return self.records()


@dataclass(frozen=True, slots=True)
class Spared:
    """Why drafts were not asked for, by id, and the calls which that saved, as counts of the stage."""

    drafts: Mapping[str, Why] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Asked:
    """What lots are asked with: the files, whoever looks at what comes, and how many requests are under way together."""

    alone: Filling[Example, Refinement] | None
    refined: Filling[Draft, Refinement]
    watch: DraftWatch
    at_once: int = IN_FLIGHT


async def in_lots(
    context: Context,
    round_: Round,
    scorer: Scorer,
    queries: Mapping[str, Example],
    drafts: Sequence[Draft],
    asked: Asked,
) -> tuple[list[Refinement], list[Refinement], Spared]:
    """The strong model's answers alone and with drafts, as far as pairs need them; and what was spared."""
    alone, refined = asked.alone, asked.refined
    assert isinstance(refined, Lots) and (alone is None or isinstance(alone, Lots))
    by_id = {d.id: d for d in drafts}
    plan = await _plan(context, round_, queries, drafts, alone)
    scored: dict[str, list[Feedback]] = {}

    async def look(step: Step) -> Look:
        example, known = queries[step.query], scored.setdefault(step.query, [])
        solo = alone.done.get(step.query) if alone is not None else None
        known += await asyncio.gather(
            *(_score(context, scorer, example, by_id[id], refined.done[id], solo) for id in step.drafts)
        )
        return await _look(context, scorer, example, [by_id[record.draft_id] for record in known], known, solo)

    while lot := plan.next_lot():
        refined.take([id for step in lot for id in step.drafts], by_id)
        if alone is not None:
            alone.take([step.query for step in lot if step.alone], queries)
        asked.watch.then(step.drafts[0] for step in lot if step.drafts and step.query not in scored)
        await filled("strong answers", context, [f for f in (alone, refined) if f is not None], asked.at_once)
        looks = await asyncio.gather(*map(look, lot))  # a judge's answers come together
        plan.tell({step.query: found for step, found in zip(lot, looks, strict=True)})
    spared = _spared(plan, queries, drafts)
    _tell(context, plan, spared)
    return ([] if alone is None else alone.finish()), refined.finish(), spared


async def _plan(
    context: Context,
    round_: Round,
    queries: Mapping[str, Example],
    drafts: Sequence[Draft],
    alone: Filling[Example, Refinement] | None,
) -> Plan:
    settings, reader = context.config.feedback, context.metric_scorer()  # which costs nothing
    of: dict[str, list[Said]] = {id: [] for id in queries}
    for draft in drafts:
        score = await reader.score(queries[draft.example_id], draft.text)
        of[draft.example_id].append(Said(draft.id, draft.text or "", score.answer, score.value))
    order, same = dict[str, Sequence[Said]](), set[str]()
    for id, said in of.items():
        order[id], like = ordered(said, settings.alike)
        same |= {one.id for one in like}
    known = frozenset[str]()
    if alone is not None:
        earlier = [context.run.file(name, Refinement) for name in first_solos(round_)]
        known = frozenset(r.example_id for file in earlier for r in file.load() if r.error is None)
    return Plan(
        order, frozenset(same), alone is not None, context.config.pairs.rule, known,
        {id: asks.calls_each(context) + asks.readings_each(context, e) for id, e in queries.items()},
        settings.calls, lot_of(context, len(queries)),
    )  # fmt: skip


def lot_of(context: Context, queries: int) -> int:
    """Steps in a lot. A batch takes up to a day: there a lot has all queries, or with a limit, of which it learns, a quarter."""
    settings = context.config.feedback
    if settings.mode == "live":
        return LOT
    return max(LOT, queries if settings.calls is None else -(-queries // 4))


def first_solos(round_: Round) -> tuple[str, ...]:
    """Where the strong model's answers without a draft are already, in a later round than the first."""
    return () if round_.number == 1 else (Round(round_.policy).file("solo.jsonl"),)


async def _score(
    context: Context, scorer: Scorer, example: Example, draft: Draft, answer: Refinement, solo: Refinement | None
) -> Feedback:
    nobody = Refinement(example_id=example.id, draft_id=None, text=None, error="not asked")
    limits = context.config.draft.sampling.max_tokens, context.config.feedback.sampling.max_tokens
    return await feedback(
        scorer, example, draft, answer, solo or nobody, draft_tokens=limits[0], answer_tokens=limits[1]
    )


async def _look(
    context: Context,
    scorer: Scorer,
    example: Example,
    drafts: Sequence[Draft],
    known: Sequence[Feedback],
    solo: Refinement | None,
) -> Look:
    c = context.config.pairs
    made = build_pairs(
        [example], drafts, known, context.frames,
        rule=c.rule, min_margin=c.min_margin, signal=context.signal, price_per_word=c.price_per_word, toll=toll(context),
    )  # fmt: skip
    if made.pairs or solo is None:
        return Look(bool(made.pairs))
    worth = (known[0] if known else await _alone(scorer, example, solo)).solo.worth
    return Look(False, hope=worth is not None and (c.rule != "paper" or worth < MOST))


async def _alone(scorer: Scorer, example: Example, solo: Refinement) -> Feedback:
    none = Draft(id="", example_id=example.id, index=0, text=None, error="none")
    return await feedback(scorer, example, none, solo.model_copy(update={"draft_id": ""}), solo)


def _spared(plan: Plan, queries: Mapping[str, Example], drafts: Sequence[Draft]) -> Spared:
    reasons = plan.not_asked()
    keys = {d.id: asks.draft_key(d) for d in drafts}
    calls = {d.id: plan.calls[d.example_id] for d in drafts} | {id: plan.calls[id] for id in queries}
    return Spared(reasons, saved(reasons | plan.not_alone(), keys, calls))


def _tell(context: Context, plan: Plan, spared: Spared) -> None:
    less = ", ".join(
        f"{n:,} {name.removeprefix('calls_saved_').replace('_', ' ')}" for name, n in spared.counts.items()
    )
    context.reporter.info(
        f"{context.label}strong calls of feedback: {plan.spent:,}; {sum(spared.counts.values()):,} not made"
        + (f" ({less})" if less else "")
    )
