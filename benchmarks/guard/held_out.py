"""Worlds of their own: each trains, calibrates on its own questions, and is tested on its own, as `cowest guard` does.

    OUT/worlds/DOMAIN-SEED/      a run directory with its guard and certified rows

Facts differ between worlds, so that nothing carries over: a guard holds for the world that it was calibrated in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.guard.cells import Cell, recipe
from cowest.assembly.opened import OpenModels
from cowest.assembly.prepare import prepare
from cowest.assembly.systems import guard_of
from cowest.pipeline import run_stages, stages_with_guard
from cowest.protocols import Reporter
from cowest.results import Results
from cowest.stages.certified import ROWS, certified_results, routes_of

SYSTEMS = ("weak", "strong", "collab_aligned", *(spec.name for spec in ROWS))


async def world(domain: str, seed: int, out: Path, calibration: int, test: int, reporter: Reporter) -> dict[str, Any]:
    """Train and calibrate with lab:strong, after alignment, and answer the world's test questions."""
    folder = out / "worlds" / f"{domain}-{seed}"
    [context] = prepare(recipe(Cell(domain, "strong", "after"), calibration, seed, test), folder, reporter)
    models = OpenModels(context.config, folder, folder / "answers.sqlite", reporter=reporter)
    context = replace(context, name=folder.name, models=models)
    try:
        with context.run.locked():
            await run_stages(context, stages_with_guard)
    finally:
        await models.aclose()
    guard, routes = guard_of(context), routes_of(context)
    calls = {name: counts["calls"] / max(counts.total() - counts["calls"], 1) for name, counts in routes.items()}
    return of_results(certified_results(context)) | {"promised": guard.promised, "calls": calls}


def of_results(results: Results) -> dict[str, Any]:
    """The systems' scores by the first metric, and each row less the single model that is better on the test (paired)."""
    metric = next(iter(results.systems["weak"].metrics))
    scores = {name: results.systems[name].metrics[metric].mean or 0.0 for name in SYSTEMS if name in results.systems}
    better = max(("weak", "strong"), key=lambda name: scores[name])
    found: dict[str, Any] = {"scores": scores, "better": better}
    for c in results.comparisons:
        for row in (spec.name for spec in ROWS):
            if c.metric == metric and {c.a, c.b} == {row, better} and None not in (c.diff, c.ci_low, c.ci_high):
                sign = 1 if c.a == row else -1
                low, high = sorted((sign * (c.ci_low or 0), sign * (c.ci_high or 0)))
                found[f"{row} above better"] = {"diff": sign * (c.diff or 0), "ci": [low, high], "n": c.n}
    return found


def over_worlds(worlds: Sequence[Mapping[str, Any]], row: str) -> dict[str, Any]:
    """The mean difference over worlds, with a normal 95% interval from the worlds' own standard errors (the worlds are fixed)."""
    each = [one[f"{row} above better"] for one in worlds]
    variances = [((one["ci"][1] - one["ci"][0]) / (2 * 1.96)) ** 2 for one in each]
    mean, half = sum(one["diff"] for one in each) / len(each), 1.96 * math.sqrt(sum(variances)) / len(each)
    return {"diff": mean, "ci": [mean - half, mean + half], "n": sum(one["n"] for one in each)}


def told(difference: Mapping[str, Any]) -> str:
    """In points, with its interval."""
    low, high = (100 * bound for bound in difference["ci"])
    return f"{100 * difference['diff']:+.1f} [{low:+.1f}, {high:+.1f}]"


def line(name: str, one: Mapping[str, Any]) -> str:
    """A world's line."""
    scores = " ".join(f"{system} {100 * score:.1f}" for system, score in one["scores"].items())
    calls = " ".join(f"{row} {one['calls'][row]:.2f}" for row in one["calls"])
    rows = "; ".join(f"{spec.name} {told(one[f'{spec.name} above better'])}" for spec in ROWS)
    promise = "promised" if one["promised"] else "no promise"
    return f"{name}: {scores}; {promise}; strong calls {calls}; against {one['better']}: {rows}"
