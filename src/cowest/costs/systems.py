"""What a system will ask that does more than put the frames to the models: it answers some queries with stand-ins.

Requests that an earlier system makes as well are free. What a system may do or not is bounded: FLARE's look-ups, questions that are
asked, a choice among drafts and the strong calls of a guard's rows are none, or as many as there can be.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

from pydantic import JsonValue

from cowest.assembly.context import Context
from cowest.assembly.sources import Source
from cowest.assembly.stand_ins import Asked, dry_run
from cowest.assembly.systems import Retrievers
from cowest.costs.guard import calls_seen
from cowest.costs.work import Range, Work, spread
from cowest.ledger.ledger import call_of
from cowest.pipeline import stages_of
from cowest.run.freshness import lineage
from cowest.run.identity import fingerprint
from cowest.stages.evaluate import test_queries
from cowest.stages.guard import guard_stages
from cowest.stages.loop import rounds_of
from cowest.systems.spec import SystemSpec
from cowest.types import Example, Message

SAMPLED = 6
"""Queries that are answered with stand-ins."""


def lineage_of(context: Context, guarded: bool = False) -> dict[str, str]:
    """What each stage of a recipe follows from, by its name: equal for stages that would make the same.

    Of all rounds that may come; ``aligned`` is what the model that the run leaves follows from, whichever round's it is.
    ``guarded``: with the stages of a guard, whether the recipe's own systems need one or not.
    """
    rounds = rounds_of(context.config)
    stages = stages_of(context.config, rounds)
    there = {stage.name for stage in stages}
    more = [stage for stage in guard_stages(context.config, rounds) if stage.name not in there] if guarded else []
    found = lineage((*stages, *more), lambda stage: stage.depends(context))
    left = [found[name] for round_ in rounds if (name := round_.stage("align")) in found]
    return found | {"aligned": left[0] if len(left) == 1 else fingerprint(*left)}


def known_as(model: Source) -> str:
    """Equal for models that answer alike."""
    return fingerprint(dict(model.identity("model").values))


def system_work(
    context: Context,
    spec: SystemSpec,
    stage: str,
    done: Collection[str],
    retrievers: Retrievers,
    seen: set[str],
    remembered: bool = False,
) -> Iterator[Work]:
    """A system's calls to the models, of the queries that are not ``done``.

    ``seen`` are the requests of the systems before it, and gets this one's. ``remembered``: what a model on this machine has
    answered is not asked again, as in a table; else that holds for those that are paid for alone.
    """
    queries = test_queries(context)
    sampled = spread(queries, SAMPLED)
    left, seen_calls = len([e for e in queries if e.id not in done]), calls_seen(context, spec)
    others = context.models.sources.specialists.items() if spec.specialists else ()
    models = [(context.weak, "weak"), (context.strong, "strong")]
    for model, name in (*models, *((source, f"specialist {n}") for n, source in others)):
        earlier = seen if model.paid or remembered else set[str]()
        low = _asked(context, spec, sampled, retrievers, model, name, set(earlier), busy=False)
        high = _asked(context, spec, sampled, retrievers, model, name, earlier, busy=True)
        for number in range(max(map(len, high.values()), default=0)):
            share_low = sum(number < len(asked) for asked in low.values()) / len(sampled)
            share_high = sum(number < len(asked) for asked in high.values()) / len(sampled)
            expected = (share_low + share_high) / 2
            if seen_calls is not None and name == "strong":  # of a guard that is there already
                expected = min(max(share_low, seen_calls - number), share_high)
            calls = Range(low=left * share_low, expected=left * expected, high=left * share_high)
            yield _work(stage, spec, model, number, calls, high, len(done))


def _work(
    stage: str, spec: SystemSpec, model: Source, number: int, calls: Range, asked: dict[str, list[Asked]], done: int
) -> Work:
    """The ``number``-th call of a system's queries, as far as they make one."""
    having = {id_: requests for id_, requests in asked.items() if number < len(requests)}

    def prompt(example: Example, _: str) -> Sequence[Message]:
        return having[example.id][number].messages

    return Work(
        stage=stage,
        calls_for=spec.name,
        model=model,
        calls=calls,
        already=done,
        queries=[requests[number].example for requests in having.values()],
        prompt=prompt,
        sampling=next(iter(having.values()))[number].sampling,
        drafting=next(iter(having.values()))[number].model != "strong",
    )


def _asked(
    context: Context,
    spec: SystemSpec,
    queries: Sequence[Example],
    retrievers: Retrievers,
    described: Source,
    model: str,
    seen: set[str],
    busy: bool,
) -> dict[str, list[Asked]]:
    """The requests to one model that no earlier system makes, by query; ``busy``: of a system that does as much as it may."""
    found = defaultdict[str, list[Asked]](list)
    stages = lineage_of(context)
    from_ = {"align": ("aligned",), "guard": ("sft", "aligned")}.get(spec.needs, (spec.needs,))
    weak = fingerprint(*(stages.get(name, "") for name in from_)) if spec.uses == "both" else ""
    weights = {"weak (sft)": stages.get("sft", ""), "weak (aligned)": stages["aligned"]}

    async def run() -> None:
        for example in queries:
            _, asked = await dry_run(context, spec, example, retrievers, 1e-9 if busy else 1.0, busy)
            found[example.id] = []
            # A draft, and so a request that holds it, is another one where another weak model, or the same one otherwise, is asked.
            before: list[JsonValue] = []
            for index, a in enumerate(asked):
                drafted = fingerprint(weak if before else "", *before)
                if a.model != "strong":
                    before.append(a.sampling.model_dump(mode="json"))
                if a.model.partition(" (")[0] != model:
                    continue
                call = call_of(known_as(described), a.messages, a.sampling, {}, None)
                words = spec.name if spec.optimises and a.model == "strong" else ""  # which are not known yet
                key = f"{drafted if a.model == 'strong' else weights.get(a.model, '')} {call.key} {words}".rstrip()
                if key not in seen:
                    found[example.id].append(asked[index])
                seen.add(key)

    asyncio.run(run())
    return dict(found)
