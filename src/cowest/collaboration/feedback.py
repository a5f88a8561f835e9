"""Step 5, collaborative feedback: gain = E(y*, x) - E(z, x).

The paper never scores the weak model alone; we do (``Feedback.weak``), since it costs no call and shows whether a draft helped
because it was right or because it was useful.
"""

from __future__ import annotations

from cowest.protocols import Scorer
from cowest.types import Draft, Example, Feedback, Refinement, Score


async def feedback(scorer: Scorer, example: Example, draft: Draft, refined: Refinement, solo: Refinement) -> Feedback:
    """Score one draft's refinement, the strong model alone, and the draft as an answer of its own."""
    return Feedback(
        example_id=example.id,
        draft_id=draft.id,
        refined=await _score(scorer, example, refined),
        solo=await _score(scorer, example, solo),
        weak=await scorer.score(example, draft.text),
    )


async def _score(scorer: Scorer, example: Example, answer: Refinement) -> Score:
    """A text cut off before it came to an answer tells of max_tokens and not of the draft: unscored, not wrong."""
    score = await scorer.score(example, answer.text)
    if answer.truncated and score.answer is None and score.error is None:
        return Score(value=None, error="cut off at max_tokens before an answer")
    return score
