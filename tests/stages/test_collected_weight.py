"""What people preferred counts in alignment as much as the recipe says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.helpers import SIZES, WORLD, Log
from tests.paid_endpoint import PaidEndpoint, paid_recipe

from cowest.errors import ConfigError
from cowest.pipeline import run
from cowest.recipe.config import config_from_dict
from cowest.run.store import JsonlFile, RunDir
from cowest.types import Message, PreferencePair

ROW = {"id": "collected-a", "input": "Is Quorra safe?", "answer": "yes"}


def collected(folder: Path) -> str:
    """The files of `cowest collect`, with one pair."""
    path = folder / "collected.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    pair = PreferencePair(
        example_id="collected-a",
        prompt=(Message(role="user", content="Is Quorra safe?"),),
        chosen=(Message(role="assistant", content="Yes."),),
        rejected=(Message(role="assistant", content="No."),),
        chosen_gain=1.0,
        rejected_gain=0.0,
    )
    JsonlFile(path.with_suffix(".pairs.jsonl"), PreferencePair).replace([pair])
    return str(path)


async def made(
    out: Path, task: dict[str, JsonValue], seed: int = 0, **pairs: JsonValue
) -> tuple[list[PreferencePair], Log]:
    log = Log()
    async with PaidEndpoint(0).serve() as url:
        changes: dict[str, JsonValue] = {
            "seed": seed,
            "pairs": pairs,
            "evaluate": {"queries": 1, "systems": ["strong"]},
        }
        await run(config_from_dict(paid_recipe(url, task=task, **changes)), out, log)
    return RunDir(out).file("pairs.jsonl", PreferencePair).load(), log


async def test_pairs_of_people_have_their_own_weight(tmp_path: Path) -> None:
    task: dict[str, JsonValue] = {**WORLD, **SIZES, "collected": collected(tmp_path)}
    plain, _ = await made(tmp_path / "run", task)
    assert {pair.weight for pair in plain} == {None} and len(plain) > 1
    assert "weight" not in (tmp_path / "run/pairs.jsonl").read_text(), "as files were before"
    weighed, log = await made(tmp_path / "run", task, collected_weight=2.5)
    assert [pair.weight for pair in weighed] == [None] * (len(plain) - 1) + [2.5]
    assert weighed[-1].model_copy(update={"weight": None}) == plain[-1] and weighed[:-1] == plain[:-1]
    assert "pairs.collected_weight" in log.verdicts["pairs"] and log.verdicts["feedback"].startswith("reused")


async def test_what_people_said_of_a_calibration_question_teaches_nothing(tmp_path: Path) -> None:
    task: dict[str, JsonValue] = {**WORLD, **SIZES, "collected": collected(tmp_path)}
    few_pairs, _ = await made(tmp_path / "few", task | {"calibration": 1}, seed=3)  # of 41 training questions
    most_pairs, _ = await made(tmp_path / "most", task | {"calibration": 30}, seed=3)
    assert "collected-a" in [pair.example_id for pair in few_pairs]
    assert "collected-a" not in [pair.example_id for pair in most_pairs]


async def test_where_nothing_was_collected_it_is_no_matter(tmp_path: Path) -> None:
    await made(tmp_path / "run", {**WORLD, **SIZES})
    _, log = await made(tmp_path / "run", {**WORLD, **SIZES}, collected_weight=2.5)
    assert log.verdicts["pairs"].startswith("reused")


@pytest.mark.parametrize("weight", [0, -1])
def test_a_weight_is_more_than_none(weight: int) -> None:
    with pytest.raises(ConfigError, match=r"collected_weight"):
        config_from_dict(paid_recipe("http://127.0.0.1:9/v1", pairs={"collected_weight": weight}))
