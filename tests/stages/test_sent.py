"""What left: the ledger of a run whose strong model may not see the contexts, looked through."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import JsonValue
from tests.collaboration.test_sight import rows
from tests.helpers import Log
from tests.paid_endpoint import paid_recipe

from cowest.cli.main import main
from cowest.models.endpoint import make_app, serve
from cowest.pipeline import run
from cowest.recipe.config import config_from_dict
from cowest.types import Completion, Message, Sampling, Usage


class Parrot:
    """A weak model that quotes what it reads to every second question."""

    name = "weak"

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        found = re.search(r"Context:\n(.*)\n", messages[-1].content)
        text = found.group(1)[10:200] if found and sum(map(ord, found.group(1))) % 2 else f"Nothing ({sampling.seed})."
        return Completion(text=f"{text}\nAnswer: yes", usage=Usage(calls=1))

    async def aclose(self) -> None:
        """Nothing to release."""


class Yes(Parrot):
    name = "strong"

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        return Completion(text="Answer: yes", usage=Usage(calls=1))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sent")
    files: dict[str, JsonValue] = {}
    for split, n in (("train", 16), ("validation", 4), ("test", 8)):
        files[split] = str(folder / f"{split}.jsonl")
        Path(str(files[split])).write_text("".join(json.dumps(row) + "\n" for row in rows(split, n)))
    task: JsonValue = {"kind": "jsonl", "context_for": "weak", **files}

    async def work() -> None:
        async with (
            serve(make_app(Parrot(), model_name="weak")) as weak,
            serve(make_app(Yes(), model_name="strong")) as strong,
        ):
            recipe = paid_recipe(weak, task=task, prompts={}, draft={"samples": 2, "queries": 16})
            recipe["strong"] = {**recipe["strong"], "base_url": strong}  # type: ignore[dict-item]
            log = Log()
            await run(config_from_dict(recipe), folder / "run", log)
            (folder / "told").write_text("\n".join(log.lines))

    asyncio.run(work())
    return folder / "run"


def looked(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["cowest", "ledger", "sent", str(run)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0), capsys.readouterr().out
    return 0, capsys.readouterr().out


def test_only_drafts_carry_a_context_and_what_else_did_is_found(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated = (finished.parent / "told").read_text()
    assert re.search(
        r"collab: drafts carry [1-9][\d.]*% of the contexts' 8-word .*; [1-8] of 8 quote 40 characters", evaluated
    )
    code, told = looked(finished, monkeypatch, capsys)
    counted = re.search(r"  (\d+) hold 40 or more .* within a draft alone\n  0 hold such a piece elsewhere", told)
    assert code == 0 and "hides its contexts from" in told and counted and int(counted.group(1)) > 5
    leaked = str(rows("train", 16)[3]["context"])

    with sqlite3.connect(finished / "ledger.sqlite") as db:
        number, request = db.execute("SELECT id, request FROM answers WHERE model LIKE 'strong%' LIMIT 1").fetchone()
        asked = json.loads(request)
        asked["messages"][-1]["content"] += f"\n{leaked[:70]}"
        db.execute("UPDATE answers SET request = ? WHERE id = ?", (json.dumps(asked), number))
    code, told = looked(finished, monkeypatch, capsys)
    assert code == 1 and "1 hold such a piece elsewhere" in told and leaked[:30] in told
