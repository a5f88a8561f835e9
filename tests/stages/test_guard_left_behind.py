"""A guard that `cowest run` has left behind, is not shown as the run's where the recipe or a file has changed, which is said."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pydantic import JsonValue
from tests.guard_runs import SAMPLES, SYSTEMS, guarded_recipe, guarded_run
from tests.helpers import Log
from tests.paid_endpoint import PaidEndpoint
from tests.test_damaged_run import cut, edit

from cowest import pipeline
from cowest.recipe.config import config_from_dict
from cowest.server.opening import open_served
from cowest.server.settings import Settings

pytest.importorskip("sklearn")
ALONE: dict[str, JsonValue] = {"systems": SYSTEMS}


async def run_and_guard(endpoint: PaidEndpoint, out: Path) -> None:
    """A run without the guard's rows, and then `cowest guard` on it."""
    await guarded_run(endpoint, out, evaluate=ALONE)
    async with endpoint.serve() as url:
        at(out, url)
        await pipeline.guard(out, {}, Log())


def at(out: Path, url: str) -> None:
    """The run's endpoints are on another port now."""
    kept = yaml.safe_load((out / "recipe.yaml").read_text())
    for side in ("weak", "strong"):
        kept[side]["base_url"] = url
    (out / "recipe.yaml").write_text(yaml.safe_dump(kept))


def left_out(log: Log) -> list[str]:
    return [line for line in log.lines if "the guard is left out of the report" in line]


async def test_another_risk_or_strong_model_leaves_it_out_until_it_is_made_again(tmp_path: Path) -> None:
    endpoint, log = PaidEndpoint(logprobs=True), Log()
    await run_and_guard(endpoint, tmp_path)
    assert "cascade" in (tmp_path / "report.html").read_text()
    await guarded_run(endpoint, tmp_path, log, evaluate=ALONE)
    assert not left_out(log) and "cascade" in (tmp_path / "report.html").read_text()

    await guarded_run(endpoint, tmp_path, log, evaluate=ALONE, guard={"risk": 0.3, "samples": SAMPLES})
    (said,) = left_out(log)
    assert "stage guard is to be run again, because guard.risk changed from 0.2 to 0.3" in said
    assert f"`cowest guard {tmp_path}` brings it up to date" in said
    assert "cascade" not in (tmp_path / "report.html").read_text()
    with pytest.raises(Exception, match=r"guard\.risk changed from 0\.2 to 0\.3.*`cowest guard` brings it up to date"):
        open_served(tmp_path, Settings(), only=["guarded"])

    async with endpoint.serve() as url:
        strong = guarded_recipe(url)["strong"]
        assert isinstance(strong, dict)
        other = guarded_recipe(url, evaluate=ALONE, strong=strong | {"model": "stronger"})
        again = Log()
        await pipeline.run(config_from_dict(other), tmp_path, again)
        (said,) = left_out(again)
        assert "stage calibrate is to be run again, because strong.model changed from strong to stronger" in said
        await pipeline.guard(tmp_path, {}, again)
    assert "cascade" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("name", ["calibration.jsonl", "guard.json", "results.json"])
@pytest.mark.parametrize("damage", [cut, edit])
async def test_damage_is_told_and_mended(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    endpoint, log = PaidEndpoint(logprobs=True), Log()
    await run_and_guard(endpoint, tmp_path)
    file, paid = tmp_path / "guard" / name, len(endpoint.answered)
    whole = file.read_bytes()
    damage(file)
    await pipeline.report_again(tmp_path)  # of the run's own results
    assert "cascade" not in (tmp_path / "report.html").read_text()
    await guarded_run(endpoint, tmp_path, log, evaluate=ALONE)
    (said,) = left_out(log)
    assert "is to be mended" in said and f"guard/{name}" in said
    async with endpoint.serve() as url:
        at(tmp_path, url)
        await pipeline.guard(tmp_path, {}, log)
    assert f"mended, because guard/{name}" in "\n".join(log.lines)
    assert len(endpoint.answered) == paid and file.read_bytes() == whole
    assert "cascade" in (tmp_path / "report.html").read_text()


def test_questions_that_are_gone_leave_it_out(tmp_path: Path) -> None:
    async def go() -> Log:
        endpoint, log = PaidEndpoint(logprobs=True), Log()
        await run_and_guard(endpoint, tmp_path)
        task = guarded_recipe("")["task"]
        assert isinstance(task, dict)
        await guarded_run(endpoint, tmp_path, log, evaluate=ALONE, task=task | {"calibration": 0})
        return log

    (said,) = left_out(asyncio.run(go()))
    assert "questions are left to calibrate on" in said
