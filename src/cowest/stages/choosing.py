"""Which checkpoint of an alignment is taken: each one's collaboration, scored on the validation queries."""

from __future__ import annotations

from collections.abc import Sequence

from cowest.assembly.context import Context
from cowest.assembly.systems import build_system
from cowest.protocols import ChatModel
from cowest.recipe.config import RunConfig
from cowest.run.weights import Weights
from cowest.scoring.statistics import Outcome
from cowest.stages.answers import outcomes_of
from cowest.stages.base import failures, fill
from cowest.stages.preferred import ask_judges, preferred_outcomes
from cowest.stages.rounds import Round
from cowest.systems.registry import STRONG, WEAK_ALIGNED, trained_row
from cowest.systems.spec import Which
from cowest.types import Example, ModelRef, Prediction, Record


class CheckpointScore(Record):
    """The mean score on validation queries of the collaboration (of the weak model alone, with ``pairs.signal: draft``)."""

    step: int
    model: Weights
    score: float | None
    n: int
    n_failed: int


class Selection(Record):
    """Every checkpoint's score (step 0 is the model before alignment) and the step that was chosen.

    ``skipped`` says why nothing was trained, where that is so; step 0 is then the only one.
    """

    metric: str
    checkpoints: list[CheckpointScore]
    chosen: int
    skipped: str | None = None

    @property
    def best(self) -> CheckpointScore:
        """The checkpoint that was chosen."""
        return next(c for c in self.checkpoints if c.step == self.chosen)

    @property
    def model(self) -> Weights:
        """The aligned weak model."""
        return self.best.model


def selection_of(context: Context, round_: Round) -> Selection:
    """The outcome of a round's alignment."""
    return Selection.model_validate_json(context.path(round_.file("align/selection.json")).read_bytes())


def scores_checkpoints(config: RunConfig, round_: Round) -> bool:
    """Whether a round asks the validation queries, or leaves that to the last one."""
    return config.rounds.choose == "each" or round_.number == config.rounds.most


def chosen_by_system(context: Context) -> str:
    """Which system's score on them it is, in the words of manifests."""
    if context.config.draft.turn != "draft":
        return trained_row(context.config).name
    return "weak" if context.signal.alone else "collaboration"


def validation_queries(context: Context) -> Sequence[Example]:
    """The queries by which checkpoints are chosen."""
    return context.task.examples("validation")[: context.config.align.selection_queries]


def validation_file(round_: Round, step: int) -> str:
    """Where a round keeps a checkpoint's answers to them."""
    return round_.file(f"align/validation/step-{step}.jsonl")


def validation_outcomes(context: Context, round_: Round, step: int) -> list[Outcome]:
    """What a round's checkpoint has answered to them, read out or judged."""
    queries = validation_queries(context)
    answers = context.run.file(validation_file(round_, step), Prediction).load()
    if not context.judged(queries):
        return outcomes_of(context.task, queries, answers)
    alone = context.run.file(_alone_file(round_), Prediction).load()
    return preferred_outcomes(context, _compared_name(round_, step), queries, answers, alone)


def _alone_file(round_: Round) -> str:
    """Where the strong model's answers alone to them are, where checkpoints are compared with these."""
    return round_.file("align/validation/alone.jsonl")


def _compared_name(round_: Round, step: int) -> str:
    return round_.file(f"align/validation/compared-step-{step}")


async def score_checkpoint(
    context: Context, round_: Round, step: int, model: ModelRef, proven: bool
) -> tuple[CheckpointScore, int]:
    """Collaboration with this checkpoint on validation queries: what alignment is for, and where DPO over-trains first.

    Of a checkpoint that learns another turn (``draft.turn``) the interaction that has it. Beside the score: how many calls failed.
    """
    queries, name = validation_queries(context), f"step-{step}"
    weak = context.models.weak(model)
    spec = WEAK_ALIGNED if context.signal.alone else trained_row(context.config)
    system = build_system(context, spec, context.models.strong, lambda which: weak, name=name)
    file = context.run.file(validation_file(round_, step), Prediction)
    answers = await fill(
        f"choose: step {step}",
        context,
        file,
        queries,
        lambda e: e.id,
        lambda p: p.example_id,
        system.answer,
        proven=proven,
    )
    await weak.aclose()
    scores = await _values(context, round_, step, answers)
    # An answer that was cut off counts as wrong here: a checkpoint must not be chosen for being cut off on the hard queries.
    found = [0.0 if value is None and p.truncated else value for value, p in zip(scores, answers, strict=True)]
    values = [value for value in found if value is not None]
    made = CheckpointScore(
        step=step,
        model=context.named(model),
        score=sum(values) / len(values) if values else None,
        n=len(values),
        n_failed=len(scores) - len(values),
    )
    return made, failures(answers)


async def _values(context: Context, round_: Round, step: int, answers: Sequence[Prediction]) -> Sequence[float | None]:
    """The score of each answer to the validation queries, by the metric or by the judges."""
    queries = validation_queries(context)
    if not context.judged(queries):
        scorer = context.metric_scorer()
        return [(await scorer.score(e, p.text)).value for e, p in zip(queries, answers, strict=True)]

    def no_weak(which: Which) -> ChatModel:
        raise AssertionError(f"{STRONG.name} asks no weak model")

    alone = await fill(
        f"choose: {STRONG.name}",
        context,
        context.run.file(_alone_file(round_), Prediction),
        queries,
        lambda e: e.id,
        lambda p: p.example_id,
        build_system(context, STRONG, context.models.strong, no_weak).answer,
    )
    name = _compared_name(round_, step)
    await ask_judges(context, f"choose: step {step}", name, queries, answers, alone)
    return [o.preferred for o in preferred_outcomes(context, name, queries, answers, alone)]
