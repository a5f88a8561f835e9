"""Every recipe that ships: found by a recursive glob, validated, and dry-run, row by row, without a model, a key or a hub."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cowest.assembly.prepare import prepare
from cowest.assembly.stand_ins import dry_run
from cowest.assembly.systems import Retrievers
from cowest.recipe.config import RunConfig, load_config, with_settings
from cowest.run.progress import QuietReporter
from cowest.table.estimate import estimate_table
from cowest.table.plan import make_plan
from cowest.table.run import open_plan

pytest.importorskip("bm25s")

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.rglob("*.yaml"))
TABLES = [path for path in RECIPES if load_config(path).table is not None]
PAPER = [path for path in TABLES if path.parent.name == "paper"]


def named(path: Path) -> str:
    return str(path.relative_to(FOLDER))


def runnable(path: Path) -> RunConfig:
    """The recipe on the samples that ship, as the datasets themselves do not; the starter's own data is written by `init`."""
    config = load_config(path)
    if path.parent.name == "paper":
        return with_settings(config, {"task.sample": True, "task.path": None})
    if path.parent.name == "real":
        return with_settings(config, {"task.sample": True, "draft.queries": 2})  # six questions to train on
    return config


def test_none_is_forgotten() -> None:
    assert len(RECIPES) == 30 and len(TABLES) == 23 and len(PAPER) == 8
    assert len({load_config(path).name for path in RECIPES}) == len(RECIPES)  # each has a run directory of its own


@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem not in ("starter", "real-pair")], ids=named)
def test_it_is_valid(path: Path, tmp_path: Path) -> None:
    contexts = prepare(runnable(path), tmp_path, QuietReporter(), offline=True)
    assert all(len(c.task.examples("test")) for c in contexts)


@pytest.mark.parametrize("path", TABLES, ids=named)
def test_every_row_of_every_point_answers_in_a_dry_run(path: Path, tmp_path: Path) -> None:
    config = runnable(path)
    seeds = with_settings(config, {"table.seeds": [config.comparison.seeds[0]]}) if config.comparison.seeds else config
    plan = make_plan(seeds)
    count = 0
    for variants in open_plan(plan, tmp_path, QuietReporter(), offline=True):
        retrievers = Retrievers()
        for variant in variants:
            example = variant.context.task.examples("test")[0]
            for row in variant.rows:
                answered, asked = asyncio.run(dry_run(variant.context, row, example, retrievers))
                assert answered.error is None and answered.text and asked, row.name
                count += 1
    assert count == len(plan.rows) * len(plan.labels) * len(plan.units)


@pytest.mark.parametrize("path", PAPER, ids=named)
def test_its_price_is_known_before_anything_is_paid(path: Path, tmp_path: Path) -> None:
    found = estimate_table(runnable(path), tmp_path)
    assert found.cost_usd is not None and 0 < found.cost_usd.low <= found.cost_usd.expected <= found.cost_usd.high
    assert not found.unpriced_models and found.calls.expected > 0
