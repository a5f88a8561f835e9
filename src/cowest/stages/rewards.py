"""What drafts are worth while a model trains on them (``align.objective: grpo``): refined, scored, and kept in the round's folder.

The training runs in a thread; its drafts are refined on the event loop, through the same functions, frames, seeds and ledger as
in the stage ``feedback``. Every draft, answer and score is in a file of ``align/`` before the training gets its reward, and is
asked for no second time: a resumed training draws the drafts that it drew before, and finds them there, also without a ledger.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from cowest.assembly.context import Context
from cowest.collaboration.draft import seen
from cowest.collaboration.feedback import NOT_ASKED, feedback, unscored_reasons
from cowest.collaboration.refine import refine, solo
from cowest.collaboration.signals import worth
from cowest.errors import BudgetExceededError
from cowest.recipe.outcome import settings_of
from cowest.run.freshness import Depends
from cowest.run.identity import fingerprint
from cowest.run.store import JsonlFile
from cowest.scoring.once import Once
from cowest.stages import asks, depends
from cowest.stages.base import Patience, failures
from cowest.stages.expecting import expect_of, strong_model
from cowest.stages.in_turn import turn_depends
from cowest.stages.rounds import Round
from cowest.stages.toll import prompt_price, toll
from cowest.types import Completion, Draft, Example, Feedback, Record, Refinement

R = TypeVar("R", bound=Record)
_Ask = Callable[[Example, Draft | None], Coroutine[Any, Any, Refinement]]
DRAFTS, SOLO, REFINEMENTS, FEEDBACK = (f"align/{name}.jsonl" for name in ("drafts", "solo", "refinements", "feedback"))
"""The round's files of drafts that were rewarded: each different one once."""


def rewards_depend(context: Context, queries: Sequence[Example]) -> Depends:
    """What rewards follow from, beside the model that drafts."""
    first, c, judge = context.task.examples("train")[0], context.config, context.models.sources.judge
    asked = (context.frames.draft(first), context.frames.refine(first, "DRAFT"), context.frames.solo(first))
    return (
        settings_of("feedback", c.feedback, leave_out=("judge",))
        | (depends.value("feedback.judge", None) if judge is None else judge.identity("feedback.judge"))
        | depends.questions("drafted", queries)
        | depends.prompt("drafts and rewards", *asked)
        | settings_of("draft.sampling", c.draft.sampling)
        | depends.value("pairs.signal", context.signal.name)
        | turn_depends(context)
        | settings_of("pairs", c.pairs).only("pairs.price_per_word", "pairs.price_per_usd")
        | Depends({"the price of a prompt": prompt_price(context)}, {"the price of a prompt": None})
    )


def _answered(answer: Refinement) -> bool:
    return answer.error is None


class _Kept(Generic[R]):
    """A file of records by key, with those that need not be made again (``good``) apart; the last of a key counts."""

    def __init__(self, file: JsonlFile[R], key: Callable[[R], str], good: Callable[[R], bool]) -> None:
        self._file, self._key, self._is_good = file, key, good
        self.all = {key(record): record for record in file.load()}
        self.good = {key: record for key, record in self.all.items() if good(record)}

    def put(self, record: R) -> None:
        """On disk first: what is not there when the process is killed is made again."""
        self._file.append(record)
        key = self._key(record)
        self.all[key] = record
        if self._is_good(record):
            self.good[key] = record

    def close(self, order: Sequence[str]) -> None:
        """Write the records in this order of their keys, whichever came first."""
        self._file.replace([self.all[key] for key in order if key in self.all])


async def _ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    running = list(tasks)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


class Rewards:
    """The reward of a training in a thread. Made, and closed, on the event loop.

    ``expected``: how many drafts the training will have drawn, for the patience with calls that fail.
    """

    def __init__(self, context: Context, round_: Round, queries: Sequence[Example], expected: int) -> None:
        self._context, self._queries = context, {e.id: e for e in queries}
        self._loop, self._closed = asyncio.get_running_loop(), False
        self._running: concurrent.futures.Future[list[float | None]] | None = None
        self._strong, self._scorer, self._toll = strong_model(context), Once(context.scorer()), toll(context)
        run = context.run
        self._drafts = _Kept(run.file(round_.file(DRAFTS), Draft), lambda d: d.id, lambda d: True)
        self._refined = _Kept(run.file(round_.file(REFINEMENTS), Refinement), lambda r: r.draft_id or "", _answered)
        self._alone = _Kept(run.file(round_.file(SOLO), Refinement), lambda r: r.example_id, _answered)
        self._scores = _Kept(
            run.file(round_.file(FEEDBACK), Feedback),
            lambda f: f.draft_id,
            lambda f: context.signal.value(f) is not None,
        )
        self._asking = dict[str, asyncio.Task[Refinement]]()
        answered = bool(self._refined.good or self._alone.good)
        self._patience = Patience("reward drafts", expected, answered, lambda: False)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[Completion], example_ids: Sequence[str]
    ) -> list[float | None]:
        """See Reward; from the training's thread. Raises BudgetExceededError, StageError; KeyboardInterrupt once it is closed."""
        if self._closed:
            raise KeyboardInterrupt
        self._running = asyncio.run_coroutine_threadsafe(self._rewarded(completions, example_ids), self._loop)
        try:
            return self._running.result()
        except concurrent.futures.CancelledError:
            raise KeyboardInterrupt from None

    async def aclose(self) -> None:
        """Ask nothing more; calls under way are the ledger's. The files are put into the order of the drafts."""
        self._closed = True
        if self._running is not None:
            self._running.cancel()
        await _ended(self._asking.values())
        ids = list(self._drafts.all)
        self._drafts.close(ids)
        self._refined.close(ids)
        self._scores.close(ids)
        self._alone.close(list(dict.fromkeys(d.example_id for d in self._drafts.all.values())))

    def counts(self) -> dict[str, int]:
        """Of different drafts: how many there were, were refined, and have no reward."""
        refined = list(self._refined.all.values())
        return {
            "drafts": len(self._drafts.all),
            "refined": len(refined),
            "refined_failed": failures(refined),
            "solo": len(self._alone.all),
            "unscored": sum(self._context.signal.value(f) is None for f in self._scores.all.values()),
        }

    def reasons(self) -> Mapping[str, int]:
        """Why drafts have no reward, by how many."""
        return dict(unscored_reasons(self._scores.all.values()).items())

    async def _rewarded(self, completions: Sequence[Completion], example_ids: Sequence[str]) -> list[float | None]:
        drafts = [self._draft(self._queries[id], done) for id, done in zip(example_ids, completions, strict=True)]
        todo = {d.id: d for d in drafts if d.text is not None and d.id not in self._scores.good}
        tasks = [asyncio.ensure_future(self._score(draft)) for draft in todo.values()]
        try:
            await asyncio.gather(*tasks)
        except BaseException as error:
            await _ended([*tasks, *self._asking.values()])  # nothing more is sent
            if isinstance(error, BudgetExceededError):
                came = f"{self._context.label}reward drafts: {len(self._scores.good)} drafts scored"
                raise BudgetExceededError(f"{came}. {error}") from None
            raise
        return [self._value(draft) for draft in drafts]

    def _draft(self, example: Example, done: Completion) -> Draft:
        """The draft, under an id that equal ones share."""
        cut = done.finish_reason != "stop"
        id = f"{example.id}#{fingerprint(done.text, cut, length=12)}"
        there = self._drafts.all.get(id)
        if there is None:
            index = sum(d.example_id == example.id for d in self._drafts.all.values())
            there = seen(example, index, self._context.weak.name, done).model_copy(update={"id": id})
            self._drafts.put(there)
        return there

    def _value(self, draft: Draft) -> float | None:
        record = self._scores.good.get(draft.id)
        price = self._context.config.pairs.price_per_word
        return None if record is None else worth(self._context.signal, record, draft, price, self._toll)

    async def _score(self, draft: Draft) -> None:
        example, needs, c = self._queries[draft.example_id], self._context.signal.asks, self._context.config
        unasked = Refinement(
            example_id=example.id, draft_id=draft.id, text=None, error=f"{NOT_ASKED}: the signal needs no such call"
        )
        calls = [self._once(f"refine {draft.id}", self._refine, example, draft)] if "refine" in needs else []
        calls += [self._once(f"solo {example.id}", self._solo, example, None)] if "solo" in needs else []
        answers = await asyncio.gather(*map(asyncio.shield, calls))
        refined = answers[0] if "refine" in needs else unasked
        alone = answers[-1] if "solo" in needs else unasked
        self._scores.put(
            await feedback(
                self._scorer,
                example,
                draft,
                refined,
                alone,
                draft_tokens=c.draft.sampling.max_tokens,
                answer_tokens=c.feedback.sampling.max_tokens,
            )
        )

    def _once(self, key: str, ask: _Ask, example: Example, draft: Draft | None) -> asyncio.Task[Refinement]:
        """One call for all that wait for the same answer; one that failed is made again by the next."""
        running = self._asking.get(key)
        if running is None or (
            running.done() and (running.cancelled() or running.exception() or running.result().error)
        ):
            running = self._asking[key] = asyncio.ensure_future(ask(example, draft))
        return running

    async def _refine(self, example: Example, draft: Draft | None) -> Refinement:
        assert draft is not None
        if (there := self._refined.good.get(draft.id)) is not None:
            return there
        asked, frames = asks.refine_requests(self._context, example, draft), self._context.frames
        done = await refine(
            self._strong, frames, example, draft, asked[0].sampling, expect_of(self._context, example, asked)
        )
        return self._noted(self._refined, done)

    async def _solo(self, example: Example, _: Draft | None) -> Refinement:
        if (there := self._alone.good.get(example.id)) is not None:
            return there
        asked = asks.solo_requests(self._context, example)
        done = await solo(
            self._strong, self._context.frames, example, asked[0].sampling, expect_of(self._context, example, asked)
        )
        return self._noted(self._alone, done)

    def _noted(self, kept: _Kept[Refinement], done: Refinement) -> Refinement:
        kept.put(done)
        self._patience.see(done.error)
        return done
