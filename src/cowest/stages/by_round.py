"""What each round of the loop took and gave, for results and report; and the stage that measures how far the policy has moved."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from cowest.assembly.context import Context
from cowest.results import Drift, RoundResult
from cowest.run.freshness import Depends
from cowest.run.store import write_atomic
from cowest.scoring.statistics import share
from cowest.stages import depends
from cowest.stages.base import Done, Stage, in_thread
from cowest.stages.choosing import selection_of
from cowest.stages.in_turn import in_turn
from cowest.stages.learn import sft_model, training_queries
from cowest.stages.loop import begun, calls_of, ended, standing_before, strong_answers, taken
from cowest.stages.rounds import Round
from cowest.types import Draft, Feedback, Refinement, Usage


def drift_stage(round_: Round) -> Stage:
    """How far the model that drafts in this round, a later one than the first, is from the SFT model."""

    def follows_from(context: Context) -> Depends:
        return depends.value("sft.max_length", context.config.sft.max_length)

    async def execute(context: Context) -> Done:
        from cowest.training.drift import drift

        asked = in_turn(context, round_)
        queries, ways = {e.id: e for e in training_queries(asked, round_)}, asked.ways
        drafts = [
            (ways[d.index % len(ways)][1].draft(queries[d.example_id]), d.text)
            for d in context.run.file(round_.file("drafts.jsonl"), Draft).load()
            if d.text is not None
        ]
        policy, reference, settings = round_.policy.weights(context), sft_model(context), context.config.sft
        await context.models.end_engines()
        found = await in_thread(
            lambda _: drift(policy, reference, drafts, settings.max_length, settings.device), context.reporter
        )
        write_atomic(context.path(round_.file("drift.json")), found.model_dump_json(indent=2) + "\n")
        return Done({"drafts": found.drafts})

    reads = ("sft", *round_.policy.reads, *round_.opened, round_.file("drafts.jsonl"))
    return Stage(round_.stage("drift"), 1, reads, (round_.file("drift.json"),), follows_from, execute)


def round_results(context: Context) -> list[RoundResult]:
    """One for each round that was run; none where the recipe has one round."""
    rounds = begun(context)
    if context.config.rounds.most == 1:
        return []
    best, answers = taken(context, rounds).round_.number, strong_answers(context, rounds)
    return [
        _result(
            context,
            rounds[: n + 1],
            answers[n],
            round_.number == best,
            ended(context, rounds) if n + 1 == len(rounds) else None,
        )
        for n, round_ in enumerate(rounds)
    ]


def _result(
    context: Context, rounds: Sequence[Round], answers: Sequence[Refinement], taken_: bool, why: str | None
) -> RoundResult:
    round_ = rounds[-1]
    chosen = selection_of(context, round_)
    counts = context.run.manifest().stages[round_.stage("pairs")].counts
    drafts = [d.text for d in context.run.file(round_.file("drafts.jsonl"), Draft).load() if d.text is not None]
    records = context.run.file(round_.file("feedback.jsonl"), Feedback).load()
    read = [r for r in records if r.weak.answer is not None and r.refined.value is not None]
    file = context.path(round_.file("drift.json"))
    return RoundResult(
        number=round_.number,
        before=standing_before(context, rounds).checkpoint.score,
        after=chosen.best.score,
        step=chosen.chosen,
        taken=taken_,
        pairs=counts.get("pairs", 0),
        queries_with_pairs=counts.get("queries_with_pairs", 0),
        strong_calls=calls_of(answers),
        usage=sum((a.usage for a in answers), Usage()),
        draft_words=fmean(len(text.split()) for text in drafts) if drafts else None,
        copied=share(sum(r.weak.answer == r.refined.answer for r in read), len(read)),
        drift=Drift.model_validate_json(file.read_bytes()) if file.is_file() else None,
        ended=why,
    )
