"""A finished run, served: it answers as ``cowest run`` did; and the command itself, as a process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import yaml
from aiohttp import web
from tests.helpers import Oracle, run_tiny, save_tiny_model, tiny_recipe, world
from tests.server.loopback import Act, Client, reply, strong

from cowest.errors import ConfigError
from cowest.ledger.exchanges import read_exchanges
from cowest.models.endpoint import make_app, serve
from cowest.run.store import JsonlFile
from cowest.server.app import Server
from cowest.server.auth import Keys
from cowest.server.opening import open_served
from cowest.server.runner import listening
from cowest.server.settings import Settings
from cowest.types import Prediction


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[Client]:
    opened = open_served(path, Settings())
    server = Server(opened.served, opened.settings, Keys(), opened.breakers)
    try:
        async with listening(server, "127.0.0.1", 0) as url, aiohttp.ClientSession() as session:
            yield Client(session, url, server)
    finally:
        await opened.aclose()


@pytest.mark.slow
def test_a_served_run_answers_as_its_evaluation_did(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_tiny(save_tiny_model(tmp_path / "weak"), out, Oracle())

    async def ask_all() -> None:
        oracle = Oracle()
        async with serve(make_app(oracle, model_name="strong")) as url:
            recipe = yaml.safe_load((out / "recipe.yaml").read_text())
            recipe["strong"]["base_url"] = url  # the run's endpoint was on another port
            (out / "recipe.yaml").write_text(yaml.safe_dump(recipe))
            async with served(out) as client:
                listed = [card["id"] for card in (await client.get("/v1/models")).json["data"]]
                assert listed == ["tiny", "tiny.collab", "tiny.weak", "tiny.strong", "tiny.collab_aligned"]
                for system in ("weak", "strong", "collab", "collab_aligned"):
                    found = {p.example_id: p for p in JsonlFile(out / f"predictions/{system}.jsonl", Prediction).load()}
                    queries = world().examples("test")
                    answers = await asyncio.gather(
                        *(client.ask(e.input, model=f"tiny.{system}", cowest={"details": True}) for e in queries)
                    )
                    assert {a.status for a in answers} == {200}
                    for example, answer in zip(queries, answers, strict=True):
                        assert answer.text == found[example.id].text
                        if system.startswith("collab"):
                            assert answer.json["cowest"]["draft"] == found[example.id].draft
                            assert answer.json["cowest"]["mode"] == "both"

    asyncio.run(ask_all())


def recipe_file(folder: Path, weak_url: str, strong_url: str) -> Path:
    """A recipe with both models behind endpoints: it can be served without a run."""
    recipe = tiny_recipe("unused", strong_url)
    recipe["weak"] = {"kind": "openai", "model": "small", "base_url": weak_url, "api_key_env": None, "max_attempts": 1}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


async def test_a_recipe_of_two_endpoints_needs_no_run(tmp_path: Path) -> None:
    async with strong() as weak, strong() as big, served(recipe_file(tmp_path, weak.url, big.url)) as client:
        listed = [card["id"] for card in (await client.get("/v1/models")).json["data"]]
        assert listed == ["tiny", "tiny.collab", "tiny.weak", "tiny.strong"]
        got = await client.ask(world().examples("test")[0].input, model="tiny")
        assert got.status == 200
        assert big.bodies[0]["messages"][-1]["content"].endswith("\nDraft: No, it is not.")
        assert big.bodies[0]["max_tokens"] == weak.bodies[0]["max_tokens"] == 12


def test_what_cannot_be_served_says_why(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, "http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1")
    with pytest.raises(ConfigError, match="--systems"):
        open_served(path, Settings(), only=["nothing"])
    run = tmp_path / "unfinished"
    run.mkdir()
    with pytest.raises(ConfigError, match="no run directory"):
        open_served(run, Settings())
    (run / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe("w", "http://127.0.0.1:9/v1")))
    with pytest.raises(ConfigError, match="not finished"):
        open_served(run, Settings())


@asynccontextmanager
async def command(*words: str, **more_env: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """``cowest serve`` as a process, with the URL that it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cowest", "serve", *words, stdout=-1, stderr=-1, env=os.environ | more_env
    )
    assert process.stdout is not None
    try:
        yield process, (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_sigterm_drains_and_ends_with_0(tmp_path: Path) -> None:
    async with strong() as weak, strong() as big:
        open_ = asyncio.Event()
        big.plan = [held_until(open_)]
        recipe = recipe_file(tmp_path, weak.url, big.url)
        async with (
            command(str(recipe), "--port", "0", "--json-log") as (process, url),
            aiohttp.ClientSession() as session,
        ):
            assert url.startswith("http://127.0.0.1:") and url.endswith("/v1")
            body = {"model": "tiny", "messages": [{"role": "user", "content": "May I?"}]}
            under_way = asyncio.ensure_future(session.post(f"{url}/chat/completions", json=body))
            while not big.bodies:
                await asyncio.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            ready = url.removesuffix("/v1") + "/readyz"
            while (await session.get(ready)).status != 503:
                await asyncio.sleep(0.02)
            open_.set()
            assert (await under_way).status == 200
            _, err = await asyncio.wait_for(process.communicate(), 60)
            assert process.returncode == 0
            lines = err.decode().splitlines()
            assert lines[0].startswith("models: tiny, ") and "curl http://127.0.0.1:" in lines[1]
            assert lines[2] == f"page: {url.removesuffix('/v1')}/"
            told = json.loads(lines[3])
            assert told["event"] == "request" and told["status"] == 200 and "May I?" not in err.decode()


def held_until(event: asyncio.Event) -> Act:
    """An upstream that answers when it is let go."""

    async def act(request: web.Request) -> web.StreamResponse:
        await event.wait()
        return web.json_response(reply())

    return act


async def test_a_public_address_without_a_key_exits_with_2(tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, "http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1")
    async with command(str(recipe), "--host", "0.0.0.0") as (process, url):
        _, err = await process.communicate()
        assert url == "" and process.returncode == 2 and "--api-key-env COWEST_API_KEY" in err.decode()


async def test_the_key_comes_from_the_environment(tmp_path: Path) -> None:
    async with strong() as weak, strong() as big:
        recipe = recipe_file(tmp_path, weak.url, big.url)
        words = (str(recipe), "--host", "0.0.0.0", "--port", "0", "--api-key-env", "OUR_KEY")
        async with command(*words, OUR_KEY="k1, k2") as (_, url), aiohttp.ClientSession() as session:
            there = url.replace("0.0.0.0", "127.0.0.1") + "/models"
            assert (await session.get(there)).status == 401
            assert (await session.get(there, headers={"Authorization": "Bearer k2"})).status == 200


@pytest.mark.parametrize("collect", [True, False])
async def test_what_is_kept_outlives_a_kill_and_without_the_option_nothing_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, collect: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "our_hook.py").write_text("def hide(text):\n    return text.replace('Ann', 'X')\n")
    async with strong() as weak, strong() as big:
        recipe = recipe_file(tmp_path, weak.url, big.url)
        before = sorted(tmp_path.rglob("*"))
        words = ["--collect"] if collect else []
        async with (
            command(str(recipe), "--port", "0", "--redact", "our_hook:hide", *words) as (process, url),
            aiohttp.ClientSession() as session,
        ):
            body = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "May Ann?"}]}
            async with session.post(f"{url}/chat/completions", json=body) as got:
                told = await got.text()
            process.send_signal(signal.SIGKILL)
            _, err = await process.communicate()
        assert told.endswith("data: [DONE]\n\n")
        assert "Ann" not in json.dumps([weak.bodies, big.bodies]) and "May X?" in json.dumps(big.bodies)
        if not collect:
            assert [p for p in sorted(tmp_path.rglob("*")) if "__pycache__" not in p.parts] == before
            return
        assert b"exchanges and feedback are kept in " in err
        ((entry, _),) = read_exchanges(tmp_path / "runs/tiny/ledger.sqlite", "tiny")
        assert entry.messages[0].text == "May X?" and entry.id in told and entry.answers == ("No, it is not.",)


async def test_a_hook_that_is_not_there_exits_with_2(tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, "http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1")
    async with command(str(recipe), "--redact", "nowhere:f") as (process, url):
        _, err = await process.communicate()
        assert url == "" and process.returncode == 2 and b"--redact nowhere:f" in err


async def test_the_command_sets_length_and_route(tmp_path: Path) -> None:
    async with strong() as weak, strong() as big:
        words = (
            str(recipe_file(tmp_path, weak.url, big.url)),
            "--port",
            "0",
            "--answer-tokens",
            "33",
            "--route",
            "strong",
        )
        async with command(*words) as (_, url), aiohttp.ClientSession() as session:
            body = {"model": "tiny", "messages": [{"role": "user", "content": "May I?"}]}
            assert (await session.post(f"{url}/chat/completions", json=body)).status == 200
            card = (await (await session.get(f"{url}/models/tiny")).json())["cowest"]
        assert big.bodies[0]["max_tokens"] == 33 and not weak.bodies
        assert (card["answer_tokens"], card["route"]) == (33, "strong")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--route", "nothing"), b"there is no route 'nothing'"),
        (("--answer-tokens", "99999"), b"--max-tokens (32768)"),
    ],
)
async def test_a_route_or_length_that_cannot_be_exits_with_2(
    tmp_path: Path, words: tuple[str, ...], told: bytes
) -> None:
    recipe = recipe_file(tmp_path, "http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1")
    async with command(str(recipe), *words) as (process, url):
        _, err = await process.communicate()
        assert url == "" and process.returncode == 2 and told in err and len(err.splitlines()) == 1
