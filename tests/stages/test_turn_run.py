"""A weak model that is trained for its turn in an interaction: what it is asked, what is paid, and that it learns it."""

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

from cowest.costs.estimate import Estimate
from cowest.models.endpoint import make_app, serve
from cowest.models.scripted import ScriptedChatModel
from cowest.recipe.config import config_from_dict
from cowest.stages.choosing import Selection
from cowest.table.estimate import estimate_table
from cowest.table.plan import make_plan
from cowest.table.results import TableResults, pools, results_of
from cowest.table.run import open_plan, run_table
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


def table(weak: str, folder: Path, strong: Strong, log: Log) -> tuple[TableResults, Estimate, Estimate]:
    """A table with the weak model as SFT leaves it, and as it is trained for the turn; and what was estimated before and after."""

    async def go() -> tuple[TableResults, Estimate, Estimate]:
        async with serve(make_app(ScriptedChatModel(strong.reply), model_name="strong")) as url:
            rows: JsonValue = ["strong", "collab_advise", "collab_advise_aligned@advise"]
            changes: JsonValue = {"rows": rows, "variants": {"advise": {"draft.turn": "advise"}}}
            config, out = config_from_dict(recipe(weak, url, folder, "draft", table=changes)), folder / "table"
            before = await asyncio.to_thread(estimate_table, config, out)
            plan = make_plan(config)
            await run_table(plan, out, log)
            after = await asyncio.to_thread(estimate_table, config, out)
            return results_of(plan, pools(plan, open_plan(plan, out, Log(), offline=True))), before, after

    return asyncio.run(go())


@pytest.mark.slow
def test_a_model_learns_to_advise(tmp_path: Path) -> None:
    strong, log, weak = Strong(), Log(), save_tiny_model(tmp_path / "weak")
    results, before, after = table(weak, tmp_path, strong, log)
    score = {name: row.metrics["accuracy"].mean or 0.0 for name, row in results.tables[0].rows.items()}
    # The SFT model tells the limit now and then; the one that was trained for the turn tells it.
    assert score["strong"] == 0 and score["collab_advise"] <= 0.5 and score["collab_advise_aligned@advise"] >= 0.8
    # SFT is shared. The attempt is the strong model's answer alone: 20 of training, 10 of validation, 12 of test are paid for once.
    assert "seed-3 advise: sft: reused from main" in log.lines and not any("main: sample" in x for x in log.lines)
    assert strong.asked.count("alone") == 42
    assert before.calls.low <= len(strong.asked) <= before.calls.high and after.calls.high == 0
    assert {s.stage for s in before.stages} == {"sft", "openings", "sample", "feedback", "align", "rows"}
    chosen = Selection.model_validate_json(next(tmp_path.rglob("selection.json")).read_bytes())
    assert (chosen.best.score or 0) > (chosen.checkpoints[0].score or 0)

    # All of it is there, and nothing is made again.
    paid, again = len(strong.asked), Log()
    table(weak, tmp_path, strong, again)
    assert len(strong.asked) == paid and not [x for x in again.lines if x.endswith(": run")], again.lines
