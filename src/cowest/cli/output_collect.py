"""What ``cowest collect`` prints, for people."""

from __future__ import annotations

from pathlib import Path

from cowest.ledger.exchanges import Deletion
from cowest.server.collect import CollectSummary

_WHY = {
    "answer_not_among_choices": "right answers that are none of the request's choices",
    "answer_repeated": "right answers given before to the same question",
    "answer_without_question": "right answers to requests without a question",
    "answers_contradict": "right answers that contradict each other, of a question with choices",
    "pairs_over_maximum": "pairs beyond 4 of one query",
    "verdict_repeated": "verdicts on a draft that say what an earlier one did",
    "verdict_without_collaboration": "verdicts on answers that one model gave alone",
    "verdict_without_contrast": "verdicts on queries of which all drafts were judged alike",
    "verdicts_contradict": "verdicts on one draft that contradict each other",
}


def print_collected(found: CollectSummary) -> None:
    """Counts, what was left out and why, and how to train on it."""
    for name, task in found.tasks.items():
        label = f"{name}: " if name else ""
        print(
            f"{label}{task.exchanges:,} exchanges, {task.with_feedback:,} with feedback "
            f"({task.right_answers:,} right answers, {task.verdicts:,} verdicts)"
        )
        print(f"  {task.examples_file}: {task.examples:,} examples")
        print(f"  {task.pairs_file}: {task.pairs:,} preference pairs")
        for reason, n in task.left_out.items():
            print(f"  left out: {n:,} {_WHY[reason]}")
        key = f"tasks.{name}.collected" if name else "task.collected"
        if task.examples or task.pairs:
            print(
                f"  to train on them: cowest run RECIPE --out NEW_RUN --set {key}={Path(task.examples_file).absolute()}"
            )


def print_deleted(gone: Deletion) -> None:
    """How many, and whether every copy is gone."""
    print(f"{gone.exchanges:,} exchanges deleted, with the feedback on them")
    if not gone.complete:
        print(
            "  the file's write-ahead log still holds copies while a server uses it; run this again when it has ended"
        )
