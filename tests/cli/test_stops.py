"""Signals: the first lets come in what is paid for, the second ends at once; one line in any case, and no library's words."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml
from pydantic import JsonValue
from tests.helpers import SIZES, WORLD, save_tiny_model, tiny_recipe
from tests.paid_endpoint import PaidEndpoint, paid_recipe

from cowest.errors import DataError
from cowest.ledger.summary import summarise_ledger

STOPPED = "cowest: stopped; the same command continues where it was"
NOISE = re.compile(r"Traceback|Warning|Unclosed|Exception ignored|never retrieved|was destroyed|Error\b")
BOUND_S = 60.0
TWO: dict[str, JsonValue] = {"one": WORLD | SIZES, "two": {**WORLD, **SIZES, "seed": 6}}


@asynccontextmanager
async def started(recipe: Path, *more: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The command in a process group of its own, as a shell starts it in a terminal."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cowest", "run", str(recipe), "--out", str(recipe.parent / "run"), *more),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def ended(process: asyncio.subprocess.Process) -> list[str]:
    """Its lines on stderr. A process that does not end fails the test."""
    said = (await asyncio.wait_for(process.communicate(), BOUND_S))[1].decode()
    assert not NOISE.search(said), said
    return said.splitlines()


def recipe_file(folder: Path, recipe: dict[str, JsonValue]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def side_by_side(url: str) -> dict[str, JsonValue]:
    recipe = paid_recipe(url, tasks=TWO)
    del recipe["task"]
    return recipe


@pytest.mark.parametrize(
    ("number", "jobs"),
    [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGHUP, 1), (signal.SIGTERM, 2), (signal.SIGINT, 2)],
)
async def test_what_is_under_way_comes_in_and_is_entered(tmp_path: Path, number: signal.Signals, jobs: int) -> None:
    endpoint = PaidEndpoint(delay_s=0.4)
    async with endpoint.serve() as url:
        recipe = paid_recipe(url) if jobs == 1 else side_by_side(url)
        path = recipe_file(tmp_path, recipe | {"ledger": str(tmp_path / "ledger.sqlite")})
        async with started(path, "--jobs", str(jobs)) as process:
            await asyncio.wait_for(endpoint.after(9), BOUND_S)
            # A terminal tells the whole group, whoever kills a process tells that one.
            (os.killpg if number != signal.SIGTERM else os.kill)(process.pid, number)
            lines = await ended(process)
    assert process.returncode == 128 + number
    assert lines[-1] == STOPPED and sum(line.startswith("cowest: ") for line in lines) == 1, lines
    bill = summarise_ledger(tmp_path / "ledger.sqlite")
    assert bill.answered == len(endpoint.answered) >= 9
    assert (bill.maybe_paid, bill.under_way) == (0, 0)


@pytest.mark.parametrize(("number", "jobs"), [(signal.SIGINT, 1), (signal.SIGTERM, 2), (signal.SIGINT, 2)])
async def test_a_second_signal_ends_at_once(tmp_path: Path, number: signal.Signals, jobs: int) -> None:
    endpoint = PaidEndpoint(delay_s=300)
    async with endpoint.serve() as url:
        recipe = paid_recipe(url) if jobs == 1 else side_by_side(url)
        path = recipe_file(tmp_path, recipe | {"ledger": str(tmp_path / "ledger.sqlite")})
        async with started(path, "--jobs", str(jobs)) as process:
            await _until(lambda: _under_way(tmp_path / "ledger.sqlite") >= 4 * jobs)
            for _ in range(2):
                (os.killpg if number != signal.SIGTERM else os.kill)(process.pid, number)
                await asyncio.sleep(1.0)
            lines = await ended(process)
        await _until(lambda: not _group_lives(process.pid))  # no child is left
    assert process.returncode == 128 + number
    told = [line for line in lines if line.startswith("cowest: ")]
    assert len(told) == 1 and told[0].startswith("cowest: ended at once"), lines
    bill = summarise_ledger(tmp_path / "ledger.sqlite")
    assert bill.under_way + bill.maybe_paid >= 4 * jobs, "calls under way may have been paid for"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "jobs"), [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
async def test_a_training_in_a_thread_ends_with_its_step(tmp_path: Path, number: signal.Signals, jobs: int) -> None:
    weak = save_tiny_model(tmp_path / "weak")
    sft: dict[str, JsonValue] = {
        "method": "full",
        "max_steps": 100_000,
        "batch_size": 2,
        "max_length": 64,
        "device": "cpu",
    }
    recipe = tiny_recipe(weak, "http://127.0.0.1:9/v1", sft=sft)
    if jobs == 2:
        del recipe["task"]
        recipe["tasks"] = TWO
    path = recipe_file(tmp_path, recipe)
    logs = [tmp_path / "run" / name / "sft" / "log.jsonl" for name in (TWO if jobs == 2 else [""])]
    async with started(path, "--jobs", str(jobs)) as process:
        await _until(lambda: all(log.exists() and log.stat().st_size for log in logs))
        (os.killpg if number != signal.SIGTERM else os.kill)(process.pid, number)
        lines = await ended(process)
    assert process.returncode == 128 + number and lines[-1] == STOPPED, lines


def _under_way(path: Path) -> int:
    with contextlib.suppress(DataError):  # the run has not made it yet
        return summarise_ledger(path).under_way
    return 0


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(BOUND_S):
        while not condition():
            await asyncio.sleep(0.1)
