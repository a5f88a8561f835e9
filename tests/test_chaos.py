"""A short play of ``python -m benchmarks.chaos``: real processes, an endpoint that fails, and what must hold all the same."""

from __future__ import annotations

import pytest
from benchmarks.chaos import Scenario, play

SHORT = (
    Scenario("budget", "two", 64, seed=1),
    Scenario("budget", "jobs", 16, seed=0),
    Scenario("kills", "two", 64, seed=0, times=1),
    Scenario("stops", "jobs", 16, seed=0, times=1),
)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SHORT, ids=str)
async def test_chaos(scenario: Scenario) -> None:
    found = await play(scenario)
    assert not found.broken, found.broken
    assert found.paid >= 20, "too little happened to show anything"
