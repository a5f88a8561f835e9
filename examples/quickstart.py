"""cowest from Python: a task, two models, a collaboration that answers one query; then a whole run and its results.

Runs offline in about a minute:  python examples/quickstart.py
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory

from cowest.assembly.build import build_frames, build_task
from cowest.assembly.places import model_path
from cowest.models.local import LocalChatModel
from cowest.pipeline import run
from cowest.recipe.config import config_from_dict
from cowest.run.progress import default_reporter
from cowest.systems.collaboration import Collaboration
from cowest.types import ModelRef, Sampling

RECIPE = config_from_dict(
    {
        "name": "quickstart",
        "task": {"kind": "lab", "domain": "medicine", "entities": 20, "train": 300, "validation": 40, "test": 60},
        "weak": {"kind": "local", "model": "lab:weak"},
        "strong": {"kind": "local", "model": "lab:strong"},
        "sft": {"method": "full", "max_steps": 200, "batch_size": 32, "learning_rate": 2e-3},
        "draft": {"samples": 4, "queries": 60, "sampling": {"temperature": 1.0, "max_tokens": 64}},
        "feedback": {"sampling": {"max_tokens": 96}},
        "align": {"method": "full", "max_steps": 16, "checkpoints": 2, "learning_rate": 5e-5, "beta": 0.3},
        "evaluate": {"draft": {"max_tokens": 64}, "answer": {"max_tokens": 96}},
    }
)


async def one_query() -> None:
    """Let the untuned weak model and the strong model answer one test question together."""
    task = build_task(RECIPE)
    weak = LocalChatModel(ModelRef(base=model_path("lab:weak")))
    strong = LocalChatModel(ModelRef(base=model_path("lab:strong")))
    short = Sampling(max_tokens=96)
    pair = Collaboration(weak, strong, build_frames(RECIPE, task), draft_sampling=short, answer_sampling=short)
    example = task.examples("test")[0]
    prediction = await pair.answer(example)
    print(f"query:     {example.input}\ndraft:     {prediction.draft}\nanswer:    {prediction.text}")
    print(f"reference: {example.references[0]}\n")
    await weak.aclose()
    await strong.aclose()


async def main() -> None:
    """One query, then the whole loop in a temporary run directory."""
    await one_query()
    with TemporaryDirectory() as folder:
        done = await run(RECIPE, Path(folder) / "run", default_reporter())
        for name, system in done.results[""].systems.items():
            accuracy = system.metrics["accuracy"]
            print(f"{name:<15} accuracy {accuracy.mean:.2f} [{accuracy.ci_low:.2f}, {accuracy.ci_high:.2f}]")


if __name__ == "__main__":
    asyncio.run(main())
