"""Runs with a guard on a served pair that costs money and is made in seconds: nothing is trained, every call is counted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from pydantic import JsonValue
from tests.helpers import WORLD, Log
from tests.paid_endpoint import PaidEndpoint, paid_recipe

from cowest.pipeline import RunSummary, run
from cowest.recipe.config import config_from_dict

CALIBRATION, TEST, SAMPLES = 60, 12, 2
TASK: dict[str, JsonValue] = WORLD | {"train": 100, "validation": 8, "test": TEST, "calibration": CALIBRATION}
SYSTEMS: list[JsonValue] = ["weak", "strong", "collab"]
ROWS: list[JsonValue] = ["guarded", "cascade"]
GUARD: dict[str, JsonValue] = {"risk": 0.2, "samples": SAMPLES}


def guarded_recipe(url: str, **changes: JsonValue) -> dict[str, JsonValue]:
    """The paid recipe with a few training queries, 60 questions to calibrate on, and the rows of the guard."""
    few: dict[str, JsonValue] = {"samples": 2, "queries": 4}
    evaluate: dict[str, JsonValue] = {"systems": [*SYSTEMS, *ROWS]}
    recipe: dict[str, JsonValue] = {"task": TASK, "draft": few, "evaluate": evaluate, "guard": GUARD}
    return paid_recipe(url, **(recipe | changes))


async def guarded_run(endpoint: PaidEndpoint, out: Path, log: Log | None = None, **changes: JsonValue) -> RunSummary:
    """Run it."""
    async with endpoint.serve() as url:
        return await run(config_from_dict(guarded_recipe(url, **changes)), out, log or Log())


def by_model(endpoint: PaidEndpoint) -> Counter[str]:
    """How many requests each model has answered."""
    return Counter(str(json.loads(body)["model"]) for body in endpoint.answered)
