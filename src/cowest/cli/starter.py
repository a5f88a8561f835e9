"""``cowest init``: a recipe and a small dataset that run as they are, and a recipe for a real pair to go on with."""

from __future__ import annotations

import json
from pathlib import Path

from cowest.errors import ConfigError
from cowest.lab.task import lab_task
from cowest.recipe.config import LabTaskConfig
from cowest.recipe.shipped import packaged_recipe
from cowest.run.store import write_atomic
from cowest.types import Example

SAMPLE = LabTaskConfig(kind="lab", domain="medicine", seed=2026, entities=40, train=800, validation=100, test=200)
TEMPLATES = {"recipe.yaml": "starter", "real-pair.yaml": "real-pair"}


def write_starter(directory: Path) -> list[Path]:
    """Write the files; returns their paths. Raises ConfigError where ``directory`` holds something already."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} is not empty; give a new folder, so that nothing of yours is overwritten")
    task = lab_task(SAMPLE, seed=0)
    written = []
    for split in ("train", "validation", "test"):
        path = directory / "data" / f"{split}.jsonl"
        write_atomic(path, "".join(_row(e) for e in task.examples(split)))
        written.append(path)
    for name, recipe in TEMPLATES.items():
        path = directory / name
        write_atomic(path, packaged_recipe(recipe).read_text(encoding="utf-8"))
        written.append(path)
    return written


def _row(example: Example) -> str:
    row: dict[str, object] = {"input": example.input, "answer": example.references[0], "choices": list(example.choices)}
    if example.rationale:
        row["rationale"] = example.rationale
    return json.dumps(row) + "\n"
