"""The lab's cells, trained shortly, and what every arm says to a large pool of questions that trained nothing.

    OUT/DOMAIN/STRONG/               a run directory: SFT, drafts, feedback, pairs, alignment, guard/calibration.jsonl
    OUT/DOMAIN/STRONG/before/        the same SFT model, not aligned, and its guard/calibration.jsonl
    OUT/DOMAIN/answers.sqlite        what the domain's models answered: cells that ask the same share it

A domain's SFT and drafts are trained and drawn once, and taken over by its other strong models, as in a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cowest.assembly.context import Context
from cowest.assembly.opened import OpenModels
from cowest.assembly.prepare import prepare
from cowest.collaboration.guard.evidence import Answered
from cowest.collaboration.guard.learn import Numbers
from cowest.pipeline import run_stages, stages_with_guard
from cowest.protocols import Reporter
from cowest.recipe.config import RunConfig
from cowest.run.store import RunDir
from cowest.stages.base import Stage
from cowest.stages.guard import CALIBRATED, weak_models

DOMAINS = ("counterfactuals", "medicine", "ethics")
STRONGS = ("strong", "strong-small", "strong-tiny")
WHEN = ("before", "after")
TRAINED_ON = 1000
"""Training questions beside the pool; 200 of them are kept from SFT, and drafted."""
NEEDED = {"before": ("sft", "calibrate"), "after": ("sft", "sample", "feedback", "pairs", "align", "calibrate")}


@dataclass(frozen=True)
class Cell:
    """A domain, a strong model, and whether the drafting model is aligned."""

    domain: str
    strong: str
    when: str

    @property
    def name(self) -> str:
        """Of its line and its file."""
        return f"{self.domain} {self.strong} {self.when}"


@dataclass(frozen=True)
class Pool:
    """What a cell's arms have said to the pool's questions; ``aligned``: whether drafts came from another model than SFT's."""

    numbers: Numbers
    aligned: bool
    left_out: int


def recipe(cell: Cell, pool: int, seed: int, test: int = 50) -> RunConfig:
    """recipes/lab.yaml, shorter; ``pool`` questions are kept for the guard, ``test`` are of the split of that name."""
    greedy = {"temperature": 0.0}
    return RunConfig.model_validate(
        {
            "name": "guard",
            "seed": seed,
            "task": {
                "kind": "lab",
                "domain": cell.domain,
                "train": pool + TRAINED_ON,
                "test": test,
                "calibration": pool,
            },
            "weak": {"kind": "local", "model": "lab:weak", "batch_size": 128},
            "strong": {"kind": "local", "model": f"lab:{cell.strong}", "batch_size": 128},
            "sft": {
                "method": "full",
                "max_steps": 250,
                "batch_size": 32,
                "learning_rate": 2.0e-3,
                "schedule": "cosine",
                "warmup_steps": 30,
                "max_length": 256,
            },
            "draft": {
                "format": "chain_of_thought",
                "samples": 4,
                "queries": 200,
                "held_out": True,
                "sampling": {"temperature": 1.0, "max_tokens": 64},
            },
            "feedback": {"sampling": greedy | {"max_tokens": 96}},
            "align": {
                "objective": "preference" if cell.when == "after" else "off",
                "method": "full",
                "max_steps": 40,
                "checkpoints": 1,
                "batch_size": 16,
                "learning_rate": 2.0e-4,
                "schedule": "constant_with_warmup",
                "beta": 0.3,
                "nll_weight": 0.2,
                "max_length": 256,
            },
            "evaluate": {"draft": greedy | {"max_tokens": 64}, "answer": greedy | {"max_tokens": 96}},
        }
    )


def _stages(cell: Cell, context: Context) -> Sequence[Stage]:
    return [stage for stage in stages_with_guard(context) if stage.name in NEEDED[cell.when]]


async def evidence(cell: Cell, out: Path, pool: int, seed: int, reporter: Reporter) -> Pool:
    """Train what the cell lacks, and ask every arm about the whole pool; continues where it was."""
    domain = out / cell.domain
    folder = domain / cell.strong / ("before" if cell.when == "before" else "")
    config = recipe(cell, pool, seed)
    [context] = prepare(config, folder, reporter)
    models = OpenModels(context.config, folder, domain / "answers.sqlite", reporter=reporter)
    context = replace(context, name=cell.name, models=models)
    others = [RunDir(file.parent) for file in sorted(domain.rglob("manifest.json")) if file.parent != folder]
    try:
        with context.run.locked():
            await run_stages(context, partial(_stages, cell), others)
    finally:
        await models.aclose()
    rows = context.run.file(CALIBRATED, Answered).load()
    whole = sorted((row for row in rows if row.error is None), key=lambda row: row.example_id)
    numbers = Numbers.of(whole, context.task.labels)
    return Pool(numbers, aligned=len(set(weak_models(context))) > 1, left_out=len(rows) - len(whole))
