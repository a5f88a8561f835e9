"""The key is nowhere: a run against an endpoint that throws it back fails, and all that it leaves behind is searched."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.helpers import Log
from tests.paid_endpoint import paid_recipe

from cowest.assembly.sources import build_model
from cowest.errors import ModelCallError
from cowest.pipeline import run
from cowest.recipe.config import OpenAIModelConfig, config_from_dict
from cowest.types import Message, Sampling

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
KEY = "sk-test-0123456789abcdefSECRET"
ASK = (Message(role="user", content="Is it safe?"),)


async def _tells_the_key(request: web.Request) -> web.Response:
    """A proxy that quotes the request's headers in its error, in the body and in the headers of its answer."""
    sent = request.headers["Authorization"]
    assert sent == f"Bearer {KEY}"
    body = {"error": {"message": f"cannot route request with {sent}", "headers": dict(request.headers)}}
    return web.json_response(body, status=500, headers={"X-Echo": sent})


async def _answers_with_the_key(request: web.Request) -> web.Response:
    return web.Response(text=f"<html>{request.headers['Authorization']}</html>", content_type="text/html")


async def _answers_and_quotes_the_key(request: web.Request) -> web.Response:
    """A gateway in debug mode, whose answers are usable."""
    said = {"role": "assistant", "content": f"{request.headers['Authorization']} says so.\nAnswer: yes"}
    return web.json_response({"choices": [{"index": 0, "message": said, "finish_reason": "stop"}]})


async def test_an_answer_that_quotes_the_key_is_kept_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COWEST_TEST_KEY", KEY)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", _answers_and_quotes_the_key)
    async with TestServer(app, host="127.0.0.1") as server:
        recipe = paid_recipe(str(server.make_url("/v1")))
        for role in ("weak", "strong"):
            recipe[role] = recipe[role] | {"api_key_env": "COWEST_TEST_KEY"}  # type: ignore[operator]
        await run(config_from_dict(recipe), tmp_path, Log())
    left = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert b"Bearer *** says so." in left[tmp_path / "solo.jsonl"]
    for where, content in left.items():
        assert KEY.encode() not in content, where


@pytest.mark.parametrize("source", ["environment", "dotenv"])
@pytest.mark.parametrize("handler", [_tells_the_key, _answers_with_the_key])
async def test_a_failing_run_leaves_no_key_behind(tmp_path: Path, source: str, handler: Handler) -> None:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    work, out = tmp_path / "work", tmp_path / "run"
    work.mkdir()
    env = {k: v for k, v in os.environ.items() if k != "COWEST_TEST_KEY"}
    if source == "environment":
        env["COWEST_TEST_KEY"] = KEY
    else:
        (work / ".env").write_text(f"COWEST_TEST_KEY={KEY}\n")
        (work / ".env").chmod(0o600)
    async with TestServer(app, host="127.0.0.1") as server:
        recipe = paid_recipe(str(server.make_url("/v1")), cache="read")
        for role in ("weak", "strong"):
            recipe[role] = recipe[role] | {"api_key_env": "COWEST_TEST_KEY", "max_attempts": 2}  # type: ignore[operator]
        (work / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-X", "dev", "-m", "cowest", "run", "recipe.yaml", "--out", str(out)),
            cwd=work,
            env=env | {"PYTHONASYNCIODEBUG": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said = b"".join(await process.communicate())
    assert process.returncode == 1, said.decode()
    assert b"calls all failed" in said
    left = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != ".env"}
    assert any(p.name == "ledger.sqlite" for p in left), "the failures must be in the ledger"
    assert any(p.name == "recipe.yaml" and p.parent == out for p in left)
    for where, content in (left | {Path("output"): said}).items():
        assert KEY.encode() not in content, where
        assert KEY[3:20].encode() not in content, f"a part of the key is in {where}"


async def test_no_traceback_shows_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COWEST_TEST_KEY", KEY)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", _tells_the_key)
    async with TestServer(app, host="127.0.0.1") as server:
        config = OpenAIModelConfig(
            kind="openai",
            model="m",
            base_url=str(server.make_url("/v1")),
            api_key_env="COWEST_TEST_KEY",
            max_attempts=1,
        )
        model = build_model(config)
        try:
            with pytest.raises(ModelCallError) as caught:
                await model.generate(ASK, Sampling())
        finally:
            await model.aclose()
    shown = "".join(traceback.format_exception(caught.value))
    assert KEY not in shown and KEY not in repr(caught.value) and KEY not in repr(model) and KEY not in repr(config)
