"""Feedback asks query by query, so that what a query's requests share is read once, also where little is remembered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from pydantic import JsonValue
from tests.helpers import Log, question, tiny_recipe, world

from cowest.assembly.context import Context
from cowest.assembly.opened import OpenModels
from cowest.lab.frames import LabFrames
from cowest.models import readers
from cowest.models.prefixes import Prefixes
from cowest.models.readers import SlotReader
from cowest.models.sampler import Row
from cowest.recipe.config import config_from_dict
from cowest.run.store import RunDir
from cowest.stages.feedback import feedback_stage
from cowest.stages.rounds import BASE, Round
from cowest.tasks.base import CLASS_METRICS, SimpleTask
from cowest.types import Draft, Example, Refinement

QUERIES, SAMPLES = 24, 4


def examples() -> tuple[Example, ...]:
    """Questions with a long context each, in the lab's words."""
    texts = [e.input for e in world().examples("train")]
    return tuple(
        question(f"q{n}", texts[n]).model_copy(
            update={"context": " ".join(texts[(n + i) % len(texts)] for i in range(8))}
        )
        for n in range(QUERIES)
    )


@dataclass
class Counted:
    """The prompt tokens that were asked of the reader, those that it read, and how many prompts came together."""

    asked: int = 0
    read: int = 0
    batches: list[int] = field(default_factory=list)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    found, admit = Counted(), SlotReader.admit

    def counting(self: SlotReader, rows: Sequence[Row], between: Callable[[], None]) -> torch.Tensor:
        before = self.read_tokens
        logits = admit(self, rows, between)
        found.asked += sum(len(row.prompt) for row in rows)
        found.read += self.read_tokens - before
        found.batches.append(len(rows))
        return logits

    monkeypatch.setattr(SlotReader, "admit", counting)
    return found


async def collect(folder: Path, queries: Sequence[Example]) -> tuple[Log, list[Refinement], list[Refinement]]:
    strong: JsonValue = {
        "kind": "local",
        "model": "lab:strong-tiny",
        "batch_size": 12,
        "dtype": "float32",
        "device": "cpu",
    }
    answers: JsonValue = {"sampling": {"temperature": 0.0, "max_tokens": 8}, "watch": "off"}
    recipe = tiny_recipe("org/model", "http://localhost/v1", strong=strong, feedback=answers)
    recipe["draft"] = {"samples": SAMPLES, "queries": len(queries), "held_out": False}
    config, log, run = config_from_dict(recipe), Log(), RunDir(folder)
    task = SimpleTask("t", CLASS_METRICS, ("yes", "no"), "say", {"train": tuple(queries)})
    context = Context("", config, task, LabFrames(), run, log, OpenModels(config, folder))
    drafted = (
        Draft(id=f"{e.id}#{k}", example_id=e.id, index=k, text=f"Answer: {k}") for e in queries for k in range(SAMPLES)
    )
    run.file("drafts.jsonl", Draft).replace(drafted)
    try:
        await feedback_stage(Round(BASE)).execute(context)
    finally:
        await context.models.aclose()
    solos, refinements = (run.file(name, Refinement).load() for name in ("solo.jsonl", "refinements.jsonl"))
    return log, solos, refinements


@pytest.mark.slow
async def test_a_querys_requests_read_what_they_share_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: Counted
) -> None:
    monkeypatch.setattr(
        readers, "Prefixes", lambda most: Prefixes(0)
    )  # a real model's prompts are large, and soon forgotten
    log, solos, refinements = await collect(tmp_path, examples())
    print(f"read {counted.read} of {counted.asked} prompt tokens; {counted.batches}")
    assert counted.asked == sum(r.usage.input_tokens for r in (*solos, *refinements))
    assert counted.read < counted.asked / 3, "0.29; where all are asked alone first, a query is read twice: 0.40"
    assert [r.example_id for r in solos] == [e.id for e in examples()]
    assert [r.draft_id for r in refinements] == [f"{e.id}#{k}" for e in examples() for k in range(SAMPLES)]
    assert log.starts == [("strong answers", QUERIES * (1 + SAMPLES), 0)]
