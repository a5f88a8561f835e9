"""Does the guard keep its promise, and what is it worth? On the lab, where all of a population can be asked.

    python -m benchmarks.guard --out runs/guard
    python -m benchmarks.guard --out runs/guard --domains medicine --resamples 50

A cell is a domain, a strong model, and a drafting model before or after a short alignment. In each, every arm (weak alone, strong
alone, both) answers a pool of questions that trained nothing. The pool is then the population: calibration sets are drawn from it,
`cowest guard`'s method learns and certifies on each, and what it has certified is judged on the whole pool, exactly. The promise is
broken on a set where any policy that passed is worse than the better model alone by more than the risk; it may be on a share delta
of sets. Where nothing passes the row is the single model that looked better, and nothing is promised: counted apart.

With ``--worlds 3`` other worlds follow, each trained, calibrated and tested on questions of its own (OUT/worlds.json).

"(=)": alignment was not better on validation, so that the SFT model drafts, and the cell is the one before.

One command continues where it was; numbers are in OUT/guard.json after each cell, the plot in OUT/guard.png.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.guard import held_out
from benchmarks.guard.cells import DOMAINS, STRONGS, WHEN, Cell, Pool, evidence
from benchmarks.guard.plot import drawn
from benchmarks.guard.population import described, draws, rate
from cowest.run.progress import LineReporter, QuietReporter
from cowest.run.store import write_atomic

HEADER = (
    f"{'cell':38}{'weak':>6}{'strong':>7}{'both':>6}{'guarded':>8}{'calls':>6}{'cascade':>8}{'calls':>6}"
    f"{'promise':>8}{'routes':>7}  {'broken [95%]':22}without a promise"
)


def told(rate_: Mapping[str, Any]) -> str:
    """A rate, as the table has it."""
    if rate_["ci"] is None:
        return "-"
    low, high = (100 * bound for bound in rate_["ci"])
    return f"{rate_['broken']}/{rate_['n']} [{low:.1f}, {high:.1f}]"


def line(name: str, cell: Mapping[str, Any]) -> str:
    """A cell's line of the table: scores and shares in percent."""
    alone, rows, sets = cell["alone"], cell["rows"], cell["sets"]
    scores = "".join(f"{100 * alone[arm]:{width}.1f}" for arm, width in (("weak", 6), ("strong", 7), ("both", 6)))
    both_rows = "".join(f"{100 * rows[r]['score']:8.1f}{rows[r]['calls']:6.2f}" for r in ("guarded", "cascade"))
    shares = f"{cell['promised'] / sets:8.0%}{cell['routes'] / sets:7.0%}"
    if name.endswith(" after") and not cell["aligned"]:
        name += " (=)"
    return f"{name:38}{scores}{both_rows}{shares}  {told(cell['violations']):22}{told(cell['fallback'])}"


def pooled(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Over all cells: how often the promise was broken, and the rows beside the better single model and the pair, on average.

    A cell after an alignment that validation rejected is the cell before it, and is left out.
    """
    each = [cell for name, cell in cells.items() if cell["aligned"] or not name.endswith(" after")] or list(
        cells.values()
    )
    found: dict[str, Any] = {"cells": len(each), "sets": sum(c["sets"] for c in each)}
    for name in ("violations", "row_violations", "fallback"):
        found[name] = rate(sum(c[name]["broken"] for c in each), sum(c[name]["n"] for c in each))
    for row in ("guarded", "cascade"):
        found[row] = {
            "above_better": sum(c["rows"][row]["score"] - c["better"] for c in each) / len(each),
            "above_both": sum(c["rows"][row]["score"] - c["alone"]["both"] for c in each) / len(each),
            "calls": sum(c["rows"][row]["calls"] for c in each) / len(each),
        }
    found["guarded"]["above_better_unseen"] = sum(c["unseen"] for c in each) / len(each)
    found["both_above_better"] = sum(c["alone"]["both"] - c["better"] for c in each) / len(each)
    found["promised"] = sum(c["promised"] for c in each) / found["sets"]
    return found


def tail(found: Mapping[str, Any], delta: float) -> str:
    """The lines below the table."""
    lines = [
        f"over {found['cells']} different cells: promise broken on {told(found['violations'])} of sets (delta: {delta:.0%}; the "
        f"rows themselves: {told(found['row_violations'])}); without a promise {told(found['fallback'])}",
        f"both, always: {100 * found['both_above_better']:+.1f} against the better single model, 1.00 strong calls a query",
    ]
    unseen = 100 * found["guarded"]["above_better_unseen"]
    lines.append(f"guarded: {unseen:+.1f} against the better single model on queries that were not drawn")
    for row in ("guarded", "cascade"):
        one = found[row]
        lines.append(
            f"{row}: {100 * one['above_better']:+.1f} against the better single model, {100 * one['above_both']:+.1f} against "
            f"both, {one['calls']:.2f} strong calls a query"
        )
    return "\n".join(lines)


def measured(pool: Pool, settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A cell's numbers, with a line of progress now and then."""
    began, found = time.monotonic(), []
    drawing = draws(
        pool.numbers, settings["resamples"], settings["calibration"], settings["risk"], settings["delta"], 0
    )
    for draw in drawing:
        found.append(draw)
        if len(found) % 50 == 0:
            print(f"  {name}: {len(found)} sets in {time.monotonic() - began:.0f} s", flush=True)
    return described(pool.numbers, found, settings["risk"]) | {"aligned": pool.aligned, "left_out": pool.left_out}


async def run(args: argparse.Namespace) -> None:
    """Cell by cell; a cell that is done with these settings is not done again."""
    settings = {key: getattr(args, key) for key in ("pool", "calibration", "resamples", "risk", "delta", "seed")}
    file = args.out / "guard.json"
    known = json.loads(file.read_text("utf-8")) if file.exists() else {}
    cells: dict[str, Any] = known["cells"] if known.get("settings") == settings else {}
    wanted = [Cell(domain, strong, when) for strong in args.strong for domain in args.domains for when in WHEN]
    for cell in wanted:
        if cell.name not in cells:
            reporter = QuietReporter() if args.quiet else LineReporter(30.0)
            pool = await evidence(cell, args.out, args.pool, args.seed, reporter)
            before = cells.get(f"{cell.domain} {cell.strong} before") if cell.when == "after" else None
            same = before is not None and not pool.aligned  # the same models: the same pool
            cells[cell.name] = dict(before or {}) if same else measured(pool, settings, cell.name)
            write(file, {"settings": settings, "pooled": pooled(cells), "cells": cells})
        print(f"{HEADER}\n{line(cell.name, cells[cell.name])}", flush=True)
    names = [cell.name for cell in sorted(wanted, key=lambda c: (DOMAINS.index(c.domain), STRONGS.index(c.strong)))]
    chosen = {name: cells[name] for name in names}
    print("\n".join(["", HEADER, *(line(name, cell) for name, cell in chosen.items())]))
    print(tail(pooled(chosen), args.delta))
    drawn(chosen, args.out / "guard.png")
    await run_worlds(args)


async def run_worlds(args: argparse.Namespace) -> None:
    """The held-out check: worlds after ``--seed``'s, each with a calibration and a test of its own."""
    found: dict[str, Any] = {}
    for seed in range(args.seed + 1, args.seed + 1 + args.worlds):
        for domain in args.domains:
            reporter = QuietReporter() if args.quiet else LineReporter(30.0)
            name = f"{domain}-{seed}"
            found[name] = await held_out.world(domain, seed, args.out, args.calibration, args.test, reporter)
            means = {row: held_out.over_worlds(list(found.values()), row) for row in ("guarded", "cascade")}
            write(args.out / "worlds.json", {"over_worlds": means, "worlds": found})
            print(held_out.line(name, found[name]), flush=True)
    if found:
        print(f"\nover {len(found)} worlds, against the single model that is better on the test:")
        print("\n".join(f"  {row}: {held_out.told(one)}" for row, one in means.items()))


def write(file: Path, found: Mapping[str, Any]) -> None:
    """Keep what there is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(found, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/guard"), help="runs, numbers and plot; continued")
    parser.add_argument("--domains", nargs="+", choices=DOMAINS, default=DOMAINS)
    parser.add_argument("--strong", nargs="+", choices=STRONGS, default=STRONGS)
    parser.add_argument(
        "--pool", type=int, default=2000, help="questions of the population; another number trains again"
    )
    parser.add_argument("--calibration", type=int, default=600, help="questions of a calibration set")
    parser.add_argument("--resamples", type=int, default=200, help="calibration sets of a cell")
    parser.add_argument("--risk", type=float, default=0.02)
    parser.add_argument("--delta", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=5, help="of the worlds and the trainings")
    parser.add_argument("--worlds", type=int, default=0, help="so many other worlds a domain, trained and tested apart")
    parser.add_argument("--test", type=int, default=300, help="test questions of such a world")
    parser.add_argument("--quiet", action="store_true", help="no progress of the trainings")
    asyncio.run(run(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
