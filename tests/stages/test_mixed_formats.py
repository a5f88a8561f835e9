"""Formats mixed in one query: each draft is asked for in its own, SFT teaches all, pairs are for the one that is evaluated."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.helpers import Log, Oracle, run_tiny, save_tiny_model, tiny_recipe
from tests.paid_endpoint import PaidEndpoint, paid_recipe, records_of

from cowest.collaboration.formats import FORMATS
from cowest.costs.estimate import estimate
from cowest.errors import ConfigError
from cowest.pipeline import run
from cowest.recipe.config import config_from_dict
from cowest.run.store import RunDir
from cowest.types import PreferencePair

MIXED: list[JsonValue] = ["direct", "chain_of_thought"]
PROMPTS: dict[str, JsonValue] = {"solo": "{input}", "refine": "{input}\nDraft: {draft}"}
ASKS = {name: FORMATS.find(name, "").instruction for name in ("direct", "knowledge", "chain_of_thought")}


def recipe(url: str, draft: dict[str, JsonValue], **changes: JsonValue) -> dict[str, JsonValue]:
    rest: dict[str, JsonValue] = {"prompts": PROMPTS, "evaluate": {"queries": 2, "systems": ["collab"]}}
    return paid_recipe(url, **(rest | {"draft": {"samples": 5, "queries": 20} | draft} | changes))


async def drawn(endpoint: PaidEndpoint, out: Path, draft: dict[str, JsonValue]) -> Path:
    async with endpoint.serve() as url:
        await run(config_from_dict(recipe(url, draft)), out, Log())
    return out


def asked(endpoint: PaidEndpoint) -> Counter[str]:
    """In which formats the weak model was asked to write."""
    bodies = [body for body in map(json.loads, endpoint.answered) if body["model"] == "weak"]
    return Counter(name for b in bodies for name, how in ASKS.items() if b["messages"][-1]["content"].endswith(how))


async def test_drafts_take_the_formats_in_turn_and_pairs_are_for_the_one_that_is_evaluated(tmp_path: Path) -> None:
    mixed: dict[str, JsonValue] = {"formats": MIXED}
    endpoint = PaidEndpoint()
    config = config_from_dict(recipe("http://127.0.0.1:9/v1", mixed))
    lines = (await asyncio.to_thread(estimate, config, tmp_path / "none")).stages
    assert [s.calls.high for s in lines if s.stage == "sample"] == [5 * 20]
    out = await drawn(endpoint, tmp_path / "mixed", mixed)
    assert asked(endpoint) == {"direct": 3 * 20, "chain_of_thought": 2 * 20 + 2}  # and the evaluation's two
    pairs = RunDir(out).file("pairs.jsonl", PreferencePair).load()
    assert pairs and all(pair.prompt[-1].content.endswith(ASKS["chain_of_thought"]) for pair in pairs)
    left = (await asyncio.to_thread(estimate, config, out)).stages
    assert [s.calls.high for s in left if s.stage == "sample"] == [0]
    slow = await drawn(PaidEndpoint(0.01), tmp_path / "slow", mixed)
    assert records_of(slow) == records_of(out)
    log = Log()
    async with endpoint.serve() as url:
        await run(config_from_dict(recipe(url, {})), out, log)
    assert "draft.formats" in log.verdicts["sample"]


async def test_a_run_without_them_is_what_it_was(tmp_path: Path) -> None:
    endpoint = PaidEndpoint()
    out = await drawn(endpoint, tmp_path, {})
    assert asked(endpoint) == {"chain_of_thought": 5 * 20 + 2}
    manifest = out / "manifest.json"  # as an older version wrote it
    newer = manifest.read_text()
    older = json.loads(newer)
    for stage in older["stages"].values():
        stage["made_with"].pop("draft.formats", None)
    assert '"draft.formats"' in newer
    manifest.write_text(json.dumps(older))
    calls, log = len(endpoint.answered), Log()
    async with endpoint.serve() as url:
        await run(config_from_dict(recipe(url, {})), out, log)
    assert len(endpoint.answered) == calls and "run again" not in " ".join(log.lines)


@pytest.mark.slow
def test_sft_teaches_each_example_in_all_of_them(tmp_path: Path) -> None:
    weak, base = save_tiny_model(tmp_path / "weak"), tiny_recipe("w", "http://127.0.0.1:9/v1")
    sft, align, draft = (dict(base[name]) for name in ("sft", "align", "draft"))  # type: ignore[arg-type]
    sft |= {"max_length": 400, "max_steps": 8}
    align |= {"max_length": 400}
    run_tiny(weak, tmp_path / "run", Oracle(), prompts=PROMPTS, sft=sft, align=align, draft=draft | {"formats": MIXED})
    manifest = RunDir(tmp_path / "run").manifest().stages
    assert manifest["sft"].counts["rows"] == 2 * 40 and manifest["sample"].counts["drafts"] == 12 * 3
    log = Log()
    run_tiny(weak, tmp_path / "run", Oracle(), log, prompts=PROMPTS, sft=sft, align=align, draft=draft)
    assert "draft.formats" in log.verdicts["sft"]
    assert RunDir(tmp_path / "run").manifest().stages["sft"].counts["rows"] == 40


@pytest.mark.parametrize(
    ("draft", "changes", "message"),
    [
        ({"formats": ["direct", "knowledge"]}, {}, "add draft.format, chain_of_thought"),
        ({"formats": ["chain_of_thought", "chain_of_thought"]}, {}, "name each once"),
        ({"formats": [*MIXED, "knowledge"], "samples": 2}, {}, "no more of them than draft.samples, 2"),
        ({"formats": [*MIXED, "essay"]}, {}, "essay"),
        ({"formats": MIXED}, {"prompts": {"draft": "{input}"}}, "asked in the same words"),
        ({"formats": MIXED}, {"prompts": {}}, "asked in the same words"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    draft: dict[str, JsonValue], changes: dict[str, JsonValue], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        await run(config_from_dict(recipe("http://127.0.0.1:9/v1", draft, **changes)), tmp_path, Log())
