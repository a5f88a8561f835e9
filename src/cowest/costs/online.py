"""The calls of an alignment that draws drafts while it trains (``align.objective: grpo``): bounds, since no draft is known before.

How many drafts are drawn is known to the draft. Equal ones of a query share a call: at the least all of a query's are equal, at
the most all differ.
"""

from __future__ import annotations

from collections.abc import Iterator

from cowest.assembly.context import Context
from cowest.costs.work import Range, Work
from cowest.scoring.judge import judge_request
from cowest.stages import asks
from cowest.stages.learn import training_queries
from cowest.stages.rewards import DRAFTS, FEEDBACK, REFINEMENTS, SOLO
from cowest.stages.rounds import Round
from cowest.training.objectives import drafts_drawn
from cowest.types import Draft, Feedback, Record, Refinement


def online_work(context: Context, round_: Round, begun: bool, done: bool, shares: bool) -> Iterator[Work]:
    """The drafts, and what the strong model and the judge are asked about them.

    ``begun``: what is in the round's files counts; ``done``: nothing is to come. ``shares``: equal requests share a call.
    """
    c, frames, queries = context.config, context.frames, training_queries(context, round_)
    drawn, each = drafts_drawn(c.align, len(queries)), asks.calls_each(context)
    met = min(len(queries), drawn // c.align.group)  # queries in some step: each order has all of them
    fewest = met if shares or not context.strong.paid else drawn
    files = _Files(context, round_, begun)
    asked, judge = context.signal.asks, context.models.sources.judge
    drafted, sampling = c.draft.sampling, c.feedback.sampling

    def left(low: float, most: float, already: int) -> Range:
        return (Range(low=0, expected=0, high=0) if done else Range(low=low, expected=most, high=most)).less(already)

    there = files.count(DRAFTS, Draft)
    yield Work(
        "align", "drafts in training", context.weak, left(drawn, drawn, 0), there, queries, lambda e, _: frames.draft(e), drafted,
        drafting=True, number=round_.number,
    )  # fmt: skip
    solo = files.count(SOLO, Refinement) * each
    if "solo" in asked:
        yield Work(
            "align", "strong alone", context.strong, left(met * each, met * each, solo), solo, queries,
            lambda e, _: frames.solo(e), sampling, number=round_.number,
        )  # fmt: skip
    refined = files.count(REFINEMENTS, Refinement) * each
    if "refine" in asked:
        yield Work(
            "align", "refine drafts in training", context.strong, left(fewest * each, drawn * each, refined), refined, queries,
            frames.refine, sampling, drafted=drafted, number=round_.number,
        )  # fmt: skip
    if judge is not None:
        answers = (met if "solo" in asked else 0) + (drawn if "refine" in asked else 0)
        judged, most = files.count(FEEDBACK, Feedback), drawn + each * answers
        calls = left(fewest, most, judged)
        yield Work(
            "align", "judge drafts in training", judge, calls.model_copy(update={"high": 2 * calls.high}), judged, queries,
            lambda e, _: judge_request(context.for_strong(e), context.task.target(e)).messages,
            judge_request(queries[0], "").sampling, number=round_.number,
        )  # fmt: skip


class _Files:
    def __init__(self, context: Context, round_: Round, begun: bool) -> None:
        self._context, self._round, self._begun = context, round_, begun

    def count(self, name: str, record: type[Record]) -> int:
        """Records without an error."""
        if not self._begun:
            return 0
        rows = self._context.run.file(self._round.file(name), record).load()
        return sum(getattr(row, "error", None) is None for row in rows)
