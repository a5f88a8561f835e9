"""ProsocialDialog's first utterances: labels alone, and a split of cowest's own."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from pydantic import JsonValue

from cowest.collaboration.formats import FORMATS
from cowest.errors import DataError
from cowest.recipe.config import ProsocialTaskConfig
from cowest.tasks.base import SPLITS, SimpleTask
from cowest.tasks.first_utterances import near_duplicates
from cowest.tasks.prosocial import LABELS, load_prosocial

WORDS = [f"word{i}" for i in range(400)]


def utterances(n: int = 400) -> list[dict[str, str]]:
    """Every fifth is a near-duplicate of the one before: a word is another, the case, a full stop."""
    rng, found = random.Random(1), list[dict[str, str]]()
    for i in range(n):
        said = rng.sample(WORDS, 12)
        if i % 5 == 4:
            said = [*found[-1]["context"].rstrip(".").upper().split()[:-1], "indeed"]
        label = LABELS[0 if i % 2 else (i // 2) % 5]
        found.append({"context": f"{' '.join(said)}.", "safety_label": label, "published_split": "test"})
    return found


def load(folder: Path, rows: list[dict[str, str]] | None = None, **settings: JsonValue) -> SimpleTask:
    lines = "".join(json.dumps(row) + "\n" for row in (utterances() if rows is None else rows))
    (folder / "labelled.jsonl").write_text(lines, encoding="utf-8")
    values = {"kind": "prosocial", "path": str(folder), "official": False, **settings}
    return load_prosocial(ProsocialTaskConfig.model_validate(values))


def test_the_split_is_stratified_and_keeps_near_duplicates_together(tmp_path: Path) -> None:
    task = load(tmp_path)
    sizes = {split: len(task.examples(split)) for split in SPLITS}
    assert sum(sizes.values()) == 400 and 110 <= sizes["test"] <= 130 and 35 <= sizes["validation"] <= 50
    every = Counter(e.references[0] for split in SPLITS for e in task.examples(split))
    test = Counter(e.references[0] for e in task.examples("test"))
    assert all(abs(test[label] / sizes["test"] - every[label] / 400) < 0.05 for label in LABELS)
    side = {e.input: split for split in SPLITS for e in task.examples(split)}
    pairs = [(rows[i - 1], rows[i]) for rows in (utterances(),) for i in range(4, 400, 5)]
    assert len(pairs) == 80 and all(side[a["context"]] == side[b["context"]] for a, b in pairs)
    assert "160 near-duplicates on one side" in task.notes[0] and "not as published" in task.notes[0]


def test_a_seed_makes_another_split_and_the_same_one_the_same(tmp_path: Path) -> None:
    first, again, other = load(tmp_path), load(tmp_path), load(tmp_path, split_seed=1)
    assert first.splits == again.splits != other.splits
    assert first.splits["test"] != tuple(
        sorted(first.splits["test"], key=lambda e: e.id)
    )  # any beginning is a fair part


def test_without_rules_of_thumb_every_format_but_knowledge_writes_the_label(tmp_path: Path) -> None:
    task = load(tmp_path)
    example = task.examples("train")[0]
    target, wanted = task.target(example), f"Answer: {example.references[0]}"
    written = {name: FORMATS.find(name, "x").completion(target, example) for name in FORMATS.names()}
    assert written["direct"] == written["chain_of_thought"] == wanted and written["knowledge"] is None
    assert "the first utterance" in task.instruction and all(label in task.instruction for label in LABELS)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labelled\.jsonl.*no published splits; set official: false"):
        load(tmp_path, official=True)
    with pytest.raises(
        DataError, match=r"labelled\.jsonl:1: \"safety_label\" is '__casul__'; did you mean '__casual__'"
    ):
        load(tmp_path, [{"context": "x", "safety_label": "__casul__"}])
    with pytest.raises(DataError, match="__casual__ has 2 utterances; at least 3 are needed"):
        load(tmp_path, [{"context": text, "safety_label": "__casual__"} for text in ("a b c", "d e f")])


def test_near_duplicates_agree_with_comparing_all() -> None:
    rng = random.Random(3)
    texts = [" ".join(rng.choices("abcdefgh", k=rng.randint(0, 6))) for _ in range(120)] + ["!!", "!!", "??"]
    bags = [frozenset(text.split()) if text.strip("!?") else frozenset[str]() for text in texts]
    parent = list(range(len(texts)))
    for i in range(len(texts)):
        for j in range(i):
            same = len(bags[i] & bags[j]) >= 0.6 * len(bags[i] | bags[j]) if bags[i] else texts[i] == texts[j]
            if same:
                old, new = parent[i], parent[j]
                parent = [new if p == old else p for p in parent]
    wanted = {frozenset(i for i, p in enumerate(parent) if p == root) for root in set(parent)}
    assert {frozenset(group) for group in near_duplicates(texts)} == wanted
