"""What ``cowest estimate`` prints."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from cowest.costs.estimate import BudgetFit, Estimate, StageEstimate
from cowest.costs.local import Here
from cowest.costs.work import Range
from cowest.training.memory import gib

WIDTH, WIDTH_HERE = 132, 170
"""Where the output is no terminal; trainings and two models have more columns."""


def print_estimate(found: Estimate) -> None:
    """A line for each kind of call, the totals, and what they rest on, on stdout."""
    wide = WIDTH if found.here is None else WIDTH_HERE
    console = Console(width=None if Console().is_terminal else wide, highlight=False)
    console.print(_table(found))
    for line in (
        *_totals(found),
        *map(_budget, found.budgets),
        *_memory(found),
        *(f"- {a}" for a in found.assumptions),
    ):
        console.print(line, markup=False, soft_wrap=True)


def _table(found: Estimate) -> Table:
    several = len({s.model for s in found.stages}) > 1
    table = Table(title=f"{found.name}: expected \\[low, high]", title_justify="left")
    for column in ("stage", "calls for", *(("model",) if several else ())):
        table.add_column(column, overflow="fold")
    there = ("there",) if any(s.already for s in found.stages) else ()
    training = any(s.training_tokens.high for s in found.stages)
    paid = any(s.paid for s in found.stages)
    amounts_of = ("calls", "prompt tokens", "new tokens", *(("training tokens",) if training else ()))
    for column in (*there, *amounts_of, *(("USD",) if paid else ()), "time"):
        table.add_column(column, justify="right")
    for s in found.stages:
        model = (s.model,) if several else ()
        already = (f"{s.already:,}",) if there else ()
        taught = (_count(s.training_tokens) if s.training_tokens.high else "",) if training else ()
        asked = (
            ("", "", "")
            if s.training_tokens.high
            else (_count(s.calls), _count(s.input_tokens), _count(s.output_tokens))
        )
        amounts = (*already, *asked, *taught, *((_price(s),) if paid else ()))
        time = (
            ""
            if s.seconds is None
            else f"up to {_duration(s.seconds.high)}"
            if s.batch
            else _duration(s.seconds.expected)
            if s.paid
            else _time(s.seconds)
        )
        table.add_row(f"{s.domain}: {s.stage}" if s.domain else s.stage, s.calls_for, *model, *amounts, time)
    return table


def _totals(found: Estimate) -> Iterator[str]:
    here = sorted({s.model for s in found.stages if not s.paid})
    if here:
        yield f"{', '.join(here)}: runs here, costs nothing"
    if found.here is not None:
        yield from _here(found.here)
    if len(here) == len({s.model for s in found.stages}):
        return
    already = f"; {found.already:,} answers are there already and not paid for again" if found.already else ""
    yield f"In all: {_count(found.calls)} calls, {_count(found.tokens)} tokens, {_time(found.seconds)}{already}"
    if found.cost_usd is not None:
        yield f"Cost:   USD {_usd(found.cost_usd)}"
        return
    for model in found.unpriced_models:
        yield f"Cost:   unknown: no price known for {model}: set strong.price (or that of the section which names it)"


def _here(here: Here) -> Iterator[str]:
    learned = f", {_count(here.training_tokens)} training tokens" if here.training_tokens.high else ""
    tokens = f"{_count(here.input_tokens)} prompt tokens, {_count(here.output_tokens)} new tokens"
    yield f"Here:   {_count(here.calls)} calls, {tokens}{learned}"
    if here.seconds is not None:
        yield f"Time:   {_time(here.seconds)}"
    else:
        yield f"Time:   not known for {', '.join(here.unknown)}: `cowest estimate RECIPE --measure` measures it in a minute or some"
    for speed in here.speeds:
        rates = (
            (speed.prompt_tokens_per_s, "prompt"), (speed.new_tokens_per_s, "new"), (speed.training_tokens_per_s, "training")
        )  # fmt: skip
        told = ", ".join(f"{rate:,.0f} {what} tokens/s" for rate, what in rates if rate is not None)
        yield f"Speed:  {speed.model}: {told}{': ' if told else ''}{speed.how}"


def _memory(found: Estimate) -> Iterator[str]:
    """The most that each stage takes on this machine, in the domain where it takes most; those first that take most."""
    largest = {(need.stage, need.model): need for need in sorted(found.memory, key=lambda need: need.total)}
    for need in sorted(largest.values(), key=lambda need: -need.total):
        stage = f"{need.domain}: {need.stage}" if need.domain else need.stage
        fits = "" if need.free is None else f"; {gib(need.free)} are free now"
        if need.split is not None:
            fits += f": it will be done with {need.split}"
        elif need.fits is False:
            fits += ": NOT ENOUGH: the run will stop there; lower batch_size or max_length, or free some"
        yield (
            f"Memory: {stage} ({need.model}): up to {gib(need.total)} (weights {gib(need.weights)}, {need.rows} x "
            f"{need.tokens:,} tokens {gib(need.working)}){fits}"
        )


def _budget(fit: BudgetFit) -> str:
    if fit.high is None:
        return f"{fit.name} {fit.limit:g}: cannot be kept, as a price is not known"
    fits = [word for word in ("low", "expected", "high") if getattr(fit, word)]
    spent = f" ({fit.spent:.4g} are spent)" if fit.spent else ""
    if not fits:
        return f"{fit.name} {fit.limit:g}{spent}: not enough even for the low estimate; the run will stop there"
    return f"{fit.name} {fit.limit:g}{spent}: enough for the {', '.join(fits)} estimate"


def _price(s: StageEstimate) -> str:
    if not s.paid:
        return "none"
    return "unknown" if s.cost_usd is None else _usd(s.cost_usd)


def _count(r: Range) -> str:
    return _shown(_short(r.low), _short(r.expected), _short(r.high))


def _usd(r: Range) -> str:
    return _shown(_money(r.low), _money(r.expected), _money(r.high))


def _money(usd: float) -> str:
    """Cents, and below one what it is: only what costs nothing is 0.00."""
    if usd == 0 or usd >= 0.01:
        return f"{usd:,.2f}"
    return f"{usd:.4f}" if usd >= 0.0001 else "<0.0001"


def _time(r: Range) -> str:
    return _shown(_duration(r.low), _duration(r.expected), _duration(r.high))


def _shown(low: str, expected: str, high: str) -> str:
    return expected if low == expected == high else f"{expected} [{low}, {high}]"


def _short(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:,.1f}M"
    return f"{value / 1e3:,.0f}k" if value >= 1e4 else f"{value:,.0f}"


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
