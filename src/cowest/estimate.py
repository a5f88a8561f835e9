"""What a recipe will cost, before anything is paid: calls, tokens, USD and time of each stage that calls a paid model.

Prompts are real ones (the recipe's frames around its own questions). What cannot be known yet is bounded:

    draft        low: the shortest quarter of the SFT targets; expected: their mean; high: draft.sampling.max_tokens
    answer       low: the SFT targets' mean; expected: the ledger's mean for this purpose where there is one, else a third of
                 max_tokens, and no less than the targets' mean; high: max_tokens
    calls        drafts of a query that are equal share a call, and so do equal requests: the low figure has one draft a query
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cowest.build import model_path
from cowest.config import LocalModelConfig, ModelConfig, OpenAIModelConfig, RunConfig
from cowest.errors import ConfigError
from cowest.ledger_summary import Line, summarise_ledger
from cowest.opened import ledger_path
from cowest.pipeline import prepare
from cowest.prices import Price, price_of, prices_date
from cowest.progress import QuietReporter
from cowest.stages.base import Context
from cowest.stages.evaluate import test_queries
from cowest.stages.learn import training_queries
from cowest.tokens import MESSAGE_TOKENS, token_counter
from cowest.types import Example, Message, Record, Sampling, Usage

SAMPLED = 20
"""Queries whose prompts are measured in each stage."""
TOKENS_PER_S = 50.0
OVERHEAD_S = 0.5
"""Time of one answer where the ledger knows none: half a second, and 50 tokens a second. An assumption, and told as one."""


class Range(Record):
    """A quantity whose expected value lies between two bounds."""

    low: float
    expected: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(low=self.low + other.low, expected=self.expected + other.expected, high=self.high + other.high)


ZERO = Range(low=0, expected=0, high=0)


class StageEstimate(Record):
    """One kind of call in one stage of one domain. ``cost_usd`` is None where no price is known, 0 for a model that runs here."""

    domain: str
    stage: str
    calls_for: str
    model: str
    calls: Range
    input_tokens: Range
    output_tokens: Range
    cost_usd: Range | None
    seconds: Range


class Estimate(Record):
    """The whole recipe. ``already_paid`` answers are in the ledger and will not be paid again (they are not subtracted)."""

    name: str
    stages: list[StageEstimate]
    calls: Range
    tokens: Range
    cost_usd: Range | None
    unpriced_models: list[str]
    seconds: Range
    already_paid: int
    already_paid_usd: float | None
    budget: list[str]
    assumptions: list[str]


@dataclass(frozen=True, slots=True)
class _Calls:
    """A kind of call: how many of them, what their prompts look like, how long an answer can be."""

    stage: str
    calls_for: str
    model: ModelConfig
    calls: Range
    prompts: Callable[[Example, str], Sequence[Message]]
    queries: Sequence[Example]
    sampling: Sampling
    drafted: bool = False


def estimate(config: RunConfig, out: Path) -> Estimate:
    """Estimate a recipe that would run in ``out``. Raises ConfigError or DataError as ``cowest validate`` does; wants no key."""
    contexts = prepare(config, out, QuietReporter(), offline=True)
    measured, paid, paid_usd = _measured(config, out)
    counter, how = token_counter(_tokenizer(config))
    stages = [
        _stage(context, kind, counter, measured)
        for context in contexts
        for kind in _kinds(context)
        if isinstance(kind.model, OpenAIModelConfig)
    ]
    unpriced = sorted({s.model for s in stages if s.cost_usd is None})
    cost = None if unpriced else sum((s.cost_usd for s in stages if s.cost_usd), ZERO)
    calls = sum((s.calls for s in stages), ZERO)
    tokens = sum((s.input_tokens + s.output_tokens for s in stages), ZERO)
    return Estimate(
        name=config.name,
        stages=stages,
        calls=calls,
        tokens=tokens,
        cost_usd=cost,
        unpriced_models=unpriced,
        seconds=sum((s.seconds for s in stages), ZERO),
        already_paid=paid,
        already_paid_usd=paid_usd,
        budget=list(_budget(config, calls, tokens, cost)),
        assumptions=_assumptions(how, bool(measured)),
    )


def _kinds(context: Context) -> Iterator[_Calls]:
    """Every kind of model call that a run of this recipe makes, in order."""
    c, frames = context.config, context.frames
    served = isinstance(c.weak, OpenAIModelConfig)
    train, test = training_queries(context), test_queries(context)
    validation = context.task.examples("validation")[: c.align.selection_queries]
    samples = c.draft.samples

    def draft(e: Example, _: str) -> Sequence[Message]:
        return frames.draft(e)

    def solo(e: Example, _: str) -> Sequence[Message]:
        return frames.solo(e)

    if served:
        yield _Calls("sample", "drafts", c.weak, _all(len(train) * samples), draft, train, c.draft.sampling)
    yield _Calls("feedback", "strong alone", c.strong, _all(len(train)), solo, train, c.feedback.sampling)
    some = _between(len(train), len(train) * samples)
    yield _Calls("feedback", "refine drafts", c.strong, some, frames.refine, train, c.feedback.sampling, drafted=True)
    if c.feedback.judge is not None:
        judged = _between(len(train), len(train) * (2 * samples + 1))
        sampling = Sampling(max_tokens=512)
        yield _Calls("feedback", "judge", c.feedback.judge, judged, frames.refine, train, sampling, drafted=True)
    if not served:
        every = len(validation) * (c.align.checkpoints + 1)
        picks = _between(len(validation), every)
        yield _Calls(
            "align", "choose a checkpoint", c.strong, picks, frames.refine, validation, c.evaluate.answer, drafted=True
        )
    for name in c.systems:
        if name != "strong" and served:
            yield _Calls("evaluate", f"{name}: drafts", c.weak, _between(0, len(test)), draft, test, c.evaluate.draft)
        if name == "strong":
            yield _Calls("evaluate", name, c.strong, _all(len(test)), solo, test, c.evaluate.answer)
        elif name != "weak":
            yield _Calls(
                "evaluate", name, c.strong, _all(len(test)), frames.refine, test, c.evaluate.answer, drafted=True
            )


def _stage(
    context: Context, kind: _Calls, count: Callable[[str], int], measured: dict[tuple[str, str], Line]
) -> StageEstimate:
    model = kind.model
    assert isinstance(model, OpenAIModelConfig)
    drafts = _drafts(context, kind, count)
    prompts = [
        sum(count(m.content) + MESSAGE_TOKENS for m in kind.prompts(e, "")) for e in _spread(kind.queries, SAMPLED)
    ]
    prompt = sum(prompts) / len(prompts)
    known = measured.get((f"{context.label}{kind.stage}", model.model))
    most, shortest = float(kind.sampling.max_tokens), _targets(context, count)[1]
    mean = known.output_tokens / known.calls if known is not None else min(most, max(shortest, most / 3))
    low = min(mean, shortest)
    per_call_in = Range(low=prompt + drafts.low, expected=prompt + drafts.expected, high=max(prompts) + drafts.high)
    per_call_out = Range(low=low, expected=mean, high=max(most, mean))
    calls, tokens_in, tokens_out = kind.calls, _times(kind.calls, per_call_in), _times(kind.calls, per_call_out)
    batch = kind.stage == "feedback" and context.config.feedback.mode == "batch"
    price = price_of(model.model, model.price)
    if price is not None and batch:
        price = price.discounted(model.batch.discount)
    return StageEstimate(
        domain=context.label.removesuffix(": "),
        stage=kind.stage,
        calls_for=kind.calls_for,
        model=model.model,
        calls=calls,
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        cost_usd=None if price is None else _cost(price, tokens_in, tokens_out),
        seconds=_seconds(model, calls, tokens_in + tokens_out, per_call_out, batch),
    )


def _drafts(context: Context, kind: _Calls, count: Callable[[str], int]) -> Range:
    """Tokens that a draft adds to a prompt."""
    if not kind.drafted:
        return ZERO
    low, mean = _targets(context, count)
    sampling = context.config.draft.sampling if kind.stage == "feedback" else context.config.evaluate.draft
    return Range(low=low, expected=min(mean, sampling.max_tokens), high=sampling.max_tokens)


def _targets(context: Context, count: Callable[[str], int]) -> tuple[float, float]:
    """Lengths of SFT targets: the first quartile, and the mean. A weak model learns to write such texts."""
    lengths = sorted(count(context.task.target(e)) for e in _spread(context.task.examples("train"), 4 * SAMPLED))
    return float(lengths[len(lengths) // 4]), sum(lengths) / len(lengths)


def _seconds(model: OpenAIModelConfig, calls: Range, tokens: Range, answer: Range, batch: bool) -> Range:
    """The longest of: answers one after the other on each connection, and the rate limits. A batch takes up to a day."""
    if batch:
        return Range(low=60, expected=4 * 3600, high=24 * 3600)

    def time(calls: float, tokens: float, answer: float) -> float:
        at_once = calls * (OVERHEAD_S + answer / TOKENS_PER_S) / model.concurrency
        paced = 60 * calls / model.requests_per_minute if model.requests_per_minute else 0.0
        metered = 60 * tokens / model.tokens_per_minute if model.tokens_per_minute else 0.0
        return max(at_once, paced, metered)

    return Range(
        low=time(calls.low, tokens.low, answer.low),
        expected=time(calls.expected, tokens.expected, answer.expected),
        high=time(calls.high, tokens.high, answer.high),
    )


def _measured(config: RunConfig, out: Path) -> tuple[dict[tuple[str, str], Line], int, float | None]:
    """What a ledger that is there tells: lines by purpose and model, answers paid for, and their cost."""
    path = ledger_path(config, out)
    if not path.exists():
        return {}, 0, None
    bill = summarise_ledger(path)
    return bill.by_purpose_and_model(), bill.answered, bill.cost_usd


def _tokenizer(config: RunConfig) -> str | None:
    if isinstance(config.strong, OpenAIModelConfig):
        return config.strong.tokenizer
    return model_path(config.strong.model) if isinstance(config.strong, LocalModelConfig) else None


def _budget(config: RunConfig, calls: Range, tokens: Range, cost: Range | None) -> Iterator[str]:
    for name, limit, found in (
        ("budget_calls", config.budget_calls, calls),
        ("budget_tokens", config.budget_tokens, tokens),
        ("budget_usd", config.budget_usd, cost),
    ):
        if limit is None:
            continue
        if found is None:
            raise ConfigError(f"{name}: no price is known, so it cannot be kept; give the models' price: settings")
        fits = [word for word, value in found if value <= limit]
        yield (
            f"{name} {limit:g}: enough for the {', '.join(fits)} estimate"
            if fits
            else f"{name} {limit:g}: not enough even for the low estimate"
        )


def _assumptions(how: str, measured: bool) -> list[str]:
    answers = (
        "the mean of this ledger's answers"
        if measured
        else "a third of max_tokens, or the training targets' length if that is more"
    )
    return [
        f"tokens counted by: {how}",
        f"expected length of an answer: {answers}; high: max_tokens. Hidden reasoning of reasoning models counts within max_tokens",
        f"time: {OVERHEAD_S:g} s and {TOKENS_PER_S:g} tokens/s an answer, at your concurrency and rate limits",
        f"prices: the recipe's, else list prices known on {prices_date()}; check your provider's page",
    ]


def _spread(items: Sequence[Example], n: int) -> Sequence[Example]:
    """About ``n`` of them, evenly."""
    return items[:: max(1, len(items) // n)]


def _all(n: int) -> Range:
    return Range(low=n, expected=n, high=n)


def _between(low: int, high: int) -> Range:
    return Range(low=low, expected=high, high=high)


def _times(a: Range, b: Range) -> Range:
    return Range(low=a.low * b.low, expected=a.expected * b.expected, high=a.high * b.high)


def _cost(price: Price, tokens_in: Range, tokens_out: Range) -> Range:
    def cost(i: float, o: float) -> float:
        return price.cost(Usage(input_tokens=round(i), output_tokens=round(o)))

    return Range(
        low=cost(tokens_in.low, tokens_out.low),
        expected=cost(tokens_in.expected, tokens_out.expected),
        high=cost(tokens_in.high, tokens_out.high),
    )
