"""A weak model that is trained for its turn in an interaction: what it is asked, what is paid, and that it learns the turn."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.helpers import Log, save_tiny_model, tiny_recipe

from cowest.costs.estimate import Estimate, estimate
from cowest.models.endpoint import make_app, serve
from cowest.models.scripted import ScriptedChatModel
from cowest.pipeline import run
from cowest.recipe.config import config_from_dict
from cowest.results import Results
from cowest.stages.choosing import Selection
from cowest.types import Message, Sampling

FACT = "Zamor is safe up to 46 mg"
ASKED = ("Is {} mg of Zamor safe?", "May a patient take {} mg of Zamor?")
DOSES = {
    "train": (12, 17, 25, 36, 41, 53, 58, 69, 74, 82),
    "validation": (14, 38, 49, 61, 77),
    "test": (9, 22, 44, 55, 66, 88),
}


def rows(split: str) -> list[dict[str, JsonValue]]:
    """Two in five training rows tell the limit: a model that has learned from them tells it about as often."""
    return [
        {
            "id": f"{split}-{way}-{dose}",
            "input": asked.format(dose),
            "answer": "yes" if dose <= 46 else "no",
            "rationale": f"{FACT}." if (way + n) % 5 in (0, 2) else "I do not know Zamor.",
        }
        for way, asked in enumerate(ASKED)
        for n, dose in enumerate(DOSES[split])
    ]


@dataclass
class Strong:
    """Knows no limit. It asks, criticises and tries as it is told, and answers rightly where the colleague has named the limit."""

    asked: list[str] = field(default_factory=list)

    def reply(self, messages: Sequence[Message], sampling: Sampling) -> str:
        text = "\n".join(m.content for m in messages)
        dose = int(re.findall(r"(\d+) mg of Zamor", text)[-1])
        said = re.search(r"<(advice|draft|reply)>(.*?)</\1>", text, re.DOTALL)
        if "Do not answer the question" in text:
            self.asked.append("critique")
            return "mg ?"
        self.asked.append("alone" if said is None else said.group(1))
        if said is None:
            return "ASK: Zamor ?" if "ASK:" in text else "Answer: maybe"
        return f"Answer: {('yes' if dose <= 46 else 'no') if FACT in said.group(2) else 'maybe'}"


def recipe(weak: str, url: str, data: Path, turn: str, **changes: JsonValue) -> dict[str, JsonValue]:
    for split in ("train", "validation", "test"):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(split)))
    files: dict[str, JsonValue] = {s: str(data / f"{s}.jsonl") for s in ("train", "validation", "test")}
    turns: JsonValue = {
        "revise": "{draft} {critique} {input}",
        "advise": "{input} {attempt}",
        "consulted": "{input} {question}",
    }
    base = tiny_recipe(weak, url)
    sampling: JsonValue = {"temperature": 1.0, "top_p": 0.8, "max_tokens": 24}
    greedy: JsonValue = {"temperature": 0.0, "max_tokens": 24}
    found: dict[str, JsonValue] = {
        "task": {"kind": "jsonl", "labels": ["yes", "no", "maybe"], **files},
        "prompts": {"draft": "{input}", "interactions": turns},
        "draft": {"turn": turn, "samples": 8, "sampling": sampling},
        "sft": base["sft"] | {"max_steps": 120, "learning_rate": 5e-3},  # type: ignore[operator]
        "align": base["align"] | {"max_steps": 40, "learning_rate": 1e-3, "checkpoints": 4, "selection_queries": 12},  # type: ignore[operator]
        "evaluate": {"draft": greedy, "answer": greedy},
        "table": {"questions": 1},
    }
    return base | found | changes


def made(
    weak: str, folder: Path, turn: str, strong: Strong, log: Log | None = None, **changes: JsonValue
) -> tuple[Results, Selection, Estimate, Estimate]:
    """A run, its choice of a checkpoint, and what was estimated before and after it."""
    folder.mkdir(exist_ok=True)

    async def go() -> tuple[Results, Selection, Estimate, Estimate]:
        async with serve(make_app(ScriptedChatModel(strong.reply), model_name="strong")) as url:
            config = config_from_dict(recipe(weak, url, folder, turn, **changes))
            before = await asyncio.to_thread(estimate, config, folder / "run")
            done = await run(config, folder / "run", log or Log())
            after = await asyncio.to_thread(estimate, config, folder / "run")
            chosen = Selection.model_validate_json((folder / "run/align/selection.json").read_bytes())
            return done.results[""], chosen, before, after

    return asyncio.run(go())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("weak"))


@pytest.mark.slow
def test_a_model_learns_to_advise(tiny: str, tmp_path: Path) -> None:
    strong, log = Strong(), Log()
    results, chosen, before, after = made(tiny, tmp_path / "a", "advise", strong, log)
    score = {name: row.metrics["accuracy"].mean for name, row in results.systems.items()}
    # The SFT model tells the limit now and then; the one that was trained for the turn tells it.
    assert score["strong"] == 0 and score["collab_advise"] <= 0.5 and score["collab_advise_aligned"] >= 0.8
    assert chosen.best.score is not None and chosen.best.score > (chosen.checkpoints[0].score or 0)
    # The attempt is the strong model's answer alone: 20 of training, 10 of validation and 12 of test are paid for once.
    assert strong.asked.count("alone") == 42
    assert before.calls.low <= len(strong.asked) <= before.calls.high and after.calls.high == 0
    assert {s.stage for s in before.stages} >= {"openings", "sample", "feedback", "align", "evaluate"}

    # All of it is there, and nothing is made again.
    paid, log.lines[:] = len(strong.asked), []
    made(tiny, tmp_path / "a", "advise", strong, log)
    assert len(strong.asked) == paid and any(line.startswith("openings: reuse") for line in log.lines), log.lines
