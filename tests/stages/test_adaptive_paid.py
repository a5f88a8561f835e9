"""``feedback.adaptive`` on a served pair: batches, kill -9, and what is said of it before."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import yaml
from pydantic import JsonValue
from tests.batch_server import Provider
from tests.helpers import Log
from tests.paid_endpoint import PaidEndpoint, paid_recipe, reply

from cowest.costs.estimate import estimate
from cowest.pipeline import run
from cowest.recipe.config import config_from_dict
from cowest.run.store import JsonlFile
from cowest.types import Refinement

FILES = ("solo.jsonl", "refinements.jsonl", "feedback.jsonl", "pairs.jsonl")
SHORT: dict[str, JsonValue] = {"sampling": {"max_tokens": 20}}


def recipe_of(url: str, **feedback: JsonValue) -> dict[str, JsonValue]:
    recipe = paid_recipe(url, feedback={**SHORT, "adaptive": "contrast", **feedback})
    if feedback.get("mode") == "batch":
        strong = recipe["strong"]
        assert isinstance(strong, dict)
        strong |= {"batch": {"poll_s": 0.02, "discount": 0.5}}
    return recipe


def content(out: Path) -> list[list[JsonValue]]:
    """The files but for what answers took."""
    return [
        [{k: v for k, v in json.loads(line).items() if k not in ("latency_s", "usage")} for line in lines]
        for lines in ((out / name).read_text().splitlines() for name in FILES)
    ]


def counts(out: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads((out / "manifest.json").read_text())["stages"]["feedback"]["counts"]
    return found


async def test_lots_become_batches_and_give_the_same_files(tmp_path: Path) -> None:
    provider, endpoint = Provider(answer=lambda body: reply(body, 0)), PaidEndpoint()
    async with provider.serve() as url:
        await run(config_from_dict(recipe_of(url, mode="batch")), tmp_path / "batch", Log())
    async with endpoint.serve() as url:
        await run(config_from_dict(recipe_of(url)), tmp_path / "live", Log())
    assert content(tmp_path / "batch") == content(tmp_path / "live")
    assert 1 < len(provider.jobs) <= 3, "the first two drafts of all queries, then one more of those that need it"
    assert counts(tmp_path / "batch")["calls_saved_contrast"] > 0


async def test_kill_9_in_mid_lot_pays_nothing_twice(tmp_path: Path) -> None:
    endpoint, calm = PaidEndpoint(delay_s=0.02), PaidEndpoint()
    out, path = tmp_path / "run", tmp_path / "recipe.yaml"
    async with calm.serve() as url:
        await run(config_from_dict(recipe_of(url, calls=60)), tmp_path / "whole", Log())
    async with endpoint.serve() as url:
        recipe = recipe_of(url, calls=60)
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        drafted = len(JsonlFile(tmp_path / "whole/drafts.jsonl", Refinement).path.read_text().splitlines())
        for more in (12, 30, 55):  # in the first lot, then further on
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "cowest", "run", str(path), "--out", str(out),
                env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            await asyncio.wait_for(endpoint.after(drafted + more), 60)
            process.send_signal(signal.SIGKILL)
            await process.wait()
        assert not (out / "feedback.jsonl").exists()
        await run(config_from_dict(recipe), out, Log())
    assert content(out) == content(tmp_path / "whole")
    assert counts(out) == counts(tmp_path / "whole")
    again = Counter(endpoint.answered).most_common()
    assert sum(n - 1 for _, n in again) <= 3 * 8  # what was under way when it was killed, and no more


async def test_the_estimate_after_the_drafts_knows_which_are_alike(tmp_path: Path) -> None:
    endpoint = PaidEndpoint()

    def strong(url: str, out: Path, **feedback: JsonValue) -> dict[str, tuple[float, float, float]]:
        found = estimate(config_from_dict(recipe_of(url, **feedback)), out)
        return {
            s.calls_for: (s.calls.low, s.calls.expected, s.calls.high) for s in found.stages if s.stage == "feedback"
        }

    async with endpoint.serve() as url:
        before = strong(url, tmp_path / "none")
        full = strong(url, tmp_path / "none", adaptive="off")
        assert before["refine drafts"][0] == 0 and before["refine drafts"][1] < full["refine drafts"][1]
        limited = strong(url, tmp_path / "none", calls=20)
        assert sum(row[1] for row in limited.values()) <= 20 and all(row[2] <= 20 for row in limited.values())
        await run(config_from_dict(recipe_of(url)), tmp_path / "run", Log())
        assert all(row == (0, 0, 0) for row in strong(url, tmp_path / "run").values())
        anew = strong(url, tmp_path / "run", adaptive="off")  # of the answers that are there none is asked for again
        saved = sum(n for name, n in counts(tmp_path / "run").items() if name.startswith("calls_saved"))
        assert sum(row[2] for row in anew.values()) == saved
