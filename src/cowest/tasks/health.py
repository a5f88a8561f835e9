"""A look at a task's data, in seconds at 100,000 rows: sizes, classes, lengths, and what looks wrong.

What cannot be right is refused when data is read; here is what may be right and mostly is not: it is told, and stops nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict

from cowest.protocols import Task
from cowest.tasks.alike import Words, bands, hashes_of, links, numbers_key, words_of
from cowest.tasks.base import SPLITS
from cowest.tasks.jsonl_rows import overlap_key
from cowest.types import Example

SAMPLE: Final = 2000
"""Rows of which lengths are counted, evenly spaced, and the longest ones by their letters."""
SHOWN: Final = 3
ALIKE: Final = 0.8
"""Questions are near-duplicates where they share so much of their words, weighed by how rare they are (Jaccard)."""
_ONE_CLASS: Final = 0.95
_FEW_TESTS: Final = 100
_LONG_ANSWER: Final = 20
_BATCH: Final = 4000
_EMPTY: Final = frozenset({"n/a", "na", "nan", "none", "null", "-", "?", "unknown", "tbd"})


class Lengths(BaseModel):
    """Of a text of every row: how long it is in the middle, for 19 of 20, and at most."""

    model_config = ConfigDict(frozen=True)

    median: int
    p95: int
    longest: int


class Finding(BaseModel):
    """What looks wrong. ``kind`` is stable; ``text`` says how many, where the first ones are, and what to do."""

    model_config = ConfigDict(frozen=True)

    kind: str
    count: int
    text: str


class Health(BaseModel):
    """What there is to say of a task's data."""

    model_config = ConfigDict(frozen=True)

    metrics: tuple[str, ...]
    labels: tuple[str, ...]
    """Empty for open answers."""
    splits: dict[str, int]
    classes: dict[str, dict[str, int]]
    """Rows of each class in each split."""
    unit: str
    """What lengths are counted in: words, or tokens of which tokenizer."""
    lengths: dict[str, Lengths]
    """Of ``question``, ``context`` and ``learned`` (rationale and answer)."""
    findings: tuple[Finding, ...]


def health(
    task: Task, count: Callable[[str], int] | None = None, unit: str = "words", max_length: int | None = None
) -> Health:
    """Look at a task's data.

    Args:
        task: It has the splits train, validation and test; one that is missing counts as empty.
        count: Tokens of a text; words are counted unless given.
        unit: What ``count`` counts.
        max_length: Tokens of question, context and what is learned, beyond which training cuts a row.
    """
    rows = {split: _examples(task, split) for split in SPLITS}
    every = [(split, e) for split, some in rows.items() for e in some]
    measured = _measured(every)
    counted = count or (lambda text: len(text.split()))
    found: list[Finding | None] = [
        _mixed_choices(task, every),
        *_one_class(task, rows),
        _contradicting(every),
        _repeated(every),
        _near(every),
        _empty_answers(every),
        _spelled_apart(task, every),
        _long_answers(task, every),
        _too_long(task, measured, counted, max_length) if count is not None else None,
        _few_tests(rows["test"]),
    ]
    return Health(
        metrics=tuple(task.metrics),
        labels=tuple(task.labels),
        splits={split: len(some) for split, some in rows.items()},
        classes={s: _classes(task, some) for s, some in rows.items()} if task.labels else {},
        unit=unit if count is not None else "words",
        lengths=_lengths(task, measured, counted),
        findings=tuple(f for f in found if f is not None),
    )


Placed = Sequence[tuple[str, Example]]


def _examples(task: Task, split: str) -> Sequence[Example]:
    from cowest.errors import DataError

    try:
        return task.examples(split)
    except DataError:
        return ()


def _named(places: Iterable[tuple[str, Example]]) -> str:
    """The first rows by split and id."""
    found = [e.id if e.id.startswith(f"{split}-") else f"{split} {e.id}" for split, e in places]
    return ", ".join(found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")


def _classes(task: Task, rows: Sequence[Example]) -> dict[str, int]:
    counts = Counter(e.references[0] for e in rows if e.references)
    return {label: counts[label] for label in task.labels}


def _mixed_choices(task: Task, rows: Placed) -> Finding | None:
    """One row without the others' choices makes open answers of a classification."""
    kinds = Counter(frozenset(e.choices) for _, e in rows)
    if task.labels or len(kinds) < 2:
        return None
    common, n = max(((c, n) for c, n in kinds.items() if c), key=lambda kind: kind[1])
    other = [(s, e) for s, e in rows if frozenset(e.choices) != common]
    without = sum(1 for _, e in other if not e.choices)
    if n < len(rows) / 2 and not without:
        return None  # every row has choices of its own: a multiple choice
    named = ", ".join(sorted(common))[:120]
    if n >= len(rows) / 2:
        text = (
            f"{len(other):,} rows have other choices than {n:,} rows, or none ({_named(other)}): so this is no classification, and "
            f"answers are open ({', '.join(task.metrics)}). Give them the same choices, or set task.labels: [{named}]"
        )
    else:
        text = f"{without:,} rows have no choices, and others do ({_named((s, e) for s, e in other if not e.choices)}): add them"
    return Finding(kind="mixed_choices", count=len(other), text=text)


def _one_class(task: Task, rows: Mapping[str, Sequence[Example]]) -> list[Finding | None]:
    found: list[Finding | None] = []
    for split, some in rows.items() if task.labels else ():
        counts = _classes(task, some)
        total, most = sum(counts.values()), max(counts, key=lambda label: counts[label])
        missing = [label for label, n in counts.items() if not n]
        if total and counts[most] == total:
            text = f"{split}: all {total:,} rows are {most!r}; whoever says nothing else is right. Split the data anew"
            found.append(Finding(kind="one_class", count=total, text=text))
        elif total and counts[most] > _ONE_CLASS * total:
            text = f"{split}: {counts[most] / total:.1%} of the rows are {most!r}; look at macro_f1, not at accuracy"
            found.append(Finding(kind="one_class", count=counts[most], text=text))
        elif total and missing:
            text = (
                f"{split}: no row is {', '.join(map(repr, missing[:5]))}; more rows, or another split, would have one"
            )
            found.append(Finding(kind="missing_class", count=len(missing), text=text))
    return found


def _contradicting(rows: Placed) -> Finding | None:
    """Equal questions whose right answers have none in common."""
    by_key: dict[tuple[str, ...], list[tuple[str, Example]]] = defaultdict(list)
    for split, e in rows:
        by_key[overlap_key(e)].append((split, e))
    wrong = []
    for same in by_key.values():
        answers = [frozenset(_folded(r) for r in e.references) for _, e in same if e.references]
        if len(answers) > 1 and not all(answers[0] & other for other in answers[1:]):
            wrong += same
    if not wrong:
        return None
    text = (
        f"{len(wrong):,} rows ask what another row asks, and have another answer ({_named(wrong)}): keep the right one"
    )
    return Finding(kind="contradicting", count=len(wrong), text=text)


def _repeated(rows: Placed) -> Finding | None:
    """Rows that are there twice within a split."""
    seen: set[tuple[object, ...]] = set()
    again = []
    for split, e in rows:
        key = (split, overlap_key(e), frozenset(map(_folded, e.references)))
        if key in seen:
            again.append((split, e))
        seen.add(key)
    if not again:
        return None
    text = f"{len(again):,} rows are there again, question and answer ({_named(again)}): they count more than others"
    return Finding(kind="repeated", count=len(again), text=text)


def _near(rows: Placed) -> Finding | None:
    """Validation and test rows that are nearly a row of an earlier split."""
    if not rows:
        return None
    words = [words_of("\n".join(overlap_key(e))) for _, e in rows]
    bags = [hashes_of(some) for some in words]
    lengths = np.fromiter(map(len, bags), dtype=np.int64, count=len(bags))
    hashes = np.fromiter((h for bag in bags for h in bag), dtype=np.uint32, count=int(lengths.sum()))
    table = Words()
    table.count(hashes, len(bags))
    numbers = np.fromiter(map(numbers_key, words), dtype=np.uint32, count=len(words))
    side = np.fromiter((SPLITS.index(split) for split, _ in rows), dtype=np.uint8, count=len(rows))
    weights, ends = table.weights(hashes), np.cumsum(lengths)
    pairs: dict[int, int] = {}
    starts = ends - lengths
    found = [
        bands(
            table,
            hashes[starts[at] : ends[min(at + _BATCH, len(rows)) - 1]],
            lengths[at : at + _BATCH],
            numbers[at : at + _BATCH],
        )
        for at in range(0, len(rows), _BATCH)
    ]
    for column in np.concatenate(found).T:
        for one, other in links(np.ascontiguousarray(column)):
            apart = side[one] != side[other]
            for a, b in zip(one[apart].tolist(), other[apart].tolist(), strict=True):
                first, last = (a, b) if side[a] < side[b] else (b, a)
                if last not in pairs and _similarity(first, last, hashes, weights, ends, lengths) >= ALIKE:
                    pairs[last] = first
    if not pairs:
        return None
    some = [
        f"{_named([rows[last]])} is nearly {_named([rows[first]])}" for last, first in sorted(pairs.items())[:SHOWN]
    ]
    text = (
        f"{len(pairs):,} rows for validation or test are nearly a row of another split ({'; '.join(some)}): "
        "leave them out, or let `cowest import` split the data, which keeps such rows together"
    )
    return Finding(kind="near_duplicates", count=len(pairs), text=text)


def _similarity(
    a: int,
    b: int,
    hashes: np.ndarray[tuple[int], np.dtype[np.uint32]],
    weights: np.ndarray[tuple[int], np.dtype[np.int64]],
    ends: np.ndarray[tuple[int], np.dtype[np.int64]],
    lengths: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> float:
    one, other = (
        dict(zip(hashes[at].tolist(), weights[at].tolist(), strict=True))
        for at in (slice(ends[i] - lengths[i], ends[i]) for i in (a, b))
    )
    shared = sum(w for word, w in one.items() if word in other)
    total = sum(one.values()) + sum(other.values()) - shared
    return shared / total if total else 0.0


def _empty_answers(rows: Placed) -> Finding | None:
    wrong = [(s, e) for s, e in rows if any(r.strip().casefold() in _EMPTY for r in e.references)]
    if not wrong or len(wrong) > len(rows) / 20:  # then it is an answer
        return None
    text = f"{len(wrong):,} answers look like none at all ({wrong[0][1].references[0]!r}: {_named(wrong)}): leave these rows out"
    return Finding(kind="empty_answers", count=len(wrong), text=text)


def _spelled_apart(task: Task, rows: Placed) -> Finding | None:
    """Few different answers that are open: classes, or classes that are not always written alike."""
    if task.labels:
        return None
    counts = Counter(e.references[0] for _, e in rows if e.references and not e.choices)
    folded: dict[str, set[str]] = defaultdict(set)
    for answer in counts:
        folded[_folded(answer)].add(answer)
    if not 2 <= len(folded) <= 20 or sum(counts.values()) < 5 * len(folded):
        return None
    apart = [sorted(found) for found in folded.values() if len(found) > 1]
    names = ", ".join(max(found, key=lambda a: counts[a]) for found in folded.values())
    if apart:
        n = sum(sum(counts[a] for a in found) - max(counts[a] for a in found) for found in apart)
        text = f"{n:,} answers differ from others in case or spaces alone ({' / '.join(map(repr, apart[0][:3]))}): write them alike"
        return Finding(kind="spelled_apart", count=n, text=text)
    text = f"the answers are {len(folded)} different ones: for a classification set task.labels: [{names[:200]}]"
    return Finding(kind="classes_as_open", count=len(folded), text=text)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _long_answers(task: Task, rows: Placed) -> Finding | None:
    sizes = sorted(len(e.references[0].split()) for _, e in rows if e.references)
    if task.labels or not sizes or sizes[len(sizes) // 2] <= _LONG_ANSWER:
        return None
    text = (
        f"half of the answers have more than {_LONG_ANSWER} words: no text will be equal to them. Have answers scored by a model "
        "(feedback.judge) or compared (feedback.compare): docs/signals.md"
    )
    return Finding(kind="long_answers", count=sum(n > _LONG_ANSWER for n in sizes), text=text)


def _measured(rows: Placed) -> Placed:
    """Rows that lengths are taken of."""
    step = max(1, len(rows) // SAMPLE)
    longest = sorted(rows, key=lambda row: -_letters(row[1]))[:20] if step > 1 else []
    return [*rows[::step], *longest]


def _letters(e: Example) -> int:
    turns = sum(len(turn.content) for turn in e.turns)
    return len(e.input) + len(e.context or "") + len(e.rationale or "") + len(e.target or "") + turns


def _asked(e: Example) -> str:
    return "\n".join([*(turn.content for turn in e.turns), e.input])


def _lengths(task: Task, rows: Placed, count: Callable[[str], int]) -> dict[str, Lengths]:
    texts = {
        "question": [_asked(e) for _, e in rows],
        "context": [e.context for _, e in rows if e.context],
        "learned": [task.target(e) for split, e in rows if split == "train"],
    }
    found = {}
    for name, some in texts.items():
        if some:
            sizes = sorted(map(count, some))
            middle, high = sizes[len(sizes) // 2], sizes[int(0.95 * (len(sizes) - 1))]
            found[name] = Lengths(median=middle, p95=high, longest=sizes[-1])
    return found


def _too_long(task: Task, rows: Placed, count: Callable[[str], int], most: int | None) -> Finding | None:
    if most is None:
        return None
    long = [
        (s, e)
        for s, e in rows
        if s == "train" and count("\n".join([_asked(e), e.context or "", task.target(e)])) > most
    ]
    if not long:
        return None
    text = (
        f"{len(long):,} of {len(rows):,} rows looked at are longer than sft.max_length, {most} tokens ({_named(long)}), and are "
        "cut: raise it, or shorten contexts"
    )
    return Finding(kind="too_long", count=len(long), text=text)


def _few_tests(rows: Sequence[Example]) -> Finding | None:
    if not rows or len(rows) >= _FEW_TESTS:
        return None
    text = f"{len(rows)} test rows: only large differences will be certain; some hundreds are needed for others"
    return Finding(kind="few_tests", count=len(rows), text=text)
