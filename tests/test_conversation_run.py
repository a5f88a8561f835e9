"""A run on rows of conversations: turns in every request, pair and page, in the estimate, and in what is served."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.helpers import Log, save_tiny_model, tiny_recipe

from cowest.costs.estimate import estimate
from cowest.models.endpoint import make_app, serve
from cowest.models.scripted import ScriptedChatModel
from cowest.pipeline import run
from cowest.recipe.config import RunConfig, config_from_dict
from cowest.run.store import RunDir
from cowest.types import Message, PreferencePair, Sampling

SIZES = {"train": 30, "validation": 6, "test": 6}
NOWHERE = "http://127.0.0.1:9/v1"
SERVED: JsonValue = {"kind": "openai", "model": "w", "api_key_env": None, "base_url": NOWHERE, "max_attempts": 1}
PROMPTS: JsonValue = {"draft": "{input}", "solo": "{input}", "refine": "{input}\nDraft: {draft}"}


def rows(split: str, more: str = "") -> list[dict[str, JsonValue]]:
    """Three turns and a question each; those of training end with the answer to learn."""
    found = []
    for i in range(SIZES[split]):
        answer = ("yes", "no")[i % 2]
        messages: list[JsonValue] = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"May a patient take {i} mg of Velarin?{more}"},
            {"role": "assistant", "content": f"The limit in {split} is {i + 7} mg <b>a day</b>."},
            {"role": "user", "content": f"And twice {i} mg?"},
        ]
        row: dict[str, JsonValue] = {"id": f"{split}-{i}", "choices": ["yes", "no"], "messages": messages}
        if split == "train":
            messages.append({"role": "assistant", "content": f"It is {answer}.\nAnswer: {answer}"})
        else:
            row["answer"] = answer
        found.append(row)
    return found


def recipe(folder: Path, model: str, url: str, more: str = "", **changes: JsonValue) -> RunConfig:
    folder.mkdir(parents=True, exist_ok=True)
    for split in SIZES:
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(split, more)))
    files: dict[str, JsonValue] = {split: str(folder / f"{split}.jsonl") for split in SIZES}
    settings: dict[str, JsonValue] = {"task": files | {"kind": "jsonl"}, "prompts": PROMPTS}
    return config_from_dict(tiny_recipe(model, url) | settings | changes)


def reply(messages: Sequence[Message], sampling: Sampling) -> str:
    """Right or wrong by a hash of all that was asked, the turns with it."""
    whole = json.dumps([m.content for m in messages])
    return f"Answer: {('yes', 'no')[hashlib.sha256(whole.encode()).digest()[0] % 2]}"


@pytest.mark.slow
async def test_turns_go_through_the_whole_loop(tmp_path: Path) -> None:
    weak, strong, log = save_tiny_model(tmp_path / "weak"), ScriptedChatModel(reply), Log()
    async with serve(make_app(strong, model_name="strong")) as url:
        config = recipe(tmp_path / "data", weak, url)
        done = await run(config, tmp_path / "run", log)
        calls = len(strong.requests)
        await run(config, tmp_path / "run", log)
    assert calls == len(strong.requests), "nothing is asked again"
    for request in strong.requests:
        assert [m.role for m in request.messages] == ["system", "user", "assistant", "user"]
        assert re.fullmatch(r"And twice \d+ mg\?(\nDraft: [\s\S]*)?", request.messages[-1].content)
    pairs = RunDir(tmp_path / "run").file("pairs.jsonl", PreferencePair).load()
    assert pairs and all([m.role for m in p.prompt] == ["system", "user", "assistant", "user"] for p in pairs)
    assert RunDir(tmp_path / "run").manifest().stages["sft"].counts["rows"] == SIZES["train"]
    assert set(done.results[""].systems) >= {"weak", "strong", "collab"}
    page = (tmp_path / "run/report.html").read_text()
    assert '["assistant","The limit in test is 7 mg \\u003cb\\u003ea day\\u003c/b\\u003e."]' in page
    assert "<b>a day" not in page


def test_the_estimate_counts_the_turns(tmp_path: Path) -> None:
    tokens = []
    for name, more in (("short", ""), ("long", " Please." * 100)):
        config = recipe(tmp_path / name, "", NOWHERE, more, weak=SERVED)
        found = estimate(config, tmp_path / "none")
        tokens.append({s.calls_for: (s.calls.expected, s.input_tokens.expected) for s in found.stages})
    short, long = tokens
    for purpose in ("strong alone", "refine drafts", "collab"):
        calls, before = short[purpose]
        _, after = long[purpose]
        assert after - before == pytest.approx(calls * 200, rel=0.01), purpose
