"""What a recipe will cost, before anything is paid: calls, tokens, USD and time of each stage that calls a strong model.

Prompts are real ones (the recipe's frames around its own questions); :mod:`cowest.costs.workload` counts the calls.
What cannot be known yet is bounded:

    draft        low: the shortest quarter of the SFT targets; expected: their mean; high: the drafts' max_tokens
    answer       low: the shortest quarter of the SFT targets; expected: the ledger's mean for this purpose where there is
                 one, else the targets' mean + 150 tokens; high: max_tokens
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Final

from cowest.assembly.context import Context
from cowest.assembly.opened import ledger_path
from cowest.assembly.prepare import prepare
from cowest.assembly.sources import Source
from cowest.assembly.systems import Retrievers
from cowest.costs.memory import MemoryNeed, memory_needs
from cowest.costs.systems import system_work
from cowest.costs.workload import ZERO, Range, Work, current_stages, spread, workload
from cowest.ledger.prices import Price, prices_date
from cowest.ledger.summary import Line, answered_requests, summarise_ledger
from cowest.models.tokens import prompt_tokens, token_counter
from cowest.recipe.config import RunConfig
from cowest.run.progress import QuietReporter
from cowest.stages.learn import sft_examples
from cowest.systems.registry import evaluated
from cowest.types import Prediction, Record, Usage

SAMPLED: Final = 20
"""Queries whose prompts are measured in each stage; and answers of a purpose that a mean in the ledger needs."""
REASONING_TOKENS: Final = 150
"""What a strong model writes beyond what the SFT targets say, where the ledger knows no better."""
TOKENS_PER_S: Final = 50.0
OVERHEAD_S: Final = 0.5
"""Time of one answer: half a second, and 50 tokens a second. An assumption, and told as one."""
DAY_S: Final = 24 * 3600.0

Counter = Callable[[str], int]


class StageEstimate(Record):
    """One kind of call in one stage of one domain, as far as it is still to be made; ``already`` answers are there.

    ``cost_usd`` is None where no price is known, 0 for a model that runs here (``paid`` false), whose ``seconds`` are not known.
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


@dataclass(frozen=True, slots=True)
class _Written:
    """Token counts of the SFT targets of one domain: what the weak model learns to write, and what a right answer needs."""

    drafts: Sequence[int]
    answers: Sequence[int]


@dataclass(frozen=True, slots=True)
class _Counts:
    """How each model's tokens are counted; a tokenizer is loaded once."""

    counters: Mapping[str | None, tuple[Counter, str]]

    def of(self, model: Source) -> Counter:
        return self.counters[model.tokenizer][0]


def estimate(config: RunConfig, out: Path) -> Estimate:
    """Estimate what a recipe would still cost if it were run in ``out``. Wants no key, and no event loop that runs already.

    Raises ConfigError or DataError as ``cowest validate`` does.
    """
    contexts = prepare(config, out, QuietReporter(), offline=True)
    ledger = ledger_path(config, out)
    paid = paid_requests(ledger)
    return estimate_work(config, ledger, [(context, w) for context in contexts for w in _works(context, paid)])


def _works(context: Context, paid: frozenset[str]) -> Iterator[Work]:
    yield from workload(context, paid)
    fresh, retrievers, seen = "evaluate" in current_stages(context), Retrievers(), set[str]()
    specs, _ = evaluated(context.config)
    for spec in specs if not all(spec.live for spec in specs) else ():
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
                "cost_usd": first.cost_usd + s.cost_usd if first.cost_usd and s.cost_usd else None,
                "seconds": first.seconds + s.seconds if first.seconds and s.seconds else None,
            }
        )
    return list(merged.values())


def paid_requests(ledger: Path) -> frozenset[str]:
    """The requests that have an answer in a ledger; none where there is no such file."""
    return answered_requests(ledger) if ledger.exists() else frozenset()


def estimate_work(config: RunConfig, ledger: Path, work: Sequence[tuple[Context, Work]]) -> Estimate:
    """Price the calls of a recipe, each with the context in which it is made."""
    measured = summarise_ledger(ledger).by_purpose_and_model() if ledger.exists() else {}
    models = [w.model for _, w in work] + [context.strong for context, _ in work]
    counts = _Counts({name: token_counter(name) for name in {model.tokenizer for model in models}})
    contexts = list({id(context): context for context, _ in work}.values())
    written = {context.name: _written(context, counts.of(context.strong)) for context, _ in work}
    stages = [_stage(context, w, counts.of(w.model), written[context.name], measured) for context, w in work]
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
        assumptions=list(_assumptions(config, counts, work, measured)) if bought else [],
        memory=list(dict.fromkeys(need for context in contexts for need in memory_needs(context))),
    )


def _stage(
    context: Context, work: Work, count: Counter, written: _Written, measured: Mapping[tuple[str, str], Line]
) -> StageEstimate:
    model, config = work.model, context.config
    batch = model.paid and work.stage == "feedback" and config.feedback.mode == "batch"
    price = model.batch_price if batch else model.price
    known = measured.get((context.purpose(work.stage), model.name))
    answer = _answer(work, written, known)
    tokens_in, tokens_out = work.calls * _prompt(work, count, written), work.calls * answer
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
        seconds=_seconds(model, work.calls, tokens_in + tokens_out, answer, batch) if model.paid else None,
    )


def _prompt(work: Work, count: Counter, written: _Written) -> Range:
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
    return prompt + _length(written.drafts, fmean(written.drafts), work.drafted.max_tokens)


def _answer(work: Work, written: _Written, known: Line | None) -> Range:
    """Generated tokens of one call."""
    most = work.sampling.max_tokens
    if known is not None and known.calls >= SAMPLED:
        one = _length(written.answers, known.output_tokens / known.calls, most)
    elif work.calls_for == "drafts":
        one = _length(written.drafts, fmean(written.drafts), most)
    else:
        one = _length(written.answers, fmean(written.answers) + REASONING_TOKENS, most)
    return one * Range(low=work.samples, expected=work.samples, high=work.samples)


def _length(lengths: Sequence[int], expected: float, most: int) -> Range:
    """From the mean of the shortest quarter to the most that there can be."""
    shortest = fmean(sorted(lengths)[: max(1, len(lengths) // 4)])
    expected = min(expected, most)
    return Range(low=min(shortest, expected), expected=expected, high=most)


def _written(context: Context, count: Counter) -> _Written:
    examples = spread(sft_examples(context), 10 * SAMPLED)
    targets = [context.task.target(e) for e in examples]
    drafts = [context.format.completion(t, e) for t, e in zip(targets, examples, strict=True)]
    answers = [count(t) for t in targets]
    return _Written([count(d) for d in drafts if d is not None] or answers, answers)


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
    counts: _Counts,
    work: Sequence[tuple[Context, Work]],
    measured: Mapping[tuple[str, str], Line],
) -> Iterator[str]:
    for how in dict.fromkeys(counts.counters[w.model.tokenizer][1] for _, w in work):
        yield f"tokens: {how}"
    yield f"prompts: the mean of {SAMPLED} real ones, +- 2 standard errors; drafts: as long as SFT targets, high: max_tokens"
    purposes = {(context.purpose(w.stage), w.model.name) for context, w in work}
    known = any(line.calls >= SAMPLED for purpose, line in measured.items() if purpose in purposes)
    yield (
        f"answers: {'the mean of their purpose in the ledger, else ' if known else ''}as long as SFT targets + {REASONING_TOKENS} "
        "tokens; high: max_tokens (hidden reasoning counts within it); no retries"
    )
    yield f"time: {OVERHEAD_S:g} s and {TOKENS_PER_S:g} tokens/s an answer, at your concurrency and rate limits; a batch up to 24 h"
    yield f"prices: the recipe's, else list prices known on {prices_date()}; check your provider's page"
    if config.cache != "read":
        yield f"cache: {config.cache}: answers in the ledger are asked for anew"


def _sum(ranges: Iterator[Range]) -> Range:
    return sum(ranges, ZERO)


def _whole(r: Range) -> Range:
    return Range(low=round(r.low), expected=round(r.expected), high=round(r.high))
