"""A split of labelled utterances that have none of their own: stratified by label, near-duplicates on one side, by a seed."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from cowest.errors import DataError
from cowest.tasks.base import SPLITS
from cowest.tasks.jsonl_rows import Place
from cowest.types import Example

SHARES: Mapping[str, float] = {"test": 0.3, "validation": 0.1}
"""Of each label; the rest is for training."""
ALIKE = 0.6
"""Utterances are near-duplicates where they share so much of their words (Jaccard)."""
FEWEST = 3
"""Labels need so many utterances to be in every split."""
_WORD = re.compile(r"\w+")


def split_utterances(
    examples: Sequence[Example], seed: int, place: Place
) -> tuple[dict[str, tuple[Example, ...]], str]:
    """Train, validation and test, and a note on how they came about. Raises DataError for a label with too few utterances."""
    groups = near_duplicates([e.input for e in examples])
    by_label: dict[str, list[list[int]]] = defaultdict(list)
    for group in groups:
        by_label[examples[group[0]].references[0]].append(group)
    sides: dict[int, str] = {}
    for label, found in sorted(by_label.items()):
        if len(found) < FEWEST:
            raise DataError(
                f"{place}: {label} has {len(found)} utterances; at least {FEWEST} are needed for three splits"
            )
        random.Random(f"cowest-utterances/{seed}/{label}").shuffle(found)
        size = sum(map(len, found))
        for split, share in SHARES.items():
            taken = 0
            while found and taken < max(1, round(share * size)):
                group = found.pop()
                taken += len(group)
                sides |= dict.fromkeys(group, split)
        sides |= dict.fromkeys((i for group in found for i in group), "train")
    order = list(enumerate(examples))
    random.Random(f"cowest-utterances/{seed}").shuffle(order)  # the first hundred of a split are then a fair part of it
    splits = {split: tuple(e for i, e in order if sides[i] == split) for split in SPLITS}
    together = sum(len(group) for group in groups if len(group) > 1)
    sizes = " / ".join(f"{len(splits[split]):,}" for split in SPLITS)
    counts = Counter(e.references[0] for e in splits["test"])
    commonest = max(counts.values()) / len(splits["test"])
    note = (
        f"{len(examples):,} first utterances without rules-of-thumb, split {sizes} by split_seed {seed}, not as published: "
        f"stratified by label, {together} near-duplicates on one side; the commonest label is {commonest:.1%} of test ({place})"
    )
    return splits, note


def near_duplicates(texts: Sequence[str]) -> list[list[int]]:
    """The texts' numbers, grouped with those that they are near-duplicates of, directly or through others; in order."""
    bags = [frozenset(_WORD.findall(text.casefold())) for text in texts]
    holding: dict[str, list[int]] = defaultdict(list)
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    counts = Counter(word for bag in bags for word in bag)
    for i, bag in enumerate(bags):
        # Texts this much alike share one of the rarest words: enough of them to be more than the words that may differ.
        rare = sorted(bag, key=lambda word: (counts[word], word))[: len(bag) - int(ALIKE * len(bag)) + 1]
        for j in sorted({j for word in rare for j in holding[word]}):
            shared = len(bag & bags[j])
            if shared >= ALIKE * (len(bag) + len(bags[j]) - shared):
                parent[root(i)] = root(j)
        for word in rare:
            holding[word].append(i)
        if not bag:  # emoji, punctuation: alike where they are the same
            key = texts[i].strip()
            for j in holding[key]:
                parent[root(i)] = root(j)
            holding[key].append(i)
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(texts)):
        groups[root(i)].append(i)
    return sorted(groups.values())
