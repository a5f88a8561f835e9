"""The calls of a recipe that trains another turn than a draft (``draft.turn``): what comes before it, and a checkpoint's choice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from cowest.assembly.build import build_interaction_frames
from cowest.assembly.context import Context
from cowest.assembly.sources import Source
from cowest.assembly.stand_ins import Asked, dry_run
from cowest.assembly.systems import Retrievers
from cowest.costs.work import ZERO, Range, Work, exactly, spread
from cowest.stages import asks
from cowest.stages.choosing import validation_queries
from cowest.stages.in_turn import Opening, in_turn
from cowest.stages.learn import training_queries
from cowest.stages.openings import FIRST_DRAFTS
from cowest.stages.rounds import OPENINGS, Round
from cowest.systems.interactions.consult import asking
from cowest.systems.registry import trained_row
from cowest.types import Draft, Example, Message, Request

SAMPLED = 6
"""Validation queries that are answered with stand-ins."""
Ask = Callable[[Source, Sequence[Request]], tuple[int, int]]


def turned(context: Context, round_: Round, done: bool) -> Context:
    """The context in which a round asks for its turn, behind what the stage ``openings`` has made, or will make: as many words."""
    if context.config.draft.turn == "draft":
        return context
    if done and (mine := in_turn(context, round_)).has_turn:
        return mine
    guessed = {e.id: _texts(context, e) for e in training_queries(context, round_)}
    return in_turn(context, round_, guessed)


def _texts(context: Context, example: Example) -> tuple[str, ...]:
    target = context.task.target(example)
    return {"advise": (target,), "revise": (target, target), "reply": (example.input,)}[context.config.draft.turn]


def opening_work(context: Context, round_: Round, begun: bool, done: bool, ask: Ask) -> Iterator[Work]:
    """What comes before the turn. ``begun``: what is in the round's files counts; ``done``: nothing is to come."""
    c, kind, queries = context.config, context.config.draft.turn, training_queries(context, round_)
    if kind == "draft":
        return
    turns = build_interaction_frames(c, context.task, context.objects.format)
    rows = context.run.file(round_.file(OPENINGS), Opening).load() if begun else []
    there = {row.example_id for row in rows if row.error is None}
    left = [] if done else [e for e in queries if e.id not in there]
    answering = c.feedback.sampling

    def critique(example: Example, text: str) -> Sequence[Message]:
        return turns.critique(example, text)

    if kind == "revise":
        made = context.run.file(round_.file(FIRST_DRAFTS), Draft).load() if begun else []
        drafted = {d.example_id for d in made if d.error is None}
        first = exactly(0 if done else len([e for e in queries if e.id not in drafted]))
        yield Work(
            "openings", "first drafts", context.weak, first, len(drafted), queries, lambda e, _: context.frames.draft(e),
            c.evaluate.draft, drafting=True,
        )  # fmt: skip
        yield Work(
            "openings", "critiques", context.strong, exactly(len(left)), len(there), queries, critique, answering,
            drafted=c.evaluate.draft,
        )  # fmt: skip
        return

    def asked(example: Example, _: str = "") -> tuple[Message, ...]:
        return context.frames.solo(example) if kind == "advise" else turns.consult(example, c.comparison.questions)

    requests = list[Request]()
    for example in left:
        sampling = asks.solo_requests(context, example)[0].sampling
        sampling = sampling if kind == "advise" else asking(sampling, True)
        requests.append(Request(messages=asked(example), sampling=sampling))
    calls, paid = ask(context.strong, requests)
    name = "attempts" if kind == "advise" else "questions"
    yield Work("openings", name, context.strong, exactly(calls), len(there) + paid, queries, asked, answering)


def choosing_work(context: Context, already: int, done: bool, shares: bool) -> Iterator[Work]:
    """The calls of the interaction's own system for each checkpoint; ``already`` answers of it are there.

    ``shares``: equal requests share a call. What the strong model is asked before the weak one is the same for every checkpoint.
    """
    c, queries, spec = context.config, validation_queries(context), trained_row(context.config)
    tries, sampled, once = c.align.checkpoints + 1, spread(queries, SAMPLED), shares and context.strong.paid

    async def runs(busy: bool) -> dict[str, list[Asked]]:
        retrievers = Retrievers()
        return {e.id: (await dry_run(context, spec, e, retrievers, 1.0, busy))[1] for e in sampled}

    most, fewest = asyncio.run(runs(True)), asyncio.run(runs(False))
    for number in range(max(map(len, most.values()))):
        having = {id_: asked[number] for id_, asked in most.items() if number < len(asked)}
        high = len(having) / len(most)
        low = sum(number < len(asked) for asked in fewest.values()) / len(most)
        strong = next(iter(having.values())).model == "strong"
        first = strong and all(a.model == "strong" for a in next(iter(most.values()))[:number])
        each = len(queries) * (1 if first and once else tries)
        least = len(queries) if strong and once else each
        calls = Range(low=least * low, expected=each * (low + high) / 2, high=each * high)
        yield Work(
            "align",
            "choose a checkpoint" if strong else "drafts",
            context.strong if strong else context.weak,
            ZERO if done else calls.less(already),
            already,
            [a.example for a in having.values()],
            _prompts(having),
            next(iter(having.values())).sampling,
            drafting=not strong,
        )


def _prompts(having: dict[str, Asked]) -> Callable[[Example, str], Sequence[Message]]:
    return lambda example, _: having[example.id].messages


def less_the_attempts(context: Context, works: Work, done: bool, shares: bool) -> Work:
    """The strong model's answers alone, without those that are the attempts of ``draft.turn: advise``."""
    if context.config.draft.turn != "advise" or done or not (shares and context.strong.paid):
        return works
    return replace(works, calls=works.calls.less(len(works.queries)))
