"""Feedback in lots (``feedback.adaptive``): what :mod:`cowest.collaboration.adaptive` decides, asked for and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

from cowest.assembly.context import Context
from cowest.collaboration.adaptive import Look, Plan, Said, Step, Why, ordered, saved
from cowest.collaboration.feedback import feedback
from cowest.collaboration.preference import build_pairs
from cowest.protocols import Scorer
from cowest.stages import asks
from cowest.stages.base import IN_FLIGHT, Filling, filled
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


async def in_lots(
    context: Context,
    round_: Round,
    scorer: Scorer,
    queries: Mapping[str, Example],
    drafts: Sequence[Draft],
    alone: Filling[Example, Refinement] | None,
    refined: Filling[Draft, Refinement],
) -> tuple[list[Refinement], list[Refinement], Mapping[str, Why]]:
    """The strong model's answers alone and with drafts, as far as pairs need them; and why other drafts were not asked for."""
    assert isinstance(refined, Lots) and (alone is None or isinstance(alone, Lots))
    by_id = {d.id: d for d in drafts}
    plan = await _plan(context, round_, queries, drafts, alone)
    scored: dict[str, list[Feedback]] = {}
    while lot := plan.next_lot():
        refined.take([id for step in lot for id in step.drafts], by_id)
        if alone is not None:
            alone.take([step.query for step in lot if step.alone], queries)
        await filled("strong answers", context, [f for f in (alone, refined) if f is not None], IN_FLIGHT)
        looks = {}
        for step in lot:
            known = scored.setdefault(step.query, [])
            solo = alone.done.get(step.query) if alone is not None else None
            for id in step.drafts:
                known.append(await _score(context, scorer, queries[step.query], by_id[id], refined.done[id], solo))
            looks[step.query] = await _look(context, scorer, queries[step.query], step, known, drafts, solo)
        plan.tell(looks)
    reasons = plan.not_asked()
    _tell(context, plan, reasons)
    return ([] if alone is None else alone.finish()), refined.finish(), reasons


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
        answer = (await reader.score(queries[draft.example_id], draft.text)).answer
        of[draft.example_id].append(Said(draft.id, draft.text or "", answer))
    order, same = dict[str, Sequence[Said]](), set[str]()
    for id, said in of.items():
        order[id], like = ordered(said, settings.alike)
        same |= {one.id for one in like}
    known = frozenset(queries) if round_.number > 1 and alone is not None else frozenset[str]()
    return Plan(
        order, frozenset(same), alone is not None, context.config.pairs.rule, known,
        asks.calls_each(context), settings.calls,
    )  # fmt: skip


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
    step: Step,
    known: Sequence[Feedback],
    drafts: Sequence[Draft],
    solo: Refinement | None,
) -> Look:
    c = context.config.pairs
    asked = {record.draft_id for record in known}
    made = build_pairs(
        [example], [d for d in drafts if d.id in asked], known, context.frames,
        rule=c.rule, min_margin=c.min_margin, signal=context.signal, price_per_word=c.price_per_word, toll=toll(context),
    )  # fmt: skip
    if made.pairs or solo is None:
        return Look(bool(made.pairs))
    worth = (known[0] if known else await _alone(scorer, example, solo)).solo.worth
    return Look(False, hope=worth is not None and (c.rule != "paper" or worth < MOST))


async def _alone(scorer: Scorer, example: Example, solo: Refinement) -> Feedback:
    none = Draft(id="", example_id=example.id, index=0, text=None, error="none")
    return await feedback(scorer, example, none, solo.model_copy(update={"draft_id": ""}), solo)


def _tell(context: Context, plan: Plan, reasons: Mapping[str, Why]) -> None:
    calls = saved(reasons, plan.calls)
    less = ", ".join(f"{n:,} {name.removeprefix('calls_saved_').replace('_', ' ')}" for name, n in calls.items())
    context.reporter.info(
        f"{context.label}strong calls of feedback: {plan.spent:,}; {sum(calls.values()):,} not made"
        + (f" ({less})" if less else "")
    )
