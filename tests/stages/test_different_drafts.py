"""Drafts that differ on purpose: each at its own temperature, and near-duplicates drawn again, whatever the timing."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import pytest
from aiohttp import web
from pydantic import JsonValue
from tests.helpers import Log
from tests.paid_endpoint import PaidEndpoint, paid_recipe, records_of

from cowest.collaboration.draft import alike, unlike
from cowest.costs.estimate import estimate
from cowest.errors import BudgetExceededError, ConfigError
from cowest.pipeline import run
from cowest.recipe.config import RunConfig, config_from_dict
from cowest.run.store import RunDir
from cowest.types import Draft, Usage

LADDER: list[JsonValue] = [0.2, 0.7, 1.3]
TEXTS = ("Answer: yes", "answer: YES.", "Answer: no", "Answer: maybe")  # the first two are alike


class Terse(PaidEndpoint):
    """A weak model with four things to say."""

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.json()
        answer = json.loads((await super()._answer(request)).body or b"")  # type: ignore[arg-type]
        for choice in answer["choices"] if body["model"] == "weak" else ():
            digest = hashlib.sha256(json.dumps([body, choice["index"]], sort_keys=True).encode()).digest()
            choice["message"]["content"] = TEXTS[digest[0] % len(TEXTS)]
        return web.json_response(answer)


def recipe(url: str, draft: dict[str, JsonValue], **changes: JsonValue) -> RunConfig:
    evaluate: JsonValue = {"queries": 1, "systems": ["strong"]}
    return config_from_dict(paid_recipe(url, draft={"samples": 3, "queries": 20} | draft, evaluate=evaluate, **changes))


async def drawn(endpoint: PaidEndpoint, out: Path, draft: dict[str, JsonValue], **changes: JsonValue) -> list[Draft]:
    async with endpoint.serve() as url:
        await run(recipe(url, draft, **changes), out, Log())
    return RunDir(out).file("drafts.jsonl", Draft).load()


def weak_calls(endpoint: PaidEndpoint) -> list[dict[str, JsonValue]]:
    return [body for body in map(json.loads, endpoint.answered) if body["model"] == "weak"]


@pytest.mark.parametrize("samples_per_call", [1, 3])
async def test_each_draft_has_the_temperature_of_its_rung(tmp_path: Path, samples_per_call: int) -> None:
    weak, endpoint = paid_recipe("http://127.0.0.1:9/v1")["weak"], PaidEndpoint()
    assert isinstance(weak, dict)
    async with endpoint.serve() as url:
        several: JsonValue = weak | {"base_url": url, "samples_per_call": samples_per_call}
        await run(recipe(url, {"ladder": LADDER, "samples": 5}, weak=several), tmp_path, Log())
    asked = [body["temperature"] for body in weak_calls(endpoint)]
    assert {t: asked.count(t) for t in LADDER} == {0.2: 40, 0.7: 40, 1.3: 20}  # 5 drafts of 20 queries, round robin


async def test_without_them_drafts_are_drawn_as_ever(tmp_path: Path) -> None:
    endpoint = PaidEndpoint()
    await drawn(endpoint, tmp_path, {})
    assert {body["temperature"] for body in weak_calls(endpoint)} == {1.0} and len(weak_calls(endpoint)) == 60
    assert "redrawn" not in (tmp_path / "drafts.jsonl").read_text()
    assert "redrawn" not in RunDir(tmp_path).manifest().stages["sample"].counts


async def test_near_duplicates_are_drawn_again_and_give_more_pairs(tmp_path: Path) -> None:
    plain, again = Terse(), Terse()
    before = await drawn(plain, tmp_path / "plain", {})
    found = await asyncio.to_thread(estimate, recipe("http://127.0.0.1:9/v1", {"redraw": 6}), tmp_path / "none")
    (line,) = [s.calls for s in found.stages if s.stage == "sample"]
    after = await drawn(again, tmp_path / "again", {"redraw": 6})
    assert alike(before) > 10 > alike(after)
    counts = RunDir(tmp_path / "again").manifest().stages["sample"].counts
    assert counts["redrawn"] == sum(d.redrawn for d in after) > 0 and counts["still_alike"] == alike(after)
    assert line.low == 60 <= len(weak_calls(again)) == 60 + counts["redrawn"] <= line.high == 60 + 20 * 2 * 6
    assert sum(d.usage.calls for d in after) == len(weak_calls(again))
    assert len(await drawn(again, tmp_path / "again", {"redraw": 6})) == 60  # and nothing is asked again
    assert len(weak_calls(again)) == 60 + counts["redrawn"]
    first = {d.id: d.text for d in before}
    assert all(d.text == first[d.id] for d in after if not d.redrawn)


async def test_what_is_drawn_depends_on_no_timing_and_on_no_stop(tmp_path: Path) -> None:
    settings: dict[str, JsonValue] = {"redraw": 4, "ladder": [0.5, 1.0]}
    await drawn(Terse(0.02), tmp_path / "slow", settings)
    await drawn(Terse(0.0), tmp_path / "fast", settings)
    with pytest.raises(BudgetExceededError):
        await drawn(Terse(), tmp_path / "stopped", settings, budget_calls=45)
    assert 0 < len((tmp_path / "stopped/drafts.jsonl").read_text().splitlines()) < 60
    await drawn(Terse(), tmp_path / "stopped", settings)
    assert records_of(tmp_path / "slow") == records_of(tmp_path / "fast") == records_of(tmp_path / "stopped")


async def test_a_greedy_draft_cannot_be_drawn_again(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"draft\.redraw: at temperature 0"):
        await drawn(PaidEndpoint(), tmp_path, {"redraw": 1, "sampling": {"temperature": 0.0}})
    with pytest.raises(ConfigError, match=r"draft\.ladder"):
        await drawn(PaidEndpoint(), tmp_path, {"ladder": [-1.0]})


def draft(index: int, text: str | None) -> Draft:
    return Draft(id=f"q#{index}", example_id="q", index=index, text=text, usage=Usage(calls=1))


async def test_a_try_that_fails_leaves_the_draft_and_what_is_settled_stays() -> None:
    tries: list[tuple[int, int]] = []

    async def again(index: int, attempt: int) -> Draft:
        tries.append((index, attempt))
        return draft(index, None if attempt == 1 else "new")

    made = [draft(0, "same"), draft(1, "Same."), draft(2, "same"), draft(3, None), draft(4, "new")]
    kept = await unlike(made, again, 2, settled=[2])
    assert [d.text for d in kept] == ["same", "new", "same", None, "new"]
    assert tries == [(1, 1), (1, 2), (4, 1), (4, 2)]
    assert [(d.redrawn, d.usage.calls) for d in kept] == [(0, 1), (2, 3), (0, 1), (0, 1), (2, 3)]
