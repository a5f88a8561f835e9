"""Step 5, collaborative feedback: gain = E(y*, x) - E(z, x).

The paper never scores the weak model alone; we do (``Feedback.weak``), since it costs no call and shows whether a draft helped
because it was right or because it was useful.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from cowest.protocols import Scorer
from cowest.scoring.scorer import CUT_OFF, cut_score
from cowest.types import Draft, Example, Feedback, Refinement, Sample, Score

Reason = Literal["cut off", "refused", "failed", "not judged"]
"""Why a draft has no gain: the strong model's text was cut off at max_tokens, it refused, its call failed, or the judge did."""

NOT_ASKED = "not asked"
"""How the reason begins in place of an answer that the signal has no need of."""


async def feedback(
    scorer: Scorer,
    example: Example,
    draft: Draft,
    refined: Refinement,
    solo: Refinement,
    *,
    draft_tokens: int | None = None,
    answer_tokens: int | None = None,
    judge_draft: bool = True,
) -> Feedback:
    """Score one draft's refinement, the strong model alone, and (``judge_draft``) the draft as an answer of its own.

    ``draft_tokens`` and ``answer_tokens`` are the max_tokens of both, for the reason where a text was cut off.
    """
    return Feedback(
        example_id=example.id,
        draft_id=draft.id,
        refined=await _score(scorer, example, refined, answer_tokens),
        solo=await _score(scorer, example, solo, answer_tokens),
        weak=await _score(scorer, example, draft, draft_tokens)
        if judge_draft
        else Score(value=None, error=f"{NOT_ASKED}: neither was its refinement"),
    )


async def _score(scorer: Scorer, example: Example, answer: Draft | Refinement, max_tokens: int | None) -> Score:
    """The score of an answer, with the expected one where the answer has what that takes."""
    score = await _of_text(scorer, example, answer, max_tokens)
    if isinstance(answer, Draft):
        return score
    expected = await _expected(scorer, example, answer, max_tokens)
    return score if expected is None else score.model_copy(update={"expected": expected})


async def _of_text(
    scorer: Scorer, example: Example, answer: Draft | Refinement | Sample, max_tokens: int | None
) -> Score:
    """A text cut off before it came to an answer tells of max_tokens and not of the draft: unscored, not wrong."""
    if answer.text is None and answer.error is not None:
        return Score(value=None, error=answer.error)
    score = await scorer.score(example, answer.text)
    return cut_score(score, max_tokens) if answer.truncated else score


async def _expected(scorer: Scorer, example: Example, answer: Refinement, max_tokens: int | None) -> float | None:
    """The sum of a class's probability times its score, or the mean over samples; those without a score are left out.

    For open answers that were read: how likely the best reference is, which would score 1.
    """
    if answer.likelihoods:
        return max((one.value for one in answer.likelihoods if one.value is not None), default=None)
    if answer.classes is not None and answer.text is not None:
        start, end = answer.classes.start, answer.classes.end
        shares = list(answer.classes.probabilities.values())
        texts = [f"{answer.text[:start]}{label}{answer.text[end:]}" for label in answer.classes.probabilities]
        values = [(await scorer.score(example, text)).value for text in texts]
    else:
        shares = [1.0] * len(answer.samples)
        values = [(await _of_text(scorer, example, sample, max_tokens)).value for sample in answer.samples]
    scored = [(share, value) for share, value in zip(shares, values, strict=True) if value is not None]
    total = sum(share for share, _ in scored)
    return sum(share * value for share, value in scored) / total if total else None


def unscored_reasons(records: Iterable[Feedback]) -> dict[Reason, int]:
    """How many drafts lack a score that was asked for, by reason, the most frequent first; nothing where all have it."""
    reasons: Counter[Reason] = Counter()
    for record in records:
        lost = [score for score in (record.refined, record.solo) if is_lost(score)]
        if lost:
            reasons[_reason(lost[0].error or "")] += 1
    return dict(reasons.most_common())


def is_lost(score: Score) -> bool:
    """Whether there is no score though the answer was asked for."""
    return score.worth is None and not (score.error or "").startswith(NOT_ASKED)


def _reason(error: str) -> Reason:
    if error.startswith(CUT_OFF):
        return "cut off"
    if error.startswith(("refusal", "content_filter")):
        return "refused"
    return "not judged" if error.startswith("judge") else "failed"
