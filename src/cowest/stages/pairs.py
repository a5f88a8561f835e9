"""The stage ``pairs``: what drafts are worth, as pairs, and as single labelled drafts where the objective learns from those."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

from cowest.assembly.context import Context
from cowest.collaboration.feedback import unscored_reasons
from cowest.collaboration.labels import label_drafts, labels_of
from cowest.collaboration.preference import Rule, build_pairs
from cowest.protocols import Signal
from cowest.recipe.outcome import settings_of
from cowest.run.freshness import Depends, content
from cowest.run.identity import derive_seed, fingerprint
from cowest.run.store import JsonlFile
from cowest.stages import depends
from cowest.stages.advice import agreement, contrast, thin_contrast
from cowest.stages.base import Done, Stage
from cowest.stages.in_turn import in_turn, turn_depends
from cowest.stages.learn import training_queries
from cowest.stages.rounds import Round
from cowest.stages.toll import prompt_price, toll
from cowest.tasks.base import CALIBRATION
from cowest.tasks.collected import pairs_file
from cowest.training.objectives import LABELS, PAIRS
from cowest.types import Draft, Feedback, LabelledDraft, PreferencePair


def _depends(context: Context, labels: bool) -> Depends:
    c, collected = context.config, _collected(context)
    return (
        settings_of("pairs", c.pairs, leave_out=() if collected else ("collected_weight",))
        | Depends({"the price of a prompt": prompt_price(context)}, {"the price of a prompt": None})
        | Depends({"labelled drafts": labels}, {"labelled drafts": False})
        | depends.value("seed", c.seed if c.pairs.limit else None)
        | depends.prompt("a draft", context.frames.draft(context.task.examples("train")[0]))
        | depends.seen(context, "weak")
        | turn_depends(context)
        | depends.value(
            "collected pairs",
            content(fingerprint(*(pair.model_dump(mode="json") for pair in collected)), f"{len(collected)} pairs")
            if collected
            else None,
        )
    )


def _collected(context: Context) -> list[PreferencePair]:
    """The preference pairs of ``cowest collect``, where the recipe names a file of it, with what each counts.

    Those about a question that is kept for calibration teach nothing. They are pairs of drafts, and teach no other turn.
    """
    task, weight = context.config.task, context.config.pairs.collected_weight
    if task is None or task.collected is None or context.config.draft.turn != "draft":
        return []
    pairs = JsonlFile(pairs_file(task.collected), PreferencePair).load()
    if task.calibration:
        kept = context.task.examples(CALIBRATION)
        ids, prompts = {e.id for e in kept}, {tuple(context.frames.draft(e)) for e in kept}
        pairs = [pair for pair in pairs if pair.example_id not in ids and pair.prompt not in prompts]
    return pairs if weight == 1 else [pair.model_copy(update={"weight": weight}) for pair in pairs]


async def _pairs(context: Context, round_: Round, labels: bool) -> Done:
    context = in_turn(context, round_)
    queries = training_queries(context, round_)
    drafts = context.run.file(round_.file("drafts.jsonl"), Draft).load()
    feedback_ = context.run.file(round_.file("feedback.jsonl"), Feedback).load()
    settings = _settings(context, round_)
    made = build_pairs(
        queries, drafts, feedback_, context.frames, max_per_query=context.config.pairs.max_per_query, **settings
    )
    collected = _collected(context) if round_.number == 1 else []
    before = [pair for name in _pooled(round_, PAIRS) for pair in context.run.file(name, PreferencePair).load()]
    context.run.file(round_.file(PAIRS), PreferencePair).replace([*made.pairs, *collected, *before])
    labelled: dict[str, int] = {}
    if labels:
        found = label_drafts(queries, drafts, feedback_, context.frames, **settings)
        earlier = [one for name in _pooled(round_, LABELS) for one in context.run.file(name, LabelledDraft).load()]
        every = [*found.drafts, *(one for pair in collected for one in labels_of(pair)), *earlier]
        context.run.file(round_.file(LABELS), LabelledDraft).replace(every)
        labelled = {**found.counts, "labelled": len(every)}
    limit = context.config.feedback.sampling.max_tokens
    unscored = unscored_reasons(feedback_)
    counts = {
        **made.counts,
        **labelled,
        **{f"unscored_{reason.replace(' ', '_')}": n for reason, n in unscored.items()},
    }
    context.reporter.info(f"{context.label}pairs: {contrast(counts)}; {agreement(counts)}")
    warnings = thin_contrast(counts, unscored, feedback_, limit)
    for text in warnings:
        context.reporter.info(f"{context.label}pairs: warning: {text}")
    if collected:
        counts |= {"pairs_collected": len(collected)}
    if before:
        counts |= {"pairs_of_earlier_rounds": len(before)}
    return Done(counts | {"pairs": len(made.pairs) + len(collected) + len(before)}, warnings=warnings)


class _Settings(TypedDict):
    rule: Rule
    min_margin: float
    limit: int | None
    signal: Signal
    price_per_word: float
    toll: Callable[[str], float] | None
    seed: int


def _settings(context: Context, round_: Round) -> _Settings:
    """What pairs and labels have in common."""
    c = context.config.pairs
    return _Settings(
        rule=c.rule,
        min_margin=c.min_margin,
        limit=c.limit,
        signal=context.signal,
        price_per_word=c.price_per_word,
        toll=toll(context),
        seed=derive_seed(context.config.seed, *round_.seed("pairs")),
    )


def _pooled(round_: Round, name: str) -> tuple[str, ...]:
    """The file of this name of the round before, where earlier ones are learnt from, too."""
    return () if round_.pooled is None else (round_.pooled.file(name),)


def pairs_stage(round_: Round, labels: bool = False) -> Stage:
    """Gains to preference pairs; with ``labels`` to single labelled drafts, too."""
    made = (PAIRS, LABELS) if labels else (PAIRS,)

    async def execute(context: Context) -> Done:
        return await _pairs(context, round_, labels)

    def follows_from(context: Context) -> Depends:
        return _depends(context, labels)

    pooled = [name for one in made for name in _pooled(round_, one)]
    reads = (round_.file("drafts.jsonl"), round_.file("feedback.jsonl"), *round_.opened, *pooled)
    return Stage(round_.stage("pairs"), 1, reads, tuple(map(round_.file, made)), follows_from, execute)
