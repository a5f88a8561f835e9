"""What a guard will cost: the calls of its calibration, and how many of the strong model its rows were seen to make.

Of a calibration query the weak model is asked for its answer and ``guard.samples`` more, and the aligned one for a draft; the
strong model alone, then with the draft. Whether the two weak models differ shows when the alignment is done: before that a draft
is between no call and one. The drafts are on no file, so that refinements are bounded like those of an evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from cowest.assembly.context import Context
from cowest.assembly.sources import Source
from cowest.assembly.systems import GUARD, guard_of
from cowest.collaboration.guard.evidence import Answered
from cowest.costs.work import ZERO, Range, Work, bought, exactly
from cowest.ledger.ledger import call_of
from cowest.pipeline import stages_with_guard
from cowest.run.freshness import Verdict, review
from cowest.stages.guard import CALIBRATE, CALIBRATED, CERTIFY, calibration_queries, weak_models
from cowest.systems.guarded import further_samples, with_logprobs
from cowest.systems.spec import SystemSpec
from cowest.types import Example, Message, Request, Sampling


def guard_verdicts(context: Context) -> dict[str, Verdict]:
    """What would become of the stages of a run with a guard, of those whose inputs are there."""
    return review(context.run, stages_with_guard(context), lambda stage: stage.depends(context))


def calibration_work(context: Context, paid: frozenset[str]) -> Iterator[Work]:
    """The calls of the stage ``calibrate``. ``paid``: the ledger's requests. Raises DataError where it has no queries."""
    known = paid if context.config.cache == "read" else frozenset[str]()
    yield from _Calibration(context, known, calibration_queries(context), guard_verdicts(context).get(CALIBRATE)).all()


def calls_seen(context: Context, spec: SystemSpec) -> float | None:
    """The strong calls a query that a row made on the certifying queries; None where its guard is still to be made."""
    if spec.needs != "guard" or not context.path(GUARD).is_file():
        return None
    verdict = guard_verdicts(context).get(CERTIFY)
    return guard_of(context).certificate(spec.name).calls if verdict is not None and verdict.settled else None


@dataclass(frozen=True, slots=True)
class _Calibration:
    """The calls of one domain's calibration; ``paid`` are the requests whose answers a run would use again."""

    context: Context
    paid: frozenset[str]
    queries: Sequence[Example]
    verdict: Verdict | None

    def all(self) -> Iterator[Work]:
        c, frames, weak, strong = self.context.config, self.context.frames, self.context.weak, self.context.strong
        draft, answer = (with_logprobs(s, c.guard.confidence) for s in (c.evaluate.draft, c.evaluate.answer))
        done = self._done()
        left = [e for e in self.queries if e.id not in done]

        def drafting(example: Example, _: str) -> Sequence[Message]:
            return frames.draft(example)

        def alone(example: Example, _: str) -> Sequence[Message]:
            return frames.solo(example)

        each = Work(CALIBRATE, "weak alone", weak, ZERO, 0, self.queries, drafting, draft, drafting=True)
        calls, there = self._ask(weak, [self._request(drafting, draft, e) for e in left])
        yield replace(each, calls=exactly(calls), already=there + len(done))
        if c.guard.samples:
            yield self._samples(replace(each, calls_for="weak samples", sampling=c.draft.sampling), left, len(done))
        apart = self._drafts_apart()
        if apart.high:
            drawn = exactly(len(left)) * apart
            yield replace(each, calls_for="drafts", calls=drawn, already=round(len(done) * apart.low))
        asked = [self._request(alone, answer, e) for e in left]
        calls, there = self._ask(strong, asked)
        each = Work(CALIBRATE, "strong alone", strong, exactly(calls), there + len(done), self.queries, alone, answer)
        yield each
        unasked = [e for e, request in zip(left, asked, strict=True) if self._ask(strong, [request])[0]]
        fewest = len({frames.refine(e, "") for e in unasked}) if self._shared(strong) else len(unasked)
        # A query's draft is refined after it was answered without one: what is paid for alone may have been refined, too.
        refined = Range(low=fewest, expected=len(left), high=len(left))
        prompt, drafts = frames.refine, c.evaluate.draft
        yield replace(
            each, calls_for="refine drafts", calls=refined, already=len(done), prompt=prompt, drafted=drafts
        )  # fmt: skip

    @staticmethod
    def _request(ask: Callable[[Example, str], Sequence[Message]], sampling: Sampling, example: Example) -> Request:
        return Request(messages=tuple(ask(example, "")), sampling=sampling)

    def _done(self) -> set[str]:
        if self.verdict is None or not self.verdict.kept:
            return set()
        rows = self.context.run.file(CALIBRATED, Answered).load()
        return {row.example_id for row in rows if row.error is None}

    def _shared(self, model: Source) -> bool:
        return model.paid and self.context.config.cache != "off"

    def _ask(self, model: Source, requests: Sequence[Request]) -> tuple[int, int]:
        return bought(model, requests, self.paid) if self._shared(model) else (len(requests), 0)

    def _samples(self, work: Work, left: Sequence[Example], done: int) -> Work:
        """Further answers of the weak model: several of a request where its endpoint gives them."""
        weak, settings, seed = self.context.weak, self.context.config.guard, self.context.config.seed
        low = high = 0
        for example in left:
            series, n = further_samples(seed, example), settings.samples
            one = weak.many > 1
            drawn = [
                (series.together(work.sampling), k) if one else (series.nth(work.sampling, k), 0) for k in range(n)
            ]
            asked = work.prompt(example, "")
            keys = {call_of(weak.name, asked, sampling, weak.extra, None, k).key for sampling, k in drawn}
            missing = n - len(keys & self.paid)
            low, high = low - (-missing // max(1, weak.many)), high + missing
        already = settings.samples * (done + len(left)) - high
        return replace(work, calls=Range(low=low, expected=low, high=high), already=already)

    def _drafts_apart(self) -> Range:
        """Drafts a query by another model than the one that answers alone: known once the alignment is done."""
        if self.verdict is not None:
            weak, drafter = weak_models(self.context)
            return exactly(int(weak != drafter))
        aligns = self.context.weak.trainable and self.context.config.align.objective != "off"
        return Range(low=0, expected=int(aligns), high=int(aligns))
