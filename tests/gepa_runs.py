"""Runs with optimised prompts over an endpoint that knows a word: with it in the instruction, the strong model is right.

All is served and paid for, nothing is trained: a run takes a second.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from pydantic import JsonValue
from tests.helpers import Log
from tests.paid_endpoint import PaidEndpoint, paid_recipe

from cowest.pipeline import RunSummary, run
from cowest.recipe.config import config_from_dict
from cowest.systems.optimised import Optimised, optimised_in

WORD = "octopus"
INSTRUCTION = "Say whether the number is odd. Mark it as 'Answer: yes' or 'Answer: no'."
TRAIN, TEST, CALLS = 24, 6, 60
ROWS: list[JsonValue] = ["strong", "strong_gepa", "collab", "collab_gepa"]
BETTER = f"Think of an {WORD}.\n{INSTRUCTION}"
Replies = Callable[[dict[str, JsonValue], int], str]


def write_task(folder: Path) -> dict[str, JsonValue]:
    """Numbers that are odd or not; the task section of the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for split, n in (("train", TRAIN), ("validation", 6), ("test", TEST)):
        rows = [{"input": f"Is {i} odd?", "answer": "yes" if i % 2 else "no"} for i in range(start, start + n)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        start += n
    files: dict[str, JsonValue] = {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}
    return files | {"kind": "jsonl", "labels": ["yes", "no"], "instruction": INSTRUCTION}


def answering_by(proposal: str) -> Replies:
    """The strong model says yes to all but with the word, and the truth with it; it reflects by ``proposal``."""

    def reply(body: dict[str, JsonValue], index: int) -> str:
        messages = body["messages"]
        assert isinstance(messages, list) and isinstance(messages[-1], dict)
        text = str(messages[-1]["content"])
        if text.startswith("I gave an assistant"):
            return proposal
        number = int(text.split("Is ")[1].split(" odd?")[0])
        right = "yes" if number % 2 else "no"
        return f"Answer: {right if WORD in text else 'yes'}"

    return reply


def gepa_recipe(url: str, folder: Path, **changes: JsonValue) -> dict[str, JsonValue]:
    """The paid recipe with the rows; ``changes`` replace whole sections."""
    recipe: dict[str, JsonValue] = {
        "task": write_task(folder / "data"),
        "prompts": {},
        "draft": {"samples": 2, "queries": TRAIN},
        "table": {"rows": ROWS, "gepa": {"calls": CALLS}},
        "evaluate": {"systems": ROWS},
    }
    return paid_recipe(url, **(recipe | changes))


async def gepa_run(
    endpoint: PaidEndpoint, out: Path, log: Log | None = None, **changes: JsonValue
) -> tuple[RunSummary, dict[str, Optimised]]:
    """Run it in ``out``; what it came to, and the prompts by their rows."""
    async with endpoint.serve() as url:
        config = config_from_dict(gepa_recipe(url, out.parent, **changes))
        summary = await run(config, out, log or Log())
    names = [str(name) for name in config.evaluate.systems if str(name).endswith("_gepa")]
    return summary, {name: optimised_in(out, name) for name in names}
