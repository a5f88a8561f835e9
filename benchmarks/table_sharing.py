"""What sharing saves: `cowest table` of every row against the sum of the same rows, each in a table of its own.

    python -m benchmarks.table_sharing [--rows weak_sft,rlwf,...] [--steps 60] [--json]

One small world of the lab (medicine, 60 drafted and 60 test queries, short trainings); all in one process, so that no import is
counted. Beside seconds it counts the calls that reached a model, which do not depend on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from cowest.recipe.config import RunConfig, config_from_dict
from cowest.recipe.shipped import packaged_recipe
from cowest.run.progress import QuietReporter
from cowest.table.plan import make_plan
from cowest.table.run import run_table


def recipe(rows: Sequence[str], steps: int) -> RunConfig:
    """The lab's table, made small."""
    data = yaml.safe_load(packaged_recipe("lab-table").read_text(encoding="utf-8"))
    data["task"] = data.pop("tasks")["medicine"] | {"train": 360, "validation": 30, "test": 60, "entities": 40}
    data["sft"]["max_steps"] = steps
    data["draft"]["queries"] = 60
    data["align"] |= {"max_steps": steps // 4, "checkpoints": 2, "selection_queries": 30}
    data["table"] |= {"seeds": [11], "rows": list(rows), "baseline": None}
    return config_from_dict(data)


def run(rows: Sequence[str], steps: int, out: Path) -> tuple[float, int]:
    """Seconds, and calls that a model answered."""
    began = time.monotonic()
    asyncio.run(run_table(make_plan(recipe(rows, steps)), out, QuietReporter()))
    seconds = time.monotonic() - began
    with sqlite3.connect(out / "answers.sqlite") as ledger:
        calls = int(ledger.execute("SELECT count(*) FROM answers").fetchone()[0])
    return seconds, calls


def measure(rows: Sequence[str], steps: int) -> dict[str, float]:
    """The whole table once, then each row alone in a fresh folder."""
    with tempfile.TemporaryDirectory() as folder:
        run(rows[:1], 4, Path(folder) / "warm-up")  # imports and the first load
        names = [row.name for row in make_plan(recipe(rows, steps)).rows]
        together, calls = run(rows, steps, Path(folder) / "table")
        alone = [run([name], steps, Path(folder) / name) for name in names]
    return {
        "rows": len(names),
        "table_s": round(together, 1),
        "rows_alone_s": round(sum(s for s, _ in alone), 1),
        "ratio_s": round(sum(s for s, _ in alone) / together, 2),
        "table_calls": calls,
        "rows_alone_calls": sum(n for _, n in alone),
        "ratio_calls": round(sum(n for _, n in alone) / calls, 2),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="with commas; unset: all")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure([name for name in args.rows.split(",") if name], args.steps)
    if args.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:<20} {value:>10}")


if __name__ == "__main__":
    main()
