"""What a recipe will cost, before anything is paid: calls, tokens, USD and time of each stage that calls a strong model.

Prompts are real ones (the recipe's frames around its own questions); :mod:`cowest.costs.workload` counts the calls.
What cannot be known yet is bounded:

    draft        low: the shortest quarter of the SFT targets; expected: their mean; high: the drafts' max_tokens
    answer       low: the shortest quarter of the SFT targets; expected: the ledger's mean for this purpose where there is
                 one, else that of the model's measurement, else the targets' mean + 150 tokens of reasoning (where
                 prompts.reasons is on); high: max_tokens

Models on this machine cost time: their prompts, answers and trainings by the speeds of :mod:`cowest.costs.speed`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Final

from cowest.assembly.build import build_baseline_frames
from cowest.assembly.context import Context
from cowest.assembly.here import check_here
from cowest.assembly.opened import ledger_path
from cowest.assembly.prepare import prepare
from cowest.assembly.sources import Source
from cowest.assembly.systems import Retrievers
from cowest.costs.gepa import gepa_work
from cowest.costs.guard import calibration_work
from cowest.costs.lengths import SAMPLED, Counter, Texts, Written, bounded
from cowest.costs.local import Here, Learner, speeds_of
from cowest.costs.memory import MemoryNeed, memory_needs
from cowest.costs.speed import Speed
from cowest.costs.systems import known_as, system_work
from cowest.costs.trainings import Training
from cowest.costs.work import ZERO, Range, Work, spread
from cowest.costs.workload import current_stages, workload
from cowest.ledger.prices import Price, price_list
from cowest.ledger.summary import Line, answered_requests, summarise_ledger
from cowest.models.tokens import prompt_tokens, token_counter
from cowest.protocols import Reporter
from cowest.recipe.config import RunConfig
from cowest.run.progress import QuietReporter
from cowest.stages.loop import selection
from cowest.systems.registry import evaluated
from cowest.types import Prediction, Record, Usage

REASONING_TOKENS: Final = 150
"""What a strong model writes beyond what the SFT targets say, where the ledger knows no better."""
TOKENS_PER_S: Final = 50.0
OVERHEAD_S: Final = 0.5
"""Time of one answer: half a second, and 50 tokens a second. An assumption, and told as one."""
DAY_S: Final = 24 * 3600.0
STAGES: Final = ("sft", "openings", "sample", "feedback", "align", "calibrate", "gepa", "evaluate", "rows")
"""In the order of a run."""


class StageEstimate(Record):
    """One kind of call in one stage of one domain, as far as it is still to be made; ``already`` answers are there.

    ``cost_usd`` is None where no price is known, 0 for a model that runs here (``paid`` false); its ``seconds`` are None where its
    speed is not known. A training makes no call: it learns from ``training_tokens``.
    """

    domain: str
    stage: str
    calls_for: str
    model: str
    paid: bool
    batch: bool
    already: int
    calls: Range
    input_tokens: Range
    output_tokens: Range
    cost_usd: Range | None
    seconds: Range | None
    training_tokens: Range = ZERO


class BudgetFit(Record):
    """Whether low, expected and high fit into what a budget leaves; None where that cannot be known."""

    name: str
    limit: float
    spent: float | None
    low: bool | None
    expected: bool | None
    high: bool | None


class Estimate(Record):
    """The whole recipe. The sums are over paid models only; ``already`` counts their answers that are there.

    ``here`` is what the models on this machine have to do, None where there is none.
    ``memory`` is of the stages that train or answer on this machine.
    """

    name: str
    stages: list[StageEstimate]
    already: int
    calls: Range
    tokens: Range
    cost_usd: Range | None
    unpriced_models: list[str]
    seconds: Range
    budgets: list[BudgetFit]
    assumptions: list[str]
    memory: list[MemoryNeed]
    here: Here | None = None


def estimate(config: RunConfig, out: Path, measure: Reporter | None = None) -> Estimate:
    """Estimate what a recipe would still cost if it were run in ``out``. Wants no key, and no event loop that runs already.

    ``measure``: load the models of this machine and measure how fast they are (:mod:`cowest.costs.measure`), and tell of it there.
    Raises ConfigError or DataError as ``cowest validate`` does, and with ``measure`` ModelNotFoundError.
    """
    if measure is not None:
        check_here(config)
    contexts = prepare(config, out, QuietReporter(), offline=True)
    ledger = ledger_path(config, out)
    paid = paid_requests(ledger)
    work = [(context, w) for context in contexts for w in _works(context, paid)]
    return estimate_work(config, ledger, work, [Learner(context) for context in contexts], measure)


def _works(context: Context, paid: frozenset[str]) -> Iterator[Work]:
    yield from workload(context, paid)
    if any(spec.needs == "guard" for spec in evaluated(context.config)[0]):
        yield from calibration_work(context, paid)
    yield from gepa_work(context, evaluated(context.config)[0], counted=True)
    current, retrievers, seen = current_stages(context), Retrievers(), set[str]()
    fresh, aligned = "evaluate" in current, current.get("align")
    unaligned = aligned is not None and aligned.settled and selection(context).skipped is not None
    specs, _ = evaluated(context.config)
    for spec in specs if not all(spec.live for spec in specs) else ():
        if spec.needs == "align" and unaligned:
            continue  # there was nothing to learn from
        made = context.run.file(f"predictions/{spec.name}.jsonl", Prediction).load() if fresh else []
        done = {p.example_id for p in made if p.error is None}
        found = list(system_work(context, spec, "evaluate", done, retrievers, seen))
        yield from () if spec.live else found  # those are in the workload, and what they ask is asked once


def _merged(stages: Sequence[StageEstimate]) -> list[StageEstimate]:
    """One line for all calls of a system, however many a query takes."""
    merged: dict[tuple[str, str, str, str], StageEstimate] = {}
    for s in stages:
        key = (s.domain, s.stage, s.calls_for, s.model)
        first = merged.get(key)
        if first is None:
            merged[key] = s
            continue
        merged[key] = first.model_copy(
            update={
                "calls": first.calls + s.calls,
                "input_tokens": first.input_tokens + s.input_tokens,
                "output_tokens": first.output_tokens + s.output_tokens,
                "training_tokens": first.training_tokens + s.training_tokens,
                "cost_usd": first.cost_usd + s.cost_usd if first.cost_usd and s.cost_usd else None,
                "seconds": first.seconds + s.seconds if first.seconds and s.seconds else None,
            }
        )
    return list(merged.values())


def paid_requests(ledger: Path) -> frozenset[str]:
    """The requests that have an answer in a ledger; none where there is no such file."""
    return answered_requests(ledger) if ledger.exists() else frozenset()


def estimate_work(
    config: RunConfig,
    ledger: Path,
    work: Sequence[tuple[Context, Work]],
    learners: Sequence[Learner],
    measure: Reporter | None = None,
) -> Estimate:
    """Price the calls of a recipe, each with the context in which it is made, and the trainings of the ``learners``."""
    answered = summarise_ledger(ledger).by_purpose_and_model() if ledger.exists() else {}
    contexts = list({id(c): c for c in (*(learner.context for learner in learners), *(c for c, _ in work))}.values())
    models = [w.model for _, w in work] + [context.strong for context in contexts]
    models += [context.weak for context in contexts if context.weak.trainable]
    texts = Texts({name: token_counter(name) for name in {model.tokenizer for model in models}})
    speeds = speeds_of(work, learners, texts, measure)
    stages = [
        _training(learner.context, t, speeds.get(known_as(t.model)))
        for learner in learners
        for t in learner.trainings(texts)
    ]
    stages += [_stage(context, w, texts, answered, speeds) for context, w in work]
    order = {context.name: number for number, context in enumerate(contexts)}
    stages.sort(key=lambda s: (order[s.domain], STAGES.index(s.stage)))  # stable: as they were among equals
    bought = [s for s in stages if s.paid]
    unpriced = sorted({s.model for s in bought if s.cost_usd is None})
    calls, tokens = _sum(s.calls for s in bought), _sum(s.input_tokens + s.output_tokens for s in bought)
    cost = None if unpriced else _sum(s.cost_usd for s in bought if s.cost_usd)
    return Estimate(
        name=config.name,
        stages=_merged(stages),
        already=sum(s.already for s in bought),
        calls=calls,
        tokens=tokens,
        cost_usd=cost,
        unpriced_models=unpriced,
        seconds=_sum(s.seconds for s in bought if s.seconds),
        budgets=list(_budgets(config, ledger, calls, tokens, cost)),
        assumptions=list(_assumptions(config, texts, work, answered, bool(bought))),
        memory=[need for need in dict.fromkeys(n for c in contexts for n in memory_needs(c)) if _comes(need, stages)],
        here=_here([s for s in stages if not s.paid], speeds),
    )


def _comes(need: MemoryNeed, stages: Sequence[StageEstimate]) -> bool:
    """Whether some stage is like this one: it trains, or its model answers in whatever stage."""
    answers = need.stage in ("sample", "feedback")
    return any(
        (s.domain, s.model) == (need.domain, need.model)
        and (s.stage == need.stage or (answers and not s.training_tokens.high))
        for s in stages
    )


def _here(stages: Sequence[StageEstimate], speeds: Mapping[str, Speed]) -> Here | None:
    if not stages:
        return None
    unknown = tuple(sorted({s.model for s in stages if s.seconds is None}))
    return Here(
        calls=_sum(s.calls for s in stages),
        input_tokens=_sum(s.input_tokens for s in stages),
        output_tokens=_sum(s.output_tokens for s in stages),
        training_tokens=_sum(s.training_tokens for s in stages),
        seconds=None if unknown else _sum(s.seconds for s in stages if s.seconds),
        unknown=unknown,
        speeds=tuple(sorted(speeds.values(), key=lambda speed: speed.model)),
    )


def _training(context: Context, training: Training, speed: Speed | None) -> StageEstimate:
    steps = _whole(training.steps)
    told = f"{steps.expected:,.0f} steps" if steps.low == steps.high else f"up to {steps.high:,.0f} steps"
    told += "" if training.number == 1 else f", round {training.number}"
    return StageEstimate(
        domain=context.name,
        stage=training.stage,
        calls_for=told,
        model=training.model.name,
        paid=False,
        batch=False,
        already=0,
        calls=ZERO,
        input_tokens=ZERO,
        output_tokens=ZERO,
        cost_usd=ZERO,
        seconds=speed and speed.training(training.tokens, training.read),
        training_tokens=_whole(training.tokens),
    )


def _stage(
    context: Context,
    work: Work,
    texts: Texts,
    answered: Mapping[tuple[str, str], Line],
    speeds: Mapping[str, Speed],
) -> StageEstimate:
    model, config = work.model, context.config
    batch = model.paid and work.stage == "feedback" and not work.live and config.feedback.mode == "batch"
    price, speed = model.batch_price if batch else model.price, None if model.paid else speeds.get(known_as(model))
    line, count, written = (
        answered.get((context.purpose(work.stage), model.name)),
        texts.of(model),
        texts.written(context, model),
    )
    known = line.output_tokens / line.calls if line is not None and line.calls >= SAMPLED else None
    if known is None and speed is not None and (config.prompts.reasons or work.drafting or not _reasons(context, work)):
        known = speed.answer_tokens
    answer = _answer(context, work, written, known)
    tokens_in, tokens_out = work.calls * _prompt(work, count, written), work.calls * answer
    here = speed and speed.answering(tokens_in, tokens_out)
    return StageEstimate(
        domain=context.name,
        stage=work.stage,
        calls_for=work.calls_for,
        model=model.name,
        paid=model.paid,
        batch=batch,
        already=work.already,
        calls=_whole(work.calls),
        input_tokens=_whole(tokens_in),
        output_tokens=_whole(tokens_out),
        cost_usd=ZERO if not model.paid else None if price is None else _cost(price, tokens_in, tokens_out),
        seconds=_seconds(model, work.calls, tokens_in + tokens_out, answer, batch) if model.paid else here,
    )


def _prompt(work: Work, count: Counter, written: Written) -> Range:
    """Tokens of one prompt: the mean of some real ones, two standard errors down and up, and the draft in it."""
    asked = [prompt_tokens(count, work.prompt(e, "")) for e in spread(work.queries)]
    mean, error = fmean(asked), 0.0
    if 1 < len(asked) < len(work.queries):
        error = 2 * stdev(asked) / math.sqrt(len(asked))
    prompt = Range(low=max(0.0, mean - error), expected=mean, high=mean + error)
    if work.drafted is None:
        return prompt
    if work.drafts:
        length = fmean(map(count, spread(work.drafts, 10 * SAMPLED)))
        return prompt + Range(low=length, expected=length, high=length)
    return prompt + bounded(written.drafts, fmean(written.drafts), work.drafted.max_tokens)


def _answer(context: Context, work: Work, written: Written, known: float | None) -> Range:
    """Generated tokens of one call; ``known`` is the mean of others like it."""
    most = work.sampling.max_tokens
    if work.written is not None:
        return bounded([work.written // 2], work.written, most)
    lengths = written.drafts if work.drafting else written.answers
    reasoning = 0 if work.drafting or not _reasons(context, work) else REASONING_TOKENS
    one = bounded(lengths, fmean(lengths) + reasoning if known is None else known, most)
    return one * Range(low=work.samples, expected=work.samples, high=work.samples)


def _reasons(context: Context, work: Work) -> bool:
    """Whether the strong model is asked to think in words, or may be: by a template of the recipe's own."""
    prompts = context.config.prompts
    if prompts.reasons or (prompts.solo, prompts.refine) != (None, None):
        return True
    one = work.queries[0]
    return list(work.prompt(one, "")) == list(build_baseline_frames(context.config, context.task).chain_of_thought(one))


def _seconds(model: Source, calls: Range, tokens: Range, answer: Range, batch: bool) -> Range:
    """The longest of: answers one after the other on each connection, and the rate limits. A batch takes up to a day."""
    if batch:
        return Range(low=0, expected=DAY_S if calls.expected else 0, high=DAY_S if calls.high else 0)

    def time(calls: float, tokens: float, answer: float) -> float:
        at_once = calls * (OVERHEAD_S + answer / TOKENS_PER_S) / min(model.concurrency, max(1.0, calls))
        requests, metre = model.per_minute
        paced = 60 * calls / requests if requests else 0.0
        metered = 60 * tokens / metre if metre else 0.0
        return max(at_once, paced, metered)

    return Range(
        low=time(calls.low, tokens.low, answer.low),
        expected=time(calls.expected, tokens.expected, answer.expected),
        high=time(calls.high, tokens.high, answer.high),
    )


def _cost(price: Price, tokens_in: Range, tokens_out: Range) -> Range:
    def cost(i: float, o: float) -> float:
        return price.cost(Usage(input_tokens=round(i), output_tokens=round(o)))

    return Range(
        low=cost(tokens_in.low, tokens_out.low),
        expected=cost(tokens_in.expected, tokens_out.expected),
        high=cost(tokens_in.high, tokens_out.high),
    )


def _budgets(config: RunConfig, ledger: Path, calls: Range, tokens: Range, cost: Range | None) -> Iterator[BudgetFit]:
    """A budget counts what the run has spent before, as the ledger has it."""
    bill = summarise_ledger(ledger, config.name) if ledger.exists() else None
    spent_usd = 0.0 if bill is None else bill.at_most_usd
    spent_calls = 0 if bill is None else bill.paid_calls + bill.maybe_paid
    spent_tokens = 0 if bill is None else bill.input_tokens + bill.output_tokens
    for name, limit, spent, more in (
        ("budget_usd", config.budget_usd, spent_usd, cost),
        ("budget_calls", config.budget_calls, spent_calls, calls),
        ("budget_tokens", config.budget_tokens, spent_tokens, tokens),
    ):
        if limit is None:
            continue
        if spent is None or more is None:
            yield BudgetFit(name=name, limit=limit, spent=spent, low=None, expected=None, high=None)
            continue
        low, expected, high = (spent + value <= limit for value in (more.low, more.expected, more.high))
        yield BudgetFit(name=name, limit=limit, spent=spent, low=low, expected=expected, high=high)


def _assumptions(
    config: RunConfig,
    texts: Texts,
    work: Sequence[tuple[Context, Work]],
    answered: Mapping[tuple[str, str], Line],
    bought: bool,
) -> Iterator[str]:
    for how in dict.fromkeys(texts.counters[w.model.tokenizer][1] for _, w in work):
        yield f"tokens: {how}"
    yield f"prompts: the mean of {SAMPLED} real ones, +- 2 standard errors; drafts: as long as SFT targets, high: max_tokens"
    purposes = {(context.purpose(w.stage), w.model.name) for context, w in work}
    known = any(line.calls >= SAMPLED for purpose, line in answered.items() if purpose in purposes)
    here = any(not w.model.paid for _, w in work)
    yield (
        f"answers: {'the mean of their purpose in the ledger, else ' if known else ''}"
        f"{'as a model here was seen to write, else ' if here else ''}as long as SFT targets + {REASONING_TOKENS} tokens where "
        "it is to reason; high: max_tokens (hidden reasoning counts within it); no retries"
    )
    if here:
        yield (
            "models here: an upper bound, as what prompts have in common is counted with each, and is read once; the loading of "
            "models and an encoder's work are not in it"
        )
    if not bought:
        return
    yield f"time: {OVERHEAD_S:g} s and {TOKENS_PER_S:g} tokens/s an answer, at your concurrency and rate limits; a batch up to 24 h"
    yield f"prices: the recipe's, else list prices known on {price_list().date}; check your provider's page"
    for note in dict.fromkeys(note for _, w in work if w.model.paid for note in w.model.notes()):
        yield f"models: {note}"
    if config.cache != "read":
        yield f"cache: {config.cache}: answers in the ledger are asked for anew"


def _sum(ranges: Iterator[Range]) -> Range:
    return sum(ranges, ZERO)


def _whole(r: Range) -> Range:
    return Range(low=round(r.low), expected=round(r.expected), high=round(r.high))
