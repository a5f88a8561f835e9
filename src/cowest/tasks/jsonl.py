"""Your own data: one JSON object per line, checked before any model is loaded or any call is paid.

One row::

    {"input": "Who founded Torvale?", "answer": "Mira Ost", "rationale": "Torvale was founded by Mira Ost in 1871."}

``input`` and either ``references`` (a list of right answers) or ``answer`` are required (``input`` alone, where models compare
answers: ``feedback.compare``); ``id``, ``rationale``, ``choices``, ``context`` and ``metadata`` are optional. A conversation has
``messages`` in place of ``input`` (:mod:`cowest.tasks.messages`); where it ends with the assistant's turn, that is what is learned,
and the answer is read out of it. Every problem names file, line, field and the fix, and up to ten are shown at once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from cowest.errors import ConfigError, DataError
from cowest.scoring.metrics import get_metric
from cowest.tasks.base import (
    CLASS_METRICS,
    OPEN_METRICS,
    SPLITS,
    SimpleTask,
    class_instruction,
    open_instruction,
)
from cowest.tasks.jsonl_rows import Place, Problems, Row, listed, overlap_key, read_rows, suggestion
from cowest.tasks.labels import label_key
from cowest.types import Example


@dataclass(frozen=True)
class JsonlTask(SimpleTask):
    """A task read from JSONL files by :func:`load_jsonl_task`."""


def load_jsonl_task(
    name: str,
    train: Path | None,
    validation: Path | None,
    test: Path | None,
    *,
    labels: tuple[str, ...] = (),
    instruction: str | None = None,
    metrics: tuple[str, ...] | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    answered: bool = True,
) -> JsonlTask:
    """Read and check a task's files.

    It is a classification task (accuracy, macro-F1) when ``labels`` is given or every row has the same ``choices``;
    otherwise answers are open (EM, F1). Without a validation file, ``validation_fraction`` of train is split off by
    ``seed``; queries with the same text stay on one side. 0 means no validation split. ``answered``: a row without an
    answer is wrong.

    Raises:
        DataError: a file is missing or wrong; the message lists up to ten problems as ``file:line: field: fix``.
        ConfigError: a setting is wrong (labels, metrics, fraction).
    """
    if not 0 <= validation_fraction < 1:
        raise ConfigError(f"validation_fraction is {validation_fraction}; give a number from 0 to below 1")
    for metric in metrics or ():
        get_metric(metric, f"task {name!r}: metrics")
    files = {s: path for s, path in zip(SPLITS, (train, validation, test), strict=True) if path is not None}
    if not files:
        raise DataError(f"task {name!r} has no data; give at least one of {', '.join(SPLITS)}")
    problems = Problems()
    rows = {split: read_rows(path, split, problems, answered, labels) for split, path in files.items()}
    every = [row for split_rows in rows.values() for row in split_rows]
    labels = labels or _shared_choices(every)
    _check_ids(every, problems)
    _check_labels(every, labels, problems)
    if not labels:
        _check_choices(every, (metrics or OPEN_METRICS)[0], problems)
    _check_overlap(rows, problems)
    problems.raise_if_any()
    splits = {split: tuple(row.example for row in split_rows) for split, split_rows in rows.items()}
    if train is not None and validation is None and validation_fraction > 0:
        splits = _split_off_validation(splits, validation_fraction, seed, train)
    return JsonlTask(
        name=name,
        metrics=metrics or (CLASS_METRICS if labels else OPEN_METRICS),
        labels=labels,
        instruction=instruction or (class_instruction(labels) if labels else open_instruction()),
        splits=splits,
    )


def _shared_choices(rows: Sequence[Row]) -> tuple[str, ...]:
    """The choices of the first row, if all rows have the same ones in any order; else none."""
    if not rows:
        return ()
    first = rows[0].example.choices
    wanted = frozenset(first)
    return first if all(frozenset(row.example.choices) == wanted for row in rows) else ()


def _check_ids(rows: Sequence[Row], problems: Problems) -> None:
    """Ids are unique over all splits, since records of every stage are found by them."""
    seen: dict[str, Place] = {}
    for row in rows:
        first = seen.setdefault(row.example.id, row.place)
        if first != row.place:
            fix = "make ids unique over all files, or leave them out"
            problems.add(row.place, f'"id" {row.example.id!r} is already at {first}; {fix}')


def _check_labels(rows: Sequence[Row], labels: tuple[str, ...], problems: Problems) -> None:
    known = frozenset(labels)
    for row in rows:
        example = row.example
        for what, values, allowed in (
            ("choice", example.choices, known),
            ("answer", example.references, known),
            ("answer", example.references, frozenset(example.choices)),
        ):
            wrong = next((value for value in values if allowed and value not in allowed), None)
            if wrong is not None:
                where = "labels" if allowed is known else "choices"
                names = labels if allowed is known else example.choices
                hint = suggestion(wrong, names)
                problems.add(row.place, f"{what} {wrong!r} is not among the {where} ({listed(names)}){hint}")
                break


def _check_choices(rows: Sequence[Row], metric: str, problems: Problems) -> None:
    """Choices of one row must not be the same to who reads an answer, nor to the metric."""
    same = get_metric(metric).per_query
    for row in rows:
        for a, b in combinations(row.example.choices, 2):
            if label_key(a) == label_key(b):
                problems.add(row.place, f'"choices" {a!r} and {b!r} read alike in an answer; write them otherwise')
                break
            if same is not None and a != b and same(a, (b,)) == 1.0:
                fix = (
                    "write them otherwise, or set metrics: [accuracy]"
                    if metric != "accuracy"
                    else "write them otherwise"
                )
                problems.add(row.place, f'"choices" {a!r} and {b!r} are the same to the metric {metric}; {fix}')
                break


def _check_overlap(rows: dict[str, list[Row]], problems: Problems) -> None:
    """No test query may be among those that models are tuned on or chosen by."""
    if not rows.get("test"):
        return
    seen: dict[tuple[str, ...], Place] = {}
    for split in ("train", "validation"):
        for row in rows.get(split, ()):
            seen.setdefault(overlap_key(row.example), row.place)
    for row in rows.get("test", ()):
        other = seen.get(overlap_key(row.example))
        if other is not None:
            problems.add(row.place, f'the same "input" is at {other}; remove one, so that test queries are unseen')


def _split_off_validation(
    splits: dict[str, tuple[Example, ...]], fraction: float, seed: int, path: Path
) -> dict[str, tuple[Example, ...]]:
    examples = splits["train"]
    groups: dict[tuple[str, ...], list[Example]] = {}
    for example in examples:
        groups.setdefault(overlap_key(example), []).append(example)
    if len(groups) < 2:
        raise DataError(f"{path}: cannot split validation off train; give 2 different inputs or a validation file")
    keys = sorted(groups)
    random.Random(seed).shuffle(keys)
    wanted = max(1, round(len(examples) * fraction))
    held: set[str] = set()
    for key in keys[:-1]:  # one group always stays in train
        if len(held) >= wanted:
            break
        held.update(example.id for example in groups[key])
    parts = {
        "train": tuple(example for example in examples if example.id not in held),
        "validation": tuple(example for example in examples if example.id in held),
    }
    return parts | {split: part for split, part in splits.items() if split not in parts}
