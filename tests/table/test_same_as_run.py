"""The same recipe by ``cowest run`` and by ``cowest table``: one and the same drafts, weights and answers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.helpers import Log, Oracle, run_tiny, save_tiny_model, tiny_recipe

from cowest.models.endpoint import make_app, serve
from cowest.recipe.config import config_from_dict
from cowest.run.store import JsonlFile
from cowest.stages.choosing import Selection
from cowest.table.plan import make_plan
from cowest.table.run import run_table
from cowest.types import Draft, Prediction

pytestmark = pytest.mark.slow
FOUR = ("weak", "strong", "collab", "collab_aligned")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of the run, and that of the table's only variant, where the local model has answers.sqlite before it."""
    weak, out = save_tiny_model(tmp_path_factory.mktemp("weak")), tmp_path_factory.mktemp("both")
    run_tiny(weak, out / "run", Oracle())

    async def table() -> None:
        async with serve(make_app(Oracle(), model_name="strong")) as url:
            rows: JsonValue = {"rows": [*FOUR, "collab_cot"]}
            await run_table(make_plan(config_from_dict(tiny_recipe(weak, url, table=rows))), out / "table", Log())

    asyncio.run(table())
    return out / "run", out / "table" / "seed-3" / "main"


def drafts(folder: Path) -> list[JsonValue]:
    """The records without what is measured, and without what the ledger alone can tell: the price."""
    found = JsonlFile(folder / "drafts.jsonl", Draft).load()
    return [d.model_dump(mode="json", exclude={"latency_s": True, "usage": {"cost_usd"}}) for d in found]


def test_the_drafts_are_the_same_record_for_record(both: tuple[Path, Path]) -> None:
    run, table = both
    assert drafts(run) == drafts(table) and len(drafts(run)) == 36
    assert len({str(d) for d in drafts(run)}) == 36


def test_the_aligned_model_is_the_same(both: tuple[Path, Path]) -> None:
    chosen = [
        [
            (c.step, c.score)
            for c in Selection.model_validate_json((f / "align/selection.json").read_bytes()).checkpoints
        ]
        for f in both
    ]
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize("name", FOUR)
def test_every_system_answers_the_same(both: tuple[Path, Path], name: str) -> None:
    run, table = both
    mine = JsonlFile(run / f"predictions/{name}.jsonl", Prediction).load()
    rows = JsonlFile(table / f"rows/{name}.jsonl", Prediction).load()
    assert [(p.example_id, p.system, p.draft, p.text) for p in mine] == [
        (p.example_id, p.system, p.draft, p.text) for p in rows
    ]


def test_a_row_in_the_recipes_own_format_is_made_of_the_same_parts(both: tuple[Path, Path]) -> None:
    _, table = both
    texts = [
        [(p.draft, p.text) for p in JsonlFile(table / f"rows/{name}.jsonl", Prediction).load()]
        for name in ("collab", "collab_cot")
    ]
    assert texts[0] == texts[1]
    assert set(json.loads((table / "manifest.json").read_text())["stages"]) >= {"row collab", "row collab_cot"}
