"""Feedback without references: judges compare each answer that was made with a draft with the strong model's alone.

A draft is worth how often its answer is preferred (``Score.value`` from 0 to 1, the mean over the judges); the answer alone,
compared with itself, is worth 1/2. Where questions have references all the same, these tell how far the judges can be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from cowest.assembly.context import Context
from cowest.collaboration.feedback import NOT_ASKED
from cowest.scoring.compare import TIE, same_text
from cowest.scoring.powered import Agreement, Estimate, agreement, powered_mean
from cowest.scoring.scorer import cut_score
from cowest.stages.verdicts import JudgeNote, Pair, Verdicts
from cowest.types import Draft, Example, Feedback, Prediction, Record, Refinement, Score

Work = tuple[Example, Draft, Refinement, Refinement]


class Judging(Record):
    """What the judges of a feedback came to: ``judging.json``.

    ``agreement``: of their mean with the references. ``gain``: E(y*, x) - E(z, x) by the metric, a mean over queries, from the
    references where there are some and the judges elsewhere. ``equal``: drafts after which the answer is that without a draft.
    """

    judges: tuple[JudgeNote, ...]
    equal: int
    agreement: Agreement | None = None
    gain: Estimate | None = None


async def compared_feedback(
    context: Context, name: str, work: Sequence[Work]
) -> tuple[list[Feedback], Judging, tuple[str, ...]]:
    """Every draft's feedback by the judges; ``name`` is that of their files. Beside it what they came to, and warnings."""
    tokens = context.config.feedback.sampling.max_tokens
    missing = [(lost(context, e, refined, tokens), lost(context, e, alone, tokens)) for e, _, refined, alone in work]
    pairs = [
        (e, refined.text or "", alone.text or "") if without == (None, None) else None
        for (e, _, refined, alone), without in zip(work, missing, strict=True)
    ]
    verdicts = Verdicts(context, name)
    await verdicts.ask("feedback", [pair for pair in pairs if pair is not None])
    records = [
        _feedback(item, verdicts, pair, without) for item, pair, without in zip(work, pairs, missing, strict=True)
    ]
    warnings = verdicts.tell("feedback")
    judging = await _judging(context, verdicts, [pair for pair in pairs if pair is not None])
    _tell_references(context, judging)
    return records, judging, warnings


def _feedback(
    item: Work, verdicts: Verdicts, pair: Pair | None, without: tuple[Score | None, Score | None]
) -> Feedback:
    example, draft, _, _ = item
    no_pair = Score(value=None, error=f"{NOT_ASKED}: there is no answer of the strong model alone to compare with")
    refined = verdicts.preference(pair) if pair is not None else without[0] or no_pair
    return Feedback(
        example_id=example.id,
        draft_id=draft.id,
        refined=refined,
        solo=without[1] or Score(value=TIE),
        weak=Score(value=None, error=f"{NOT_ASKED}: judges compare what the strong model answers"),
    )


def lost(
    context: Context, example: Example, answer: Refinement | Prediction, max_tokens: int | None = None
) -> Score | None:
    """Why an answer cannot be compared; None where it can. One cut off before its end may have been as good as any."""
    if answer.text is None and answer.error is not None:
        return Score(value=None, error=answer.error)
    if answer.text is not None and not answer.truncated:
        return None
    found = None if answer.text is None else context.task.extract(answer.text, example)
    score = cut_score(Score(value=None if found is None else TIE, answer=found), max_tokens)
    return score if score.value is None else None


async def _judging(context: Context, verdicts: Verdicts, pairs: Sequence[Pair]) -> Judging:
    scorer = context.metric_scorer()
    truth, sayings, equal = list[float](), list[list[float | None]](), 0
    by_query: dict[str, tuple[list[float], list[float]]] = {}
    for pair in pairs:
        example, answer, alone = pair
        judged = verdicts.preference(pair).value
        same = same_text(answer, alone)
        equal += same
        gains, words = by_query.setdefault(example.id, ([], []))
        if judged is None:
            continue
        words.append(judged - TIE)
        if not example.references:
            continue
        with_draft, without = [(await scorer.score(example, text)).value for text in (answer, alone)]
        if with_draft is None or without is None:
            continue
        gains.append(with_draft - without)
        if not same:
            truth.append(with_draft - without)
            sayings.append([*verdicts.said(pair), judged])
    labelled = [(fmean(gains), fmean(words)) for gains, words in by_query.values() if gains]
    beyond = [fmean(words) for gains, words in by_query.values() if words and not gains]
    agreed = [_agreement(truth, [row[n] for row in sayings]) for n in range(len(sayings[0]))] if sayings else []
    return Judging(
        judges=verdicts.notes(agreed[:-1]),
        equal=equal,
        agreement=agreed[-1] if agreed else None,
        gain=powered_mean([y for y, _ in labelled], [f for _, f in labelled], beyond),
    )


def _agreement(truth: Sequence[float], said: Sequence[float | None]) -> Agreement:
    known = [(y, f - TIE) for y, f in zip(truth, said, strict=True) if f is not None]
    return agreement([y for y, _ in known], [f for _, f in known])


def _tell_references(context: Context, judging: Judging) -> None:
    found, gain = judging.agreement, judging.gain
    if found is None or found.agree.share is None:
        return
    kappa = "" if found.kappa is None else f", kappa {found.kappa:.2f}"
    said = (
        f"the judges say as the references do (better, worse, equal) on {found.agree.n} of {found.agree.of} pairs with references: "
        f"{found.agree.share:.0%} [{found.agree.ci_low:.0%}, {found.agree.ci_high:.0%}]{kappa}; the opposite on {found.opposite}"
    )
    if gain is not None:
        said += (
            f". Mean gain by {context.metric}: {gain.mean:+.3f} [{gain.ci_low:+.3f}, {gain.ci_high:+.3f}] (references of "
            f"{gain.labelled} queries, the judges' word on {gain.judged} others)"
        )
    context.reporter.info(f"{context.label}feedback: {said}")


def judging_counts(judging: Judging) -> dict[str, int]:
    """The numbers for the manifest; ``judge_n`` is the n-th of ``feedback.compare``."""
    counts = {"answers_equal": judging.equal}
    for n, note in enumerate(judging.judges, start=1):
        values = note.model_dump(exclude={"model", "agreement"})
        counts |= {f"judge_{n}_{key}": value for key, value in values.items()}
    if judging.agreement is not None:
        counts |= {
            "references_compared": judging.agreement.agree.of,
            "references_agree": judging.agreement.agree.n,
            "references_opposite": judging.agreement.opposite,
        }
    return counts
