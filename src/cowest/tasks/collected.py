"""What `cowest collect` wrote, as training examples of any task.

Feedback is what strangers say: it never overrides the task's own data. A question that the task has already, in whatever
split, stays as it is there.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from cowest.protocols import Task
from cowest.tasks.answers import label_key
from cowest.tasks.base import SPLITS, ExtendedTask, notes_of
from cowest.tasks.jsonl_rows import Place, Problems, overlap_key, read_rows
from cowest.types import Example

_WHY = {
    "known": "whose question the task has already",
    "label": "whose answer is no label of the task",
    "again": "whose question is there twice",
}


def pairs_file(rows: Path) -> Path:
    """Where the preference pairs are that were collected with these rows."""
    return rows.with_suffix(".pairs.jsonl")


def with_collected(task: Task, path: Path) -> Task:
    """The task with the rows of ``path`` before its training examples; a note says how many, and what was left out and why.

    Raises DataError for a file that is not there or is wrong.
    """
    problems = Problems()
    empty = path.is_file() and not path.read_bytes().strip()  # nobody gave a right answer, which is no fault
    rows = [] if empty else read_rows(path, "collected", problems)
    known = {overlap_key(e) for split in SPLITS for e in task.examples(split)}
    ids = {e.id for split in SPLITS for e in task.examples(split)}
    for row in rows:
        if row.example.id in ids:
            problems.add(row.place, f'"id" {row.example.id!r} is already in the task\'s data; make ids unique')
    problems.raise_if_any()
    fitting = _Fitting(task)
    left_out, extra = Counter[str](), list[Example]()
    seen = set[tuple[str, ...]]()
    for row in rows:
        key = overlap_key(row.example)
        example = fitting.fitted(row.example)
        why = "known" if key in known else "again" if key in seen else "label" if example is None else None
        if why is not None or example is None:
            left_out[why or "label"] += 1
            continue
        seen.add(key)
        extra.append(example)
    told = [f"{n} {_WHY[why]}" for why, n in left_out.items()]
    note = f"{len(extra)} collected questions added to training" + (f"; left out: {', '.join(told)}" if told else "")
    return ExtendedTask(task, (*notes_of(task), f"{note} ({Place(path)})"), tuple(extra))


class _Fitting:
    """Brings a row into the form of the task's own: labels as it spells them, choices where its questions have some."""

    def __init__(self, task: Task) -> None:
        self._labels = {label_key(label): label for label in task.labels}
        train = task.examples("train")
        self._choices = train[0].choices if train and self._labels else ()

    def fitted(self, example: Example) -> Example | None:
        """None where an answer or a choice is no label."""
        if not self._labels:
            return example
        references = [self._labels.get(label_key(answer)) for answer in example.references]
        choices = [self._labels.get(label_key(choice)) for choice in example.choices]
        if None in references or None in choices:
            return None
        update: dict[str, object] = {"references": tuple(references), "choices": tuple(choices) or self._choices}
        return example.model_copy(update=update)
