"""The loop: which rounds a recipe has, when they end, and which round's model the run leaves.

A round drafts with the best model of the rounds before it, by the validation score of its collaboration. The run leaves the best of
all; of equals the earliest. With ``rounds.choose: last`` each drafts with what the one before it has left, and the run leaves the
better of the last round's checkpoints and the SFT model. How many rounds there will be shows as they go: after each, :func:`ended`
says whether another follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cowest.assembly.context import Context
from cowest.recipe.config import RunConfig
from cowest.scoring.statistics import compare
from cowest.stages.asks import calls_each, draft_key, readings_each
from cowest.stages.choosing import CheckpointScore, Selection, selection_of, validation_outcomes, validation_queries
from cowest.stages.learn import SFT_POLICY, aligned, learned_from, training_queries
from cowest.stages.preferred import chosen_by
from cowest.stages.rewards import REFINEMENTS, SOLO
from cowest.stages.rounds import BASE, Policy, Round
from cowest.training.objectives import as_online
from cowest.types import Draft, Refinement

ALPHA = 0.05
"""Of the paired test with ``rounds.stop: test``."""


def rounds_of(config: RunConfig) -> tuple[Round, ...]:
    """As many rounds as the recipe may come to."""
    if not config.weak.trainable:
        return (Round(BASE, turn=config.draft.turn),)
    settings, found = config.rounds, [Round(SFT_POLICY, turn=config.draft.turn)]
    for number in range(2, (settings.most if learned_from(config) is not None else 1) + 1):
        origin = SFT_POLICY if settings.reference == "sft" else None
        pooled = found[-1] if settings.pairs == "all" else None
        policy = aligned(found[-1]) if settings.choose == "last" else _best_of(tuple(found))
        found.append(Round(policy, number, origin, pooled, config.draft.turn))
    return tuple(found)


def _best_of(rounds: Sequence[Round]) -> Policy:
    """The best model that these rounds have left."""
    if len(rounds) == 1:
        return aligned(rounds[0])
    folders = tuple(round_.file("align") for round_ in rounds)
    return Policy(
        f"best of {len(rounds)}", folders, lambda context: context.located(taken(context, rounds).selection.model)
    )


@dataclass(frozen=True, slots=True)
class Taken:
    """The round whose checkpoint was taken, and how its alignment came out."""

    round_: Round
    selection: Selection

    @property
    def best(self) -> CheckpointScore:
        """The checkpoint."""
        return self.selection.best


def taken(context: Context, rounds: Sequence[Round] | None = None) -> Taken:
    """The best of these rounds (of all that are done, unless they are named); of equals the earliest.

    Raises FileNotFoundError where not even the first is done.
    """
    if rounds is None:
        every = begun(context)
        rounds = [round_ for round_ in every if _done(context, round_)] or every[:1]
    found = [Taken(round_, selection_of(context, round_)) for round_ in rounds]
    if context.config.rounds.choose == "last":
        return next((one for one in reversed(found) if one.selection.skipped is None), found[-1])
    return max(found, key=lambda one: (_value(one.best), -one.round_.number))


def selection(context: Context) -> Selection:
    """How the alignment came out in the round that was taken."""
    return taken(context).selection


def _value(checkpoint: CheckpointScore) -> float:
    return -1.0 if checkpoint.score is None else checkpoint.score


def begun(context: Context) -> tuple[Round, ...]:
    """The rounds so far: those that are done, and the one that is under way or comes next, where the loop has not ended."""
    rounds = rounds_of(context.config)
    for number in range(1, len(rounds)):
        if not _done(context, rounds[number - 1]) or ended(context, rounds[:number]) is not None:
            return rounds[:number]
    return rounds


def _done(context: Context, round_: Round) -> bool:
    entry = context.run.manifest().stages.get(round_.stage("align"))
    return entry is not None and entry.status == "done" and context.path(round_.file("align/selection.json")).is_file()


def ended(context: Context, rounds: Sequence[Round]) -> str | None:
    """Why no round follows ``rounds``, which are done; None where one does."""
    settings, last = context.config.rounds, rounds[-1]
    chosen = selection_of(context, last)
    if chosen.skipped is not None and settings.choose == "each":
        return f"round {last.number} had nothing to learn from: {chosen.skipped}"
    if last.number >= settings.most:
        return f"rounds.most is {settings.most}"
    if settings.strong_calls is not None:
        calls = sum(map(calls_of, strong_answers(context, rounds)))
        more = _most_calls(context, rounds, rounds_of(context.config)[last.number])
        if calls + more > settings.strong_calls:
            return (
                f"feedback has taken {calls} strong calls, round {last.number + 1} could take {more}, and rounds.strong_calls is "
                f"{settings.strong_calls}"
            )
    if settings.stop == "never":
        return None
    return _no_better(context, rounds, chosen)


def _most_calls(context: Context, before: Sequence[Round], round_: Round) -> int:
    """The most strong calls that a round's feedback can take: all its drafts differ, and from those of the rounds before."""
    asked, queries = context.signal.asks, training_queries(context, round_)
    known = {e.id for one in before for e in training_queries(context, one)}
    most = 0
    for example in queries:
        alone = "solo" in asked and example.id not in known
        refined = context.config.draft.samples if "refine" in asked else 0
        most += (alone + refined) * (calls_each(context) + readings_each(context, example))
    return most if context.config.feedback.calls is None else min(most, context.config.feedback.calls)


def _no_better(context: Context, rounds: Sequence[Round], chosen: Selection) -> str | None:
    last, before = rounds[-1], standing_before(context, rounds)
    told = f"({_shown(chosen.best.score)}, before {_shown(before.checkpoint.score)})"
    if _value(chosen.best) <= _value(before.checkpoint):
        return f"validation did not rise in round {last.number} {told}"
    if context.config.rounds.stop == "test":
        p = _p_value(context, Scored(last, chosen.best), before)
        if p is None or p >= ALPHA:
            shown = "no test" if p is None else f"p = {p:.2g}"
            return f"round {last.number} is not shown to be better on validation {told}: {shown}"
    return None


@dataclass(frozen=True, slots=True)
class Scored:
    """A checkpoint and the round in which it was scored."""

    round_: Round
    checkpoint: CheckpointScore


def standing_before(context: Context, rounds: Sequence[Round]) -> Scored:
    """The best model before the last of these rounds: of the rounds before, or the one that the first began with.

    With ``rounds.choose: last`` the SFT model, which the last round scores; unscored before it.
    """
    if context.config.rounds.choose == "last":
        return Scored(rounds[-1], selection_of(context, rounds[-1]).checkpoints[0])
    if len(rounds) > 1:
        one = taken(context, rounds[:-1])
        return Scored(one.round_, one.best)
    return Scored(rounds[0], selection_of(context, rounds[0]).checkpoints[0])


def _p_value(context: Context, a: Scored, b: Scored) -> float | None:
    """Two-sided, of the paired test of the metric that checkpoints are chosen by; exact where it is a yes or no."""
    found = []
    for one in (a, b):
        outcomes = validation_outcomes(context, one.round_, one.checkpoint.step)
        # Cut off counts as wrong, as in the scores that are compared.
        found.append([o.model_copy(update={"cut": False, "preferred": o.preferred or 0.0}) for o in outcomes])
    metric = chosen_by(context, validation_queries(context))
    tests = compare(metric, context.task.labels, "a", found[0], "b", found[1], context.config.seed)
    return tests[-1].p


def _shown(score: float | None) -> str:
    return "no score" if score is None else f"{score:.3f}"


def calls_of(answers: Sequence[Refinement]) -> int:
    """The different strong calls behind a round's answers, samples beside them included."""
    return sum(1 + len(answer.samples) + len(answer.likelihoods) for answer in answers)


def feedback_calls(context: Context) -> int:
    """The different strong calls behind the feedback that the weak model is aligned on, of all rounds so far."""
    if as_online(context.objective) is not None:
        return sum(calls_of(context.run.file(name, Refinement).load()) for name in (SOLO, REFINEMENTS))
    return sum(map(calls_of, strong_answers(context, begun(context))))


def most_feedback_calls(context: Context) -> int:
    """The most strong calls that the feedback can take: all drafts of all rounds differ."""
    rounds = rounds_of(context.config)
    most = sum(_most_calls(context, rounds[:number], round_) for number, round_ in enumerate(rounds))
    return most if context.config.rounds.strong_calls is None else min(most, context.config.rounds.strong_calls)


def strong_answers(context: Context, rounds: Sequence[Round]) -> list[list[Refinement]]:
    """The strong model's answers behind the feedback, by round: a request that was made before is not counted again."""
    made, found = set[str](), list[list[Refinement]]()
    for round_ in rounds:
        drafts = {d.id: d for d in context.run.file(round_.file("drafts.jsonl"), Draft).load()}
        fresh = dict[str, Refinement]()
        for answer in context.run.file(round_.file("solo.jsonl"), Refinement).load():
            fresh[f"alone {answer.example_id}"] = answer
        for answer in context.run.file(round_.file("refinements.jsonl"), Refinement).load():
            if answer.draft_id in drafts:
                fresh.setdefault(draft_key(drafts[answer.draft_id]), answer)
        found.append([answer for key, answer in fresh.items() if key not in made])
        made |= fresh.keys()
    return found
