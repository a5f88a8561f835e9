"""Why a run has no preference pair, and what would give it some: by what became of its drafts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cowest.collaboration.feedback import Reason, unscored_reasons
from cowest.types import Feedback

_WAYS: Mapping[Reason, str] = {
    "cut off": "raise feedback.sampling.max_tokens",
    "refused": "the strong model refuses these questions: try another one, or other prompts",
    "failed": "calls failed: `cowest run` asks them again",
    "not judged": "the judge's replies could not be read: try another feedback.judge, or the metric",
}


def why_no_pairs(drafts: int, failed: int, feedback: Sequence[Feedback], counts: Mapping[str, int]) -> str:
    """How many of the ``drafts`` failed, were unscored and why, or were worth the same; ``counts`` are those of the pairs."""
    reasons = unscored_reasons(feedback)
    unscored = sum(reasons.values())
    said = [f"{failed} of {drafts} drafts failed"] if failed else []
    if unscored:
        by = ", ".join(f"{reason} {n}" for reason, n in reasons.items())
        said.append(f"{unscored} of {drafts} drafts are unscored ({by})")
    ties = counts.get("queries_without_contrast", 0)
    if ties and unscored < drafts - failed:
        said.append(f"in {ties} queries no two drafts were worth different amounts (ties)")
    ways = [_WAYS[reason] for reason in reasons]
    if not unscored or unscored < (drafts - failed) / 2:
        ways.append("more draft.samples, a higher draft.sampling.temperature or pairs.rule=ordered give more contrast")
    return (
        f"no preference pair could be built: {'; '.join(said) or f'{drafts} drafts'}. What may help: {'; '.join(ways)}"
    )
