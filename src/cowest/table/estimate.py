"""What a table will cost: the stages of its variants, each once however many rows read it, and the calls of its rows.

A row's calls are counted by answering some of its queries with stand-ins (:mod:`cowest.table.dry`); requests that an earlier row
makes as well are free. FLARE's look-ups are bounded: none, and as many as it may make.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from cowest.assembly.context import Context
from cowest.assembly.opened import ledger_path
from cowest.assembly.sources import Source
from cowest.assembly.systems import Retrievers
from cowest.costs.estimate import Estimate, StageEstimate, estimate_work, paid_requests, spread
from cowest.costs.workload import Range, Work, workload
from cowest.ledger.ledger import call_of
from cowest.pipeline import stages_of
from cowest.recipe.config import RunConfig
from cowest.run.freshness import lineage
from cowest.run.identity import fingerprint
from cowest.run.progress import QuietReporter
from cowest.stages.evaluate import test_queries
from cowest.systems.spec import SystemSpec
from cowest.table.dry import Asked, dry_run
from cowest.table.plan import make_plan
from cowest.table.row_stage import row_file
from cowest.table.run import Variant, open_plan
from cowest.types import Example, Message, Prediction

SAMPLED = 6
"""Queries of each row that are answered with stand-ins."""
TRAINING = ("sample", "feedback", "align")


def estimate_table(config: RunConfig, out: Path) -> Estimate:
    """Estimate what a table would still cost if it were run in ``out``. Raises what :func:`cowest.table.plan.make_plan` raises."""
    plan = make_plan(config)
    ledger = ledger_path(config, out)
    work: list[tuple[Context, Work]] = []
    for variants in open_plan(plan, out, QuietReporter(), offline=True):
        work += _training(variants, paid_requests(ledger))
        work += _rows(variants)
    found = estimate_work(config, ledger, work)
    return found.model_copy(update={"stages": _merged(found.stages)})


def _merged(stages: Sequence[StageEstimate]) -> list[StageEstimate]:
    """One line for all calls of a row, however many a query takes."""
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


def _training(variants: Sequence[Variant], paid: frozenset[str]) -> Iterator[tuple[Context, Work]]:
    """The calls of the variants' stages; a stage that two variants share is counted once."""
    seen: set[str] = set()
    for variant in variants:
        needs = {row.needs for row in variant.rows}
        wanted = TRAINING if "align" in needs else ("sample",) if "sample" in needs else ()
        prints = _lineage(variant.context)
        for work in workload(variant.context, paid):
            if work.stage not in wanted:
                continue
            key = prints[work.stage]
            if work.calls_for == "strong alone":  # the same request in every draft format, answered from the ledger
                key = fingerprint(_known_as(work.model), work.sampling.model_dump(mode="json"))
            key = f"{key} {work.calls_for}"
            if key not in seen:
                seen.add(key)
                yield variant.context, work


def _lineage(context: Context) -> dict[str, str]:
    return lineage(stages_of(context.config), lambda stage: stage.depends(context))


def _known_as(model: Source) -> str:
    return fingerprint(dict(model.identity("model").values))


def _rows(variants: Sequence[Variant]) -> Iterator[tuple[Context, Work]]:
    retrievers, seen = Retrievers(), set[str]()
    for variant in variants:
        for row in variant.rows:
            yield from ((variant.context, work) for work in _row(variant.context, row, retrievers, seen))


def _row(context: Context, row: SystemSpec, retrievers: Retrievers, seen: set[str]) -> Iterator[Work]:
    queries = test_queries(context)
    sampled = spread(queries, SAMPLED)
    done = {p.example_id for p in context.run.file(row_file(row), Prediction).load() if p.error is None}
    left = len([e for e in queries if e.id not in done])
    for model, name in ((context.weak, "weak"), (context.strong, "strong")):
        if not model.paid:
            continue
        low = _asked(context, row, sampled, retrievers, name, set(seen), sure=1.0)
        high = _asked(context, row, sampled, retrievers, name, seen, sure=1e-9)
        for number in range(max(map(len, high.values()), default=0)):
            share_low = sum(number < len(asked) for asked in low.values()) / len(sampled)
            share_high = sum(number < len(asked) for asked in high.values()) / len(sampled)
            yield _work(model, row, number, high, sampled, left, share_low, share_high, len(done))


def _work(
    model: Source,
    row: SystemSpec,
    number: int,
    asked: dict[str, list[Asked]],
    sampled: Sequence[Example],
    left: int,
    low: float,
    high: float,
    done: int,
) -> Work:
    """The ``number``-th call of a row's queries, as far as they make one."""
    having = [e for e in sampled if number < len(asked[e.id])]

    def prompt(example: Example, _: str) -> Sequence[Message]:
        return asked[example.id][number].messages

    return Work(
        stage="rows",
        calls_for=row.name,
        model=model,
        calls=Range(low=left * low, expected=left * (low + high) / 2, high=left * high),
        already=done,
        queries=having,
        prompt=prompt,
        sampling=asked[having[0].id][number].sampling,
    )


def _asked(
    context: Context,
    row: SystemSpec,
    queries: Sequence[Example],
    retrievers: Retrievers,
    model: str,
    seen: set[str],
    sure: float,
) -> dict[str, list[Asked]]:
    """The requests to one model that no earlier row of the unit makes, by query."""
    found = defaultdict[str, list[Asked]](list)
    described = context.weak if model == "weak" else context.strong
    weak = _lineage(context).get(row.needs, "") if row.uses == "both" else ""

    async def run() -> None:
        for example in queries:
            _, asked = await dry_run(context, row, example, retrievers, sure)
            found[example.id] = []
            # A draft, and so a request that holds it, is another one where another weak model, or the same one otherwise, is asked.
            drafted = fingerprint(weak, *(a.sampling.model_dump(mode="json") for a in asked if a.model != "strong"))
            for index, a in enumerate(asked):
                if not a.model.startswith(model):
                    continue
                call = call_of(_known_as(described), a.messages, a.sampling, {}, None)
                key = f"{drafted} {call.key}"
                if key not in seen:
                    found[example.id].append(asked[index])
                seen.add(key)

    asyncio.run(run())
    return dict(found)
