"""Stages that train the weak model: ``sft``, and ``align`` with its choice of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from cowest.assembly.context import Context
from cowest.errors import NothingToLearnError, StageError
from cowest.recipe.config import RunConfig
from cowest.recipe.outcome import settings_of
from cowest.run.freshness import Depends, count_lines
from cowest.run.identity import derive_seed
from cowest.run.store import RunDir, named, write_atomic
from cowest.run.weights import Weights, make_movable
from cowest.stages import depends
from cowest.stages.advice import alike_warning, why_no_pairs
from cowest.stages.base import Done, Stage, in_thread
from cowest.stages.choosing import (
    CheckpointScore,
    Selection,
    chosen_by_system,
    score_checkpoint,
    scores_checkpoints,
    selection_of,
    validation_queries,
)
from cowest.stages.in_turn import in_turn, turn_depends
from cowest.stages.preferred import chosen_by
from cowest.stages.rewards import Rewards, rewards_depend
from cowest.stages.rounds import Policy, Round
from cowest.stages.verdicts import judges_depend
from cowest.training.objectives import (
    LABELS,
    OBJECTIVES,
    PAIRS,
    Objective,
    OnlineObjective,
    Practice,
    Query,
    as_online,
    drafts_drawn,
)
from cowest.types import Alignment, Draft, Example, Feedback, Message, ModelRef


def training_queries(context: Context, round_: Round | None = None) -> Sequence[Example]:
    """The training queries that a round (the first, unless it is named) drafts for, refines and pairs."""
    found, has_turn = _drafted(context, round_), context.has_turn
    return found if has_turn is None else [e for e in found if e.id in has_turn]


def _drafted(context: Context, round_: Round | None) -> Sequence[Example]:
    n, train, kept = context.config.draft.queries, context.task.examples("train"), context.config.held_out
    if n is None:
        return train
    drafted = train[-kept:] if kept else train
    before = n * (round_.number - 1) if round_ is not None and context.config.rounds.queries == "next" else 0
    start = before % len(drafted)  # all used up: from the first again
    return [*drafted[start:], *drafted[:start]][:n]


def sft_examples(context: Context) -> Sequence[Example]:
    """The training examples of SFT: all, or those that ``draft.held_out`` leaves."""
    train, kept = context.task.examples("train"), context.config.held_out
    return train[:-kept] if kept else train


def sft_texts(context: Context, example: Example) -> list[tuple[tuple[Message, ...], str | None]]:
    """The prompt and what SFT teaches to write, in each format: what an example tells is then known in all of them.

    The text is None where the example has none in that format.
    """
    target = context.task.target(example)
    return [(frames.draft(example), format_.completion(target, example)) for format_, frames in context.ways]


def _sft_depends(context: Context) -> Depends:
    c = context.config
    return (
        depends.training("sft", c.sft, context.weak)
        | context.weak.identity("weak").only("weak.model", "weak.adapter")  # engine and dtype are those of drafting
        | depends.questions("training", sft_examples(context))
        | depends.value("draft.format", c.draft.format)
        | Depends({"draft.formats": list(c.draft.formats)}, {"draft.formats": []})
        | depends.prompt("a draft", *(frames.draft(context.task.examples("train")[0]) for _, frames in context.ways))
        | depends.seen(context, "weak")
        | depends.value("seed", c.seed)
    )


async def _sft(context: Context) -> Done:
    from cowest.training.sft import SftRow, train_sft

    config, rows, skipped = context.config, [], 0
    for example in sft_examples(context):
        for prompt, text in sft_texts(context, example):
            if text is None:
                skipped += 1
            else:
                rows.append(SftRow(prompt=prompt, completion=text))
    if not rows:
        raise StageError(
            f"sft: no training row has what draft.format {context.format.name} is learned from (knowledge: a rationale; else "
            "an answer or a rationale): add some, or change it"
        )
    base, out = context.weak.base(), context.path("sft")
    seed = derive_seed(config.seed, "sft")
    await context.models.end_engines()
    with named(out):
        done = await in_thread(
            lambda reporter: train_sft(base, rows, config.sft, out, seed, reporter, context.tracker), context.reporter
        )
    make_movable(context.run, done.model)
    write_atomic(out / "model_ref.json", context.named(done.model).model_dump_json(indent=2) + "\n")
    return Done({"rows": len(rows), "skipped_without_rationale": skipped, **done.counts})


def sft_model(context: Context) -> ModelRef:
    """The SFT weak model of a run. Raises DataError where its weights are not those that SFT has left."""
    return context.located(Weights.model_validate_json(context.path("sft/model_ref.json").read_bytes()))


SFT_POLICY = Policy("sft", ("sft",), sft_model)


def aligned(round_: Round) -> Policy:
    """The weak model that a round has left."""
    folder = round_.file("align")
    return Policy(folder, (folder,), lambda context: context.located(selection_of(context, round_).model))


def _kept_weights(run: RunDir, folder: str) -> Sequence[Path]:
    """What of a training's folder matters to later stages: its own small files that name weights, and those weights."""
    path = run.path / folder
    for name, read in (("model_ref.json", Weights), ("selection.json", Selection)):
        file = path / name
        if not file.is_file():
            continue
        found = read.model_validate_json(file.read_bytes())
        weights = found.model if isinstance(found, Selection) else found
        assert isinstance(weights, Weights)
        places = [run.path / part for part in (weights.base, weights.adapter) if part and part.startswith(f"{folder}/")]
        return [file, *(p for place in places for p in place.rglob("*") if p.suffix in {".json", ".safetensors"})]
    return []


def _align_depends(context: Context, round_: Round) -> Depends:
    c = context.config
    scored = scores_checkpoints(c, round_)
    chosen = (
        "the last checkpoint" if not scored else "validation" if c.rounds.choose == "each" else "validation, after SFT"
    )
    found = (
        Depends({"the checkpoint is chosen by": chosen}, {"the checkpoint is chosen by": "validation"})
        | depends.training("align", c.align, context.weak)
        | depends.questions("validation", validation_queries(context))
        | settings_of("evaluate.draft", c.evaluate.draft)
        | settings_of("evaluate.answer", c.evaluate.answer)
        | context.strong.identity("strong")
        | depends.prompt("the collaboration", context.frames.refine(context.task.examples("validation")[0], "DRAFT"))
        | depends.seen(context, "weak", "strong")
        | depends.value("the metric", chosen_by(context, validation_queries(context)))
        | _judged_depends(context)
        | depends.value("checkpoints are chosen by", chosen_by_system(context))
        | depends.value("seed", c.seed)
        | turn_depends(context)
    )
    if as_online(context.objective) is None:
        return found
    return found | rewards_depend(context, training_queries(context, round_))


def _judged_depends(context: Context) -> Depends:
    """What comparisons with the strong model's answers alone follow from, where checkpoints are chosen by them."""
    queries = validation_queries(context)
    if not context.judged(queries):
        return Depends({})
    return judges_depend(context) | depends.prompt("the strong model alone", context.frames.solo(queries[0]))


async def _align(context: Context, round_: Round) -> Done:
    policy, out = round_.start.weights(context), context.path(round_.file("align"))
    try:
        done = await _train(context, round_, policy, out)
    except NothingToLearnError as error:
        return _skipped(context, round_, policy, out, str(error))
    for checkpoint in done.checkpoints:
        make_movable(context.run, checkpoint.model)
    if not scores_checkpoints(context.config, round_):
        return _last(context, round_, out, done)
    before = sft_model(context) if context.config.rounds.choose == "last" else policy
    candidates = [(0, before), *((c.step, c.model) for c in done.checkpoints)]
    scores, failed = list[CheckpointScore](), 0
    for step, model in candidates:
        # After one has answered, a checkpoint that writes nothing is a bad one, and no reason to stop.
        score, missing = await score_checkpoint(context, round_, step, model, proven=any(s.n for s in scores))
        scores.append(score)
        failed += missing
        if score.score is not None:
            context.tracker.log(f"{context.label}{round_.stage('align')}", {"validation": score.score}, step)
    best = max(scores, key=lambda s: (s.score if s.score is not None else -1.0, -s.step))
    _write(out, Selection(metric=chosen_by(context, validation_queries(context)), checkpoints=scores, chosen=best.step))
    counts = {"checkpoints": len(done.checkpoints), "chosen_step": best.step, "failed": failed}
    return Done(counts | _learned(context, round_) | done.counts, failed, alike_warning(done.counts))


def _last(context: Context, round_: Round, out: Path, done: Alignment) -> Done:
    """The last checkpoint is taken as it is."""
    made = [
        CheckpointScore(step=c.step, model=context.named(c.model), score=None, n=0, n_failed=0)
        for c in done.checkpoints
    ]
    _write(
        out, Selection(metric=chosen_by(context, validation_queries(context)), checkpoints=made, chosen=made[-1].step)
    )
    counts = {"checkpoints": len(made), "chosen_step": made[-1].step, "failed": 0}
    return Done(counts | _learned(context, round_) | done.counts, 0, alike_warning(done.counts))


def _learned(context: Context, round_: Round) -> dict[str, int]:
    """How much there was to learn from."""
    learned = {"pairs": PAIRS, "labelled": LABELS}
    reads = context.objective.reads if context.objective is not None else ()
    return {what: count_lines(context.path(round_.file(name))) for what, name in learned.items() if name in reads}


async def _train(context: Context, round_: Round, policy: ModelRef, out: Path) -> Alignment:
    objective, settings = context.objective, context.config.align
    if objective is None:
        raise NothingToLearnError("align.objective is off")
    seed = derive_seed(context.config.seed, *round_.seed("align"))
    await context.models.end_engines()
    if (online := as_online(objective)) is not None:
        return await _practised(context, round_, online, policy, out, seed)
    offline = cast(Objective, objective)
    files = {name: context.path(round_.file(name)) for name in offline.reads}
    with named(out):
        return await in_thread(
            lambda reporter: offline.train(policy, files, settings, out, seed, reporter, context.tracker),
            context.reporter,
        )


async def _practised(
    context: Context, round_: Round, objective: OnlineObjective, policy: ModelRef, out: Path, seed: int
) -> Alignment:
    """A training on drafts that are rewarded while it goes on."""
    context = in_turn(context, round_)
    settings, queries = context.config.align, training_queries(context, round_)
    asked = [Query(example_id=e.id, prompt=tuple(context.frames.draft(e))) for e in queries]
    rewards = Rewards(context, round_, queries, drafts_drawn(settings, len(queries)))
    practice = Practice(asked, context.config.draft.sampling, rewards)
    try:
        with named(out):
            done = await in_thread(
                lambda reporter: objective.train(policy, practice, settings, out, seed, reporter, context.tracker),
                context.reporter,
            )
    except NothingToLearnError as error:
        why = ", ".join(f"{reason} {n}" for reason, n in rewards.reasons().items())
        raise NothingToLearnError(f"{error} (drafts without a score: {why})" if why else str(error)) from None
    finally:
        await rewards.aclose()
    return done.model_copy(update={"counts": rewards.counts() | done.counts})


def _skipped(context: Context, round_: Round, policy: ModelRef, out: Path, why: str) -> Done:
    """Nothing was trained; the run goes on, and says why there is no aligned model."""
    pairs = context.run.manifest().stages.get(round_.stage("pairs"))
    drafts = context.run.file(round_.file("drafts.jsonl"), Draft).load()
    if pairs is not None and not pairs.counts.get("pairs") and not pairs.counts.get("labelled"):
        records = context.run.file(round_.file("feedback.jsonl"), Feedback).load()
        why = why_no_pairs(len(drafts), sum(d.text is None for d in drafts), records, pairs.counts)
    unscored = CheckpointScore(step=0, model=context.named(policy), score=None, n=0, n_failed=0)
    _write(
        out,
        Selection(
            metric=chosen_by(context, validation_queries(context)), checkpoints=[unscored], chosen=0, skipped=why
        ),
    )
    return Done({"checkpoints": 0, "chosen_step": 0})


def _write(out: Path, chosen: Selection) -> None:
    write_atomic(out / "selection.json", chosen.model_dump_json(indent=2) + "\n")


def learned_from(config: RunConfig) -> tuple[str, ...] | None:
    """The names of a round's files that alignment learns from: none for one on drafts of its own; None where it is off."""
    objective = config.align.objective
    return None if objective == "off" else OBJECTIVES.find(objective, "align.objective").reads


SFT = Stage("sft", 1, (), ("sft",), _sft_depends, _sft, _kept_weights)


def align_stage(round_: Round, learns_from: Sequence[str] = (PAIRS,)) -> Stage:
    """Tuning of the round's policy on the round's files that the objective learns from."""

    async def execute(context: Context) -> Done:
        return await _align(context, round_)

    def follows_from(context: Context) -> Depends:
        return _align_depends(context, round_)

    opened = () if learns_from else round_.opened  # who draws drafts here asks for the turn here
    reads, writes = (*round_.start.reads, *map(round_.file, learns_from), *opened), (round_.file("align"),)
    return Stage(round_.stage("align"), 1, reads, writes, follows_from, execute, _kept_weights)
