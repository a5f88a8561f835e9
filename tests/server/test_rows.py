"""Rows of the table behind a model id of the server."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import yaml
from tests.helpers import tiny_recipe, world
from tests.server.loopback import Client, Upstream, reply, strong

from cowest.cli.main import main
from cowest.errors import ConfigError
from cowest.server.app import Server
from cowest.server.auth import Keys
from cowest.server.opening import open_served
from cowest.server.runner import listening
from cowest.server.settings import Settings

pytest.importorskip("bm25s")


def recipe_file(folder: Path, weak: Upstream, big: Upstream) -> Path:
    recipe = tiny_recipe("unused", big.url)
    recipe["weak"] = {"kind": "openai", "model": "small", "base_url": weak.url, "api_key_env": None, "max_attempts": 1}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@asynccontextmanager
async def served(path: Path, *rows: str) -> AsyncIterator[Client]:
    opened = open_served(path, Settings(), only=rows)
    server = Server(opened.served, opened.settings, Keys(), opened.breakers)
    try:
        async with listening(server, "127.0.0.1", 0) as url, aiohttp.ClientSession() as session:
            yield Client(session, url, server)
    finally:
        await opened.aclose()


def asked(upstream: Upstream) -> list[str]:
    return [body["messages"][-1]["content"] for body in upstream.bodies]


async def test_a_row_makes_its_own_calls_and_counts_them(tmp_path: Path) -> None:
    question = world().examples("test")[0].input
    async with strong() as weak, strong() as big:
        path = recipe_file(tmp_path, weak, big)
        async with served(path, "collab", "strong_self_refine", "bm25") as client:
            listed = [card["id"] for card in (await client.get("/v1/models")).json["data"]]
            assert listed == ["tiny", "tiny.collab", "tiny.strong_self_refine", "tiny.bm25"]
            big.plan = [reply("First.\nAnswer: no"), reply("Mended.\nAnswer: yes")]
            got = await client.ask(question, model="tiny.strong_self_refine")
            assert got.text == "Mended.\nAnswer: yes" and got.json["model"] == "tiny.strong_self_refine"
            assert got.json["usage"]["prompt_tokens"] == 200  # both calls
            assert asked(big) == [question, f"{question}\nDraft: First.\nAnswer: no"]
            assert not weak.bodies
            got = await client.ask(question, model="tiny.bm25", cowest={"context": "Of the ward."})
            assert asked(big)[-1].endswith(f"Of the ward.\n{question}") and "Answer:" in asked(big)[-1]


async def test_earlier_turns_stay_turns_and_a_stream_has_one_piece(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
    async with (
        strong() as weak,
        strong() as big,
        served(recipe_file(tmp_path, weak, big), "strong_zero_shot") as client,
    ):
        body = {"model": "tiny", "messages": [*turns, {"role": "user", "content": "And now?"}], "stream": True}
        async with client.session.post(f"{client.url}/chat/completions", json=body) as response:
            lines = [line async for line in response.content if line.startswith(b"data: {")]
        assert [body["messages"] for body in big.bodies] == [[*turns, {"role": "user", "content": "And now?"}]]
        texts = [c["delta"].get("content") for line in lines for c in json.loads(line[6:])["choices"]]
        assert [text for text in texts if text] == ["No, it is not."]


async def test_a_row_whose_call_fails_is_an_error_in_shape(tmp_path: Path) -> None:
    async with (
        strong() as weak,
        strong() as big,
        served(recipe_file(tmp_path, weak, big), "strong_zero_shot") as client,
    ):
        big.plan = [503]
        got = await client.ask("Why?", model="tiny")
        assert got.status == 502 and got.json["error"]["code"]


async def test_old_names_open_and_find_the_systems_that_had_them(tmp_path: Path) -> None:
    old = ("strong_cot", "weak_sft", "collab_cot")
    async with strong() as weak, strong() as big, served(recipe_file(tmp_path, weak, big), *old) as client:
        listed = [card["id"] for card in (await client.get("/v1/models")).json["data"]]
        assert listed == ["tiny", "tiny.strong", "tiny.weak", "tiny.collab_cot"]
        for asked_for, answered in (("tiny/weak_sft", "tiny.weak"), ("tiny.strong_cot", "tiny.strong")):
            got = await client.ask("Why?", model=asked_for)
            assert got.status == 200 and got.json["model"] == answered
        got = await client.ask("Why?", model="tiny", cowest={"details": True})  # in the recipe's format: it drafts live
        assert got.json["cowest"]["mode"] == "both" and asked(big)[-1].endswith("Draft: No, it is not.")
        assert (await client.ask("Why?", model="tiny/weak_shot")).status == 404


async def test_each_task_is_searched_in_its_own_texts(tmp_path: Path) -> None:
    async with strong() as weak, strong() as big:
        path = recipe_file(tmp_path, weak, big)
        recipe = yaml.safe_load(path.read_text())
        lab = recipe.pop("task")
        recipe["tasks"] = {"care": lab, "duty": lab | {"domain": "ethics"}}
        path.write_text(yaml.safe_dump(recipe))
        async with served(path, "bm25") as client:
            found = {}
            for name in ("care", "duty"):
                assert (await client.ask("May a patient take it?", model=f"tiny/{name}/bm25")).status == 200
                found[name] = asked(big)[-1]
            assert found["care"] != found["duty"]


async def test_what_cannot_be_served_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with strong() as weak, strong() as big:
        path = recipe_file(tmp_path, weak, big)
        with pytest.raises(ConfigError, match="did you mean 'bm25'"):
            open_served(path, Settings(), only=["bm52"])
        with pytest.raises(ConfigError, match="collab_direct has a weak model of its own"):
            open_served(path, Settings(), only=["collab_direct"])
        with pytest.raises(ConfigError, match="collab_aligned is not possible here: it trains the weak model"):
            open_served(path, Settings(), only=["collab", "collab_aligned"])
        with pytest.raises(ConfigError, match="strong is named twice"):
            open_served(path, Settings(), only=["strong", "strong_cot"])


def test_redaction_and_rows_exclude_each_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cowest", "serve", "r.yaml", "--systems", "bm25", "--redact", "builtins:str"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and "would not see what bm25 writes" in capsys.readouterr().err
