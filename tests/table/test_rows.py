"""Every row without its models: which requests it makes, of whom, on every kind of task."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cowest.errors import ConfigError
from cowest.systems.registry import TABLE
from cowest.table.show import Shown, messages_of

pytest.importorskip("bm25s")

CALLS = {  # the requests of one query: (model, how many)
    "weak_zero_shot": [("weak (base)", 1)],
    "weak_few_shot": [("weak (base)", 1)],
    "weak_cot": [("weak (base)", 1)],
    "weak": [("weak (sft)", 1)],
    "weak_self_consistency": [("weak (sft)", 5)],
    "strong_zero_shot": [("strong", 1)],
    "strong_few_shot": [("strong", 1)],
    "strong": [("strong", 1)],
    "strong_self_consistency": [("strong", 5)],
    "strong_self_refine": [("strong", 2)],
    "bm25": [("strong", 1)],
    "dense": [("strong", 1)],
    "flare": [("strong", 1)],
    "supericl": [("weak (sft)", 1), ("strong", 1)],
    "rlwf": [("weak (aligned)", 1)],
    "sft_positives": [("weak (aligned)", 1), ("strong", 1)],
    "best_of_k": [("weak (sft)", 5), ("strong", 1)],
    "collab_direct": [("weak (sft)", 1), ("strong", 1)],
    "collab_direct_aligned": [("weak (aligned)", 1), ("strong", 1)],
    "collab_knowledge": [("weak (sft)", 1), ("strong", 1)],
    "collab_knowledge_aligned": [("weak (aligned)", 1), ("strong", 1)],
    "collab_cot": [("weak (sft)", 1), ("strong", 1)],
    "collab_cot_aligned": [("weak (aligned)", 1), ("strong", 1)],
}


def shown(target: str, row: str | None = None) -> dict[str, list[Shown]]:
    found: dict[str, list[Shown]] = {}
    for one in asyncio.run(messages_of(target, row, 0, None, [])):
        found.setdefault(one.row, []).append(one)
    return found


@pytest.mark.parametrize("task", ["ifqa", "pubmedqa", "prosocial", "medicine"])
def test_every_row_asks_what_its_name_says(task: str) -> None:
    found = shown(task)
    assert list(found) == [row.name for row in TABLE]
    for name, asked in found.items():
        if name == "self_rag":  # judgements, then the answers
            assert {a.model for a in asked} == {"strong"} and len(asked) >= 2
            continue
        counted = [(model, sum(a.model == model for a in asked)) for model in dict.fromkeys(a.model for a in asked)]
        expected = CALLS[name]
        if name == "best_of_k":  # equal drafts leave nothing to choose: the stand-in's are all alike
            assert counted[0] == expected[0] and counted[-1][0] == "strong"
            continue
        assert counted == expected, name


def test_the_formats_differ_in_what_the_weak_model_is_asked() -> None:
    found = shown("pubmedqa")
    asked = {name: found[name][0].messages[-1].content for name in ("collab_direct", "collab_knowledge", "collab_cot")}
    assert len(set(asked.values())) == 3


def test_few_shot_examples_are_of_each_class_and_never_of_the_test() -> None:
    (asked,) = shown("pubmedqa", "strong_few_shot")["strong_few_shot"]
    answers = [m.content.rpartition("Answer: ")[2] for m in asked.messages if m.role == "assistant"]
    assert len(answers) == 4 and set(answers[:3]) == {"yes", "no", "maybe"}
    assert asked.messages[-1].content not in [m.content for m in asked.messages[:-1]]


def test_zero_shot_and_chain_of_thought_differ_for_models_that_know_the_difference() -> None:
    found = shown("ifqa")
    assert found["strong_zero_shot"][0].messages != found["strong"][0].messages
    assert "Reason briefly" in found["strong"][0].messages[-1].content.splitlines()[-1]
    assert "Do not explain" in found["strong_zero_shot"][0].messages[-1].content.splitlines()[-1]


def test_a_recipe_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'ifqa'"):
        shown("ifqaa")
