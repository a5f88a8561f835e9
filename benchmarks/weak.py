"""How well does the weak model learn the domain? SFT with several settings, and its own score on questions that SFT did not see.

    python -m benchmarks.weak RECIPE --out FOLDER --try "" --try "sft.epochs=3 sft.max_steps=null" --try "sft.method=full"

Each ``--try`` is some of the recipe's settings; the first, empty, is the recipe as it is. The questions are those that
``draft.held_out`` keeps from SFT: training questions, never validation and never test. Where a weak model says one class
nearly always, or is no better than the commonest class, its drafts carry nothing. The same command continues where it was.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cowest.assembly.context import Context
from cowest.assembly.prepare import prepare
from cowest.assembly.systems import build_system
from cowest.pipeline import run_stages
from cowest.recipe.config import load_config
from cowest.run.progress import LineReporter
from cowest.scoring.statistics import summarise
from cowest.stages.base import fill
from cowest.stages.evaluate import outcomes
from cowest.stages.learn import SFT, sft_model, training_queries
from cowest.systems.registry import WEAK
from cowest.types import Example, Prediction


async def tried(recipe: Path, settings: Sequence[str], out: Path) -> str:
    """Train, answer the questions that were held out, and describe the answers in a line."""
    config = load_config(recipe, settings)
    if not (config.draft.held_out and config.draft.queries):
        raise SystemExit("set draft.held_out and draft.queries: the questions that SFT does not see")
    [context] = prepare(config, out, LineReporter(30.0))
    try:
        with context.run.locked():
            await run_stages(context, lambda _: [SFT])
            weak = context.models.weak(sft_model(context))
            system = build_system(context, WEAK, context.models.strong, lambda _: weak)
            queries = training_queries(context)
            file = context.run.file("held_out.jsonl", Prediction)
            answers = await fill(
                "held out", context, file, queries, lambda e: e.id, lambda p: p.example_id, system.answer
            )
            await weak.aclose()
    finally:
        await context.models.aclose()
    seconds = context.run.manifest().stages["sft"].seconds
    return f"{described(context, queries, answers)}; SFT {seconds:.0f} s"


def described(context: Context, queries: Sequence[Example], answers: Sequence[Prediction]) -> str:
    """Scores in percent with their intervals, and what is said how often beside what would be right."""
    found = outcomes(context, queries, answers)
    values = summarise(context.task.metrics, context.task.labels, found, context.config.seed)
    parts = [
        f"{name} {100 * v.mean:.1f} [{100 * v.ci_low:.1f}, {100 * v.ci_high:.1f}]"
        for name, v in values.items()
        if v.mean is not None and v.ci_low is not None and v.ci_high is not None
    ]
    parts.append(f"n {len(found)}, cut {sum(o.cut for o in found)}")
    if context.task.labels:
        said, right = Counter(o.answer for o in found), Counter(o.references[0] for o in found)
        parts.append("says " + " ".join(f"{label} {said[label]} ({right[label]})" for label in context.task.labels))
    return "; ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="a folder: each try has one of its own in it")
    parser.add_argument("--try", dest="tries", action="append", required=True, help="KEY=VALUE, with spaces between")
    given = parser.parse_args()
    for settings in given.tries:
        folder = given.out / (settings.replace(" ", ",").replace("/", "_") or "as-it-is")
        print(f"{settings or '(as it is)'}: {asyncio.run(tried(given.recipe, settings.split(), folder))}", flush=True)


if __name__ == "__main__":
    main()
