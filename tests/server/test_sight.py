"""A served pair whose strong model may not see what the weak one reads: the client's context, the operator's documents."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import JsonValue
from tests.server.loopback import reply, strong
from tests.server.test_rows import asked, recipe_file, served

pytest.importorskip("bm25s")
SECRET = "Velmo was withdrawn in the east after forty reports of dizziness."
QUESTION = "Is Velmo safe in the east?"


def recipe_for(path: Path, **task: JsonValue) -> Path:
    recipe = yaml.safe_load(path.read_text())
    recipe["task"] |= task
    path.write_text(yaml.safe_dump(recipe))
    return path


async def test_the_clients_context_goes_to_the_weak_model_alone(tmp_path: Path) -> None:
    async with strong() as weak, strong() as big:
        path = recipe_for(recipe_file(tmp_path, weak, big), context_for="weak")
        async with served(path, "collab", "strong", "strong_self_refine", "best_of_k") as client:
            weak.plan = [reply("Dizziness was reported.\nAnswer: no")]
            await client.ask(QUESTION, model="tiny.collab", cowest={"context": SECRET})
            assert SECRET in asked(weak)[-1]
            assert "Dizziness was reported." in asked(big)[-1] and SECRET not in str(big.bodies)
            for model in ("tiny.strong", "tiny.strong_self_refine", "tiny.best_of_k"):
                await client.ask(QUESTION, model=model, cowest={"context": SECRET})
            assert SECRET not in str(big.bodies) and QUESTION in asked(big)[-1]
            turns = [{"role": "user", "content": "Of the east."}, {"role": "assistant", "content": "Yes?"}]
            messages = [*turns, {"role": "user", "content": QUESTION}]
            await client.ask(messages=messages, model="tiny.strong_self_refine", cowest={"context": SECRET})
            assert big.bodies[-1]["messages"][:2] == turns and SECRET not in str(big.bodies)


async def test_where_the_weak_model_fails_the_strong_one_answers_without_the_context(tmp_path: Path) -> None:
    async with strong() as weak, strong() as big:
        path = recipe_for(recipe_file(tmp_path, weak, big), context_for="weak")
        async with served(path, "collab") as client:
            weak.plan = [500]
            got = await client.ask(QUESTION, model="tiny.collab", cowest={"context": SECRET})
            assert got.status == 200 and SECRET in asked(weak)[-1]
            assert asked(big) == [QUESTION]


@pytest.mark.parametrize(("who", "strong_sees"), [("weak", False), ("both", True)])
async def test_documents_are_looked_up_for_a_request(tmp_path: Path, who: str, strong_sees: bool) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "report.txt").write_text(SECRET)
    async with strong() as weak, strong() as big:
        documents: JsonValue = {"folder": "docs"}
        path = recipe_for(recipe_file(tmp_path, weak, big), context_for=who, documents=documents)
        async with served(path, "collab") as client:
            await client.ask(QUESTION, model="tiny.collab")
            assert SECRET in asked(weak)[-1]
            assert (SECRET in asked(big)[-1]) is strong_sees
            await client.ask("Hello?", model="tiny.collab")
            assert SECRET not in asked(weak)[-1]  # no word of it
