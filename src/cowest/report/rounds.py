"""How the rounds of a loop are written down: the same columns in terminal and report."""

from __future__ import annotations

from collections.abc import Sequence

from cowest.report.uptake import counts_of, percent_of
from cowest.results import RoundResult

TITLE = "The rounds"
HEADS = ("round", "validation", "pairs", "strong calls", "tokens", "USD", "draft words", "copied", "KL to SFT")
LEGEND = (
    "validation: score of the collaboration before and after the round, on the queries by which checkpoints are chosen. strong "
    "calls, tokens, USD: of its feedback, less what earlier rounds had asked. copied: refined answers that are the draft's. "
    "KL to SFT: of the model that drafted, nats a draft, with its standard error."
)


def cells(one: RoundResult) -> tuple[str, ...]:
    """A round's row, a cell for each of HEADS."""
    return (
        f"{one.number}{' (taken)' if one.taken else ''}",
        f"{_percent(one.before)} -> {_percent(one.after)}",
        f"{one.pairs:,} of {one.queries_with_pairs:,} queries",
        f"{one.strong_calls:,}",
        f"{one.usage.input_tokens + one.usage.output_tokens:,}",
        f"{one.usage.cost_usd:.4f}" if one.usage.cost_usd else "0",
        "-" if one.draft_words is None else f"{one.draft_words:.1f}",
        f"{percent_of(one.copied)} {counts_of(one.copied)}",
        _drift(one),
    )


def ending(rounds: Sequence[RoundResult]) -> str:
    """Why no other followed, and what was taken."""
    last, taken = rounds[-1], next(one for one in rounds if one.taken)
    unscored = taken.number > 1 and rounds[0].after is None  # rounds.choose: last
    began = "the SFT model" if unscored else f"what round {taken.number} began with"
    what = f"step {taken.step} of round {taken.number}" if taken.step else began
    return f"ended after round {last.number}: {last.ended}; taken: {what}"


def _percent(score: float | None) -> str:
    return "-" if score is None else f"{100 * score:.1f}"


def _drift(one: RoundResult) -> str:
    if one.drift is None or one.drift.kl is None:
        return "-"
    return f"{one.drift.kl:.2f} ± {one.drift.se or 0:.2f}"
