"""Why a run has few preference pairs or none, and what would give it more: by what became of its drafts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from cowest.collaboration.feedback import Reason, is_lost, unscored_reasons
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


THIN: Final = 0.10
"""Of the queries: fewer with a pair than this is said to be little. The lab's have 48 to 52%."""
SMALL: Final = 0.05
"""Of the drafts: as many unscored ones are not spoken of."""

_NO_CONTRAST: Mapping[str, str] = {
    "no_contrast_equal_worth": "their drafts differ and are worth the same",
    "no_contrast_equal_drafts": "all their drafts are the same text",
    "no_contrast_unscored": "too few of their drafts have a score",
    "no_contrast_too_few_drafts": "they have fewer than two drafts",
    "no_contrast_by_the_rule": "their drafts differ in worth, and pairs.rule or pairs.min_margin takes none",
    "no_contrast_not_asked": "their other drafts are alike or without hope, or feedback.calls was used up",
}
_MORE: Mapping[str, str] = {
    "no_contrast_equal_worth": "more draft.samples, a higher draft.sampling.temperature (or draft.ladder), expected scores "
    "(feedback.expect), or a finer score (feedback.judge, or feedback.metric f1 where answers are open)",
    "no_contrast_equal_drafts": "a higher draft.sampling.temperature (or top_p), or draft.redraw",
    "no_contrast_unscored": "see to the unscored drafts first",
    "no_contrast_too_few_drafts": "draft.samples of 4 or more, and a longer draft.sampling.max_tokens where drafts are cut off",
    "no_contrast_by_the_rule": "pairs.rule: ordered, or a smaller pairs.min_margin",
    "no_contrast_not_asked": "a higher draft.sampling.temperature (or draft.redraw), or more feedback.calls",
}


def _none(counts: Mapping[str, int]) -> list[str]:
    """The reasons why queries have no pair, the most frequent first."""
    return sorted((key for key in _NO_CONTRAST if counts.get(key)), key=lambda key: -counts[key])


def contrast(counts: Mapping[str, int]) -> str:
    """How many queries gave pairs, and why the others gave none; ``counts`` are those of the pairs."""
    some, none = counts.get("queries_with_pairs", 0), counts.get("queries_without_contrast", 0)
    why = "; ".join(f"{counts[key]}: {_NO_CONTRAST[key]}" for key in _none(counts))
    return f"{counts.get('pairs', 0)} pairs from {some} of {some + none} queries{f' (without: {why})' if why else ''}"


def agreement(counts: Mapping[str, int]) -> str:
    """Pairs a query, and how often the signal orders two drafts as their outcomes do, where these differ."""
    queries = counts.get("queries_with_pairs", 0) + counts.get("queries_without_contrast", 0)
    said = [f"{counts.get('pairs', 0) / queries:.2f} a query"] if queries else []
    if differ := counts.get("outcomes_differ", 0):
        tied = counts.get("outcomes_tied", 0)
        tie = f", {tied} tied" if tied else ""
        said.append(
            f"the signal orders {counts['outcomes_agree']} of {differ} pairs of drafts as their outcomes do{tie}"
        )
    return "; ".join(said)


def alike_warning(counts: Mapping[str, int]) -> tuple[str, ...]:
    """What is to be said where most groups of an online training taught nothing, or many drafts had no reward."""
    groups, alike = counts.get("groups", 0), counts.get("groups_alike", 0)
    drawn, unscored = counts.get("drafts_drawn", 0), counts.get("drafts_unscored", 0)
    found = []
    if groups and alike > groups / 2:
        found.append(
            f"in {alike} of {groups} groups all drafts were worth the same, and nothing was learned from them. What helps: more "
            "align.group, a higher draft.sampling.temperature, or a finer score (feedback.expect, feedback.judge)"
        )
    if unscored > SMALL * drawn:
        found.append(f"{unscored} of {drawn} drafts had no reward and taught nothing")
    return tuple(found)


def thin_contrast(
    counts: Mapping[str, int], unscored: Mapping[Reason, int], feedback: Sequence[Feedback], max_tokens: int
) -> tuple[str, ...]:
    """What is to be said of drafts without a score, and of few queries with pairs, each with its way out.

    ``max_tokens`` is the strong model's; a run without any pair says so in other words (:func:`why_no_pairs`).
    """
    found = []
    if sum(unscored.values()) > SMALL * len(feedback):
        ways = [
            f"raise feedback.sampling.max_tokens from {max_tokens} to {2 * max_tokens} or more"
            if reason == "cut off"
            else _WAYS[reason]
            for reason in unscored
        ]
        by = ", ".join(f"{reason} {n}" for reason, n in unscored.items())
        alone = sum(is_lost(f.solo) for f in feedback)
        refined = sum(is_lost(f.refined) for f in feedback)
        found.append(
            f"{sum(unscored.values())} of {len(feedback)} drafts are unscored and make no pair ({by}; the strong model's answer "
            f"alone is missing for {alone}, the one with the draft for {refined}). What helps: {'; '.join(ways)}"
        )
    some, none = counts.get("queries_with_pairs", 0), counts.get("queries_without_contrast", 0)
    if 0 < some < THIN * (some + none):
        ways = [_MORE[key] for key in _none(counts)[:2]]
        found.append(f"{contrast(counts)}: little to learn from. What helps: {'; '.join(ways)}")
    return tuple(found)
