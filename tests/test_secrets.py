"""The key is nowhere: a run against an endpoint that throws it back fails, and all that it leaves behind is searched."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer
from pydantic import JsonValue
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


VALUES = {
    "COWEST_TEST_PASSWORD": "p@ss:of/the#gateway",
    "COWEST_TEST_PATH": "path-0f3a9c5b7d1e2f4a",
    "COWEST_TEST_CODE": "query-code-77",
    "COWEST_TEST_TOKEN": "hf_AbCdEfGh1234567890",
}


def _forms(secret: str) -> list[bytes]:
    """As it is, URL-encoded, in base64 (without the bits that its neighbours share)."""
    coded = base64.b64encode(secret.encode()).decode().rstrip("=")[:-1]
    return [secret.encode(), quote(secret, safe="").encode(), coded.encode()]


@pytest.mark.parametrize("fails", [False, True], ids=["in answers", "in errors"])
async def test_secrets_of_the_url_and_of_extra_fields_are_in_no_file(tmp_path: Path, fails: bool) -> None:
    """The run finishes, or fails, against a gateway that echoes every secret: in pieces of a stream, encoded, in errors."""
    asked: list[web.Request] = []

    async def echo(request: web.Request) -> web.StreamResponse:
        asked.append(request)
        body = await request.json()
        login = request.headers["Authorization"].removeprefix("Basic ")
        plain = [*VALUES.values(), request.path_qs, body["session"]["token"]]
        told = " ".join(
            [*plain, login, *(f"{quote(v, safe='')} {base64.b64encode(v.encode()).decode()}" for v in plain)]
        )
        if fails:
            return web.json_response({"error": {"message": told, "headers": dict(request.headers)}}, status=500)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        text = f"{told}\nAnswer: yes"
        for at in range(0, len(text), 5):
            piece = {"choices": [{"index": 0, "delta": {"content": text[at : at + 5]}, "finish_reason": None}]}
            await response.write(f"data: {json.dumps(piece)}\n\n".encode())
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        await response.write(f"data: {json.dumps(end)}\n\ndata: [DONE]\n\n".encode())
        return response

    app = web.Application()
    app.router.add_post("/{path:.*}", echo)
    work, out = tmp_path / "work", tmp_path / "run"
    work.mkdir()
    (work / ".env").write_text("".join(f"{name}='{value}'\n" for name, value in VALUES.items()))
    (work / ".env").chmod(0o600)
    async with TestServer(app, host="127.0.0.1") as server:
        host = str(server.make_url("/")).removeprefix("http://").rstrip("/")
        login = "user:${COWEST_TEST_PASSWORD}"
        url = f"http://{login}@{host}/${{COWEST_TEST_PATH}}/v1?api-version=1&code=${{COWEST_TEST_CODE}}"
        recipe = paid_recipe(url, cache="read")
        changes: dict[str, JsonValue] = {
            "max_attempts": 1,
            "stream": not fails,
            "extra": {"session": {"token": "${COWEST_TEST_TOKEN}"}},
        }
        for role in ("weak", "strong"):
            recipe[role] = {**recipe[role], "api_key_env": None, **changes}  # type: ignore[dict-item]
        (work / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-X", "dev", "-m", "cowest", "run", "recipe.yaml", "--out", str(out)),
            cwd=work,
            env={k: v for k, v in os.environ.items() if k not in VALUES} | {"PYTHONASYNCIODEBUG": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said = b"".join(await process.communicate())
    assert asked, said.decode()
    assert asked[0].path == f"/{VALUES['COWEST_TEST_PATH']}/v1/chat/completions"
    assert asked[0].query == {"api-version": "1", "code": VALUES["COWEST_TEST_CODE"]}
    assert base64.b64decode(asked[0].headers["Authorization"].removeprefix("Basic ")).decode() == (
        "user:" + VALUES["COWEST_TEST_PASSWORD"]
    )
    left = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != ".env"}
    assert (
        b"${COWEST_TEST_PASSWORD}" in left[out / "recipe.yaml"] and b"${COWEST_TEST_TOKEN}" in left[out / "recipe.yaml"]
    )
    if not fails:
        assert any(p.name.startswith("ledger.sqlite") and b"COWEST_TEST_TOKEN" in told for p, told in left.items())
        assert b"***" in left[out / "solo.jsonl"]
    for where, content in (left | {Path("output"): said}).items():
        for value in (*VALUES.values(), "user:" + VALUES["COWEST_TEST_PASSWORD"]):
            for form in _forms(value):
                assert form not in content, f"{form!r} in {where}"


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
