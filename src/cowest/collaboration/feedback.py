"""Step 5, collaborative feedback: gain = E(y*, x) - E(z, x).

The paper never scores the weak model alone; we do (``Feedback.weak``), since it costs no call and shows whether a draft helped
because it was right or because it was useful.
"""

from __future__ import annotations

from cowest.protocols import Scorer
from cowest.types import Draft, Example, Feedback, Refinement


async def feedback(scorer: Scorer, example: Example, draft: Draft, refined: Refinement, solo: Refinement) -> Feedback:
    """Score one draft's refinement, the strong model alone, and the draft as an answer of its own."""
    return Feedback(
        example_id=example.id,
        draft_id=draft.id,
        refined=await scorer.score(example, refined.text),
        solo=await scorer.score(example, solo.text),
        weak=await scorer.score(example, draft.text),
    )
