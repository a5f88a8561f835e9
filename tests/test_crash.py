"""Kill -9 at many random moments of the feedback stage: every distinct request is answered and paid once."""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from tests.paid_endpoint import CONCURRENCY, PaidEndpoint, paid_recipe, records_of

from cowest.assembly.opened import most_at_risk

KILLS = 12


async def _run(recipe: Path, out: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cowest", "run", str(recipe), "--out", str(out)),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )


async def _undisturbed(endpoint: PaidEndpoint, recipe: Path, out: Path) -> None:
    process = await _run(recipe, out)
    _, said = await process.communicate()
    assert process.returncode == 0, said.decode()


@pytest.mark.slow
@pytest.mark.timeout(900)  # fourteen processes one after the other
async def test_no_kill_pays_twice(tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    print(f"seed of this test's kills: {seed}")  # shown when it fails
    chance, reference, endpoint = random.Random(seed), PaidEndpoint(), PaidEndpoint()
    async with reference.serve() as url:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(paid_recipe(url)))
        await _undisturbed(reference, recipe, tmp_path / "undisturbed")
    needed = len(reference.answered)
    out, kills = tmp_path / "killed", 0
    async with endpoint.serve() as url:
        recipe.write_text(yaml.safe_dump(paid_recipe(url)))
        moments = sorted(chance.sample(range(1, needed), KILLS))
        for moment in moments:
            process = await _run(recipe, out)
            killer = asyncio.ensure_future(endpoint.after(moment))
            ended = asyncio.ensure_future(process.wait())
            await asyncio.wait({killer, ended}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(chance.uniform(0, 0.004))  # anywhere between two answers
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
            killer.cancel()
            await process.communicate()
        await _undisturbed(endpoint, recipe, out)

    twice = sum(Counter(endpoint.answered).values()) - needed
    # pytest -rP shows it
    print(f"{needed} distinct requests, {kills} kills, {twice} of them answered twice (concurrency {CONCURRENCY})")
    assert kills >= KILLS // 2, "the kills came too late to test anything"
    assert set(endpoint.answered) == set(reference.answered)
    # What a kill can lose: what is under way, and half as many answers that came and were not entered yet.
    assert twice <= kills * most_at_risk(CONCURRENCY), f"{twice} answers were paid twice by {kills} kills"
    assert max(Counter(endpoint.answered).values()) <= kills + 1
    assert records_of(out) == records_of(tmp_path / "undisturbed")

    ledger = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cowest", "ledger", str(out), "--json"), stdout=asyncio.subprocess.PIPE
    )
    bill = json.loads((await ledger.communicate())[0])
    assert bill["answered"] == needed
    assert bill["paid_calls"] <= len(endpoint.answered) <= bill["paid_calls"] + bill["maybe_paid"], (
        "what kills lost is in at most"
    )
