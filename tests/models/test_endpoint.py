"""The OpenAI-compatible endpoint: its contract in plain HTTP, the round trip with our client, and its shutdown."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import pytest
from pydantic import JsonValue

from cowest.errors import ConfigError, ModelCallError
from cowest.models.endpoint import MAX_BODY_BYTES, make_app, run_endpoint, serve
from cowest.models.openai import OpenAIChatModel
from cowest.models.scripted import ScriptedChatModel
from cowest.types import Message, Sampling, Usage

KEY = "not-a-real-key-4711"
ASK: dict[str, JsonValue] = {"model": "lab", "messages": [{"role": "user", "content": "one two three"}]}


def echo(messages: Sequence[Message], sampling: Sampling) -> str:
    text = messages[-1].content
    if text == "fail":
        raise ModelCallError("timeout", "the model was too slow")
    if text == "long":
        raise ModelCallError("too_long", "the prompt does not fit the model's window")
    if text == "crash":
        raise RuntimeError("a secret of the inside")
    return f"{text} / seed {sampling.seed}"


@dataclass
class Answer:
    status: int
    body: dict[str, JsonValue]

    @property
    def error(self) -> dict[str, JsonValue]:
        found = self.body["error"]
        assert isinstance(found, dict) and set(found) == {"message", "type", "param", "code"}
        return found


class Caller:
    """A plain HTTP client of the endpoint, and the model behind it."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: ScriptedChatModel) -> None:
        self.session, self.url, self.model = session, url, model

    async def ask(self, body: Mapping[str, JsonValue], headers: Mapping[str, str] | None = None) -> Answer:
        return await self.send("POST", "/chat/completions", json=body, headers=headers)

    async def send(
        self,
        method: str,
        path: str,
        *,
        json: Mapping[str, JsonValue] | None = None,
        data: bytes | io.BytesIO | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        async with self.session.request(method, self.url + path, json=json, data=data, headers=headers) as response:
            return Answer(response.status, await response.json())


@asynccontextmanager
async def calling(api_key: str | None = None) -> AsyncIterator[Caller]:
    model = ScriptedChatModel(echo)
    async with serve(make_app(model, model_name="lab", api_key=api_key)) as url, aiohttp.ClientSession() as session:
        yield Caller(session, url, model)


async def test_a_completion_has_the_openai_shape() -> None:
    async with calling() as caller:
        got = await caller.ask(ASK | {"seed": 4})
    assert got.status == 200
    assert got.body["object"] == "chat.completion" and got.body["model"] == "lab"
    assert str(got.body["id"]).startswith("chatcmpl-") and isinstance(got.body["created"], int)
    message = {"role": "assistant", "content": "one two three / seed 4"}
    assert got.body["choices"] == [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}]
    assert got.body["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}


async def test_sampling_reaches_the_model() -> None:
    async with calling() as caller:
        await caller.ask(ASK | {"temperature": 0, "top_p": 0.5, "max_tokens": 7, "seed": 2})
        await caller.ask(ASK | {"max_tokens": 7, "max_completion_tokens": 9, "temperature": None, "seed": None})
    assert [r.sampling for r in caller.model.requests] == [
        Sampling(temperature=0, top_p=0.5, max_tokens=7, seed=2),
        Sampling(temperature=1.0, top_p=1.0, max_tokens=9, seed=None),
    ]


async def test_roles_and_text_parts() -> None:
    parts: JsonValue = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns: JsonValue = [{"role": "developer", "content": "s"}, {"role": "user", "name": "joe", "content": parts}]
    async with calling() as caller:
        assert (await caller.ask(ASK | {"messages": turns})).status == 200
    assert caller.model.requests[0].messages == (
        Message(role="system", content="s"),
        Message(role="user", content="ab"),
    )


async def test_several_samples_differ_by_seed() -> None:
    async with calling() as caller:
        got = await caller.ask(ASK | {"n": 3, "seed": 10})
    assert [r.sampling.seed for r in caller.model.requests] == [10, 11, 12]
    choices = got.body["choices"]
    assert isinstance(choices, list)
    texts = [choice["message"] for choice in choices if isinstance(choice, dict)]
    assert texts == [{"role": "assistant", "content": f"one two three / seed {s}"} for s in (10, 11, 12)]
    assert got.body["usage"] == {"prompt_tokens": 3, "completion_tokens": 18, "total_tokens": 21}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"stream": True}, "stream"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"seed": 2**70}, "seed"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content.str"),
        ({"stop": ["\n"]}, "stop"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
async def test_what_it_cannot_do_is_refused(change: dict[str, JsonValue], param: str) -> None:
    async with calling() as caller:
        got = await caller.ask(ASK | change)
    assert got.status == 400
    assert got.error["param"] == param and got.error["type"] == "invalid_request_error"
    assert caller.model.requests == []


async def test_options_that_ask_for_nothing_are_accepted() -> None:
    neutral: dict[str, JsonValue] = {"stream": False, "n": 1, "stop": None, "presence_penalty": 0, "user": "joe"}
    neutral |= {"response_format": {"type": "text"}, "logprobs": False, "tools": [], "metadata": {"a": "b"}}
    async with calling() as caller:
        assert (await caller.ask(ASK | neutral)).status == 200


async def test_bodies_that_are_no_request() -> None:
    kind = {"Content-Type": "application/json"}
    async with calling() as caller:
        for data in (b"", b"{", b"[]", b'"x"', b"\xff", b'{"messages": [{"role": "user", "content": "x"}]}'):
            got = await caller.send("POST", "/chat/completions", data=data, headers=kind)
            assert got.status == 400 and got.error["type"] == "invalid_request_error"
        form = await caller.send("POST", "/chat/completions", data=b"{}", headers={"Content-Type": "text/plain"})
        assert form.status == 415 and "application/json" in str(form.error["message"])
        huge = await caller.send(
            "POST", "/chat/completions", data=io.BytesIO(b" " * (MAX_BODY_BYTES + 1)), headers=kind
        )
        assert huge.status == 413 and huge.error
    assert caller.model.requests == []


async def test_an_unknown_model_or_path_is_404_in_the_same_shape() -> None:
    async with calling() as caller:
        model = await caller.ask(ASK | {"model": "gpt"})
        path = await caller.send("GET", "/nothing")
        method = await caller.send("GET", "/chat/completions")
    assert (model.status, model.error["code"]) == (404, "model_not_found")
    assert "'lab'" in str(model.error["message"])
    assert (path.status, method.status) == (404, 405) and path.error and method.error


async def test_models_and_health() -> None:
    async with calling() as caller:
        models = await caller.send("GET", "/models")
        caller.url = caller.url.removesuffix("/v1")
        health = await caller.send("GET", "/healthz")
    assert models.body["data"] == [{"id": "lab", "object": "model", "created": 0, "owned_by": "cowest"}]
    assert (health.status, health.body) == (200, {"status": "ok"})


@pytest.mark.parametrize("sent", [None, "Bearer wrong", KEY, f"bearer  {KEY}", "Bearer schlüssel"])
async def test_a_missing_or_wrong_key_is_401(sent: str | None) -> None:
    async with calling(api_key=KEY) as caller:
        headers = {"Authorization": sent} if sent else {}
        for got in (await caller.ask(ASK, headers), await caller.send("GET", "/models", headers=headers)):
            assert (got.status, got.error["code"]) == (401, "invalid_api_key")
            assert KEY not in str(got.body)
        assert caller.model.requests == []
        assert (await caller.ask(ASK, {"Authorization": f"Bearer {KEY}"})).status == 200


@pytest.mark.parametrize("n", [1, 2])
async def test_a_failing_model_is_502_and_a_crash_is_500_without_its_inside(n: int) -> None:
    async with calling() as caller:
        fail = await caller.ask(ASK | {"n": n, "messages": [{"role": "user", "content": "fail"}]})
        crash = await caller.ask(ASK | {"n": n, "messages": [{"role": "user", "content": "crash"}]})
    assert fail.status == 502
    assert (fail.error["code"], fail.error["message"]) == ("timeout", "the model was too slow")
    assert crash.status == 500 and crash.error["message"] == "internal error"
    assert "secret" not in str(crash.body) and "Traceback" not in str(crash.body)


async def test_a_prompt_that_does_not_fit_is_the_callers_fault_and_not_asked_again() -> None:
    async with calling() as caller:
        got = await caller.ask(ASK | {"messages": [{"role": "user", "content": "long"}]})
        model = OpenAIChatModel(base_url=caller.url, model="lab", api_key=None, max_attempts=3, backoff_s=0.001)
        with pytest.raises(ModelCallError, match="does not fit") as caught:
            await model.generate((Message(role="user", content="long"),), Sampling())
        await model.aclose()
    assert (got.status, got.error["code"]) == (400, "context_length_exceeded")
    assert caught.value.kind == "http_400" and len(caught.value.attempts) == 1


async def test_round_trip_with_our_own_client() -> None:
    behind = ScriptedChatModel(echo)
    async with serve(make_app(behind, model_name="lab", api_key=KEY)) as url:
        model = OpenAIChatModel(base_url=url, model="lab", api_key=KEY, max_attempts=2, backoff_s=0.001)
        wrong = OpenAIChatModel(base_url=url, model="lab", api_key="wrong", backoff_s=0.001)
        turns = (Message(role="system", content="sys"), Message(role="user", content="Was? \N{GRINNING FACE}"))
        sampling = Sampling(temperature=0.3, top_p=0.8, max_tokens=17, seed=6)
        got = await asyncio.gather(*(model.generate(turns, sampling) for _ in range(20)))
        with pytest.raises(ModelCallError, match="too slow") as fails:
            await model.generate((Message(role="user", content="fail"),), sampling)
        with pytest.raises(ModelCallError) as denied:
            await wrong.generate(turns, sampling)
        await model.aclose()
        await wrong.aclose()
    assert {c.text for c in got} == {"Was? \N{GRINNING FACE} / seed 6"}
    assert {c.usage for c in got} == {Usage(calls=1, input_tokens=3, output_tokens=5)}
    assert (behind.requests[0].messages, behind.requests[0].sampling) == (turns, sampling)
    assert (fails.value.kind, denied.value.kind) == ("http_502", "http_401")
    assert len(behind.requests) == 20 + 2


async def test_after_serving_the_port_is_free_and_a_taken_one_is_told() -> None:
    app = make_app(ScriptedChatModel(echo), model_name="lab")
    async with serve(app) as url:
        port = int(url.removesuffix("/v1").rsplit(":", 1)[1])
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
            async with serve(make_app(ScriptedChatModel(echo), model_name="lab"), port=port):
                pass
    async with serve(make_app(ScriptedChatModel(echo), model_name="lab"), port=port) as again:
        assert again == url


async def test_empty_names_and_keys_are_refused() -> None:
    with pytest.raises(ConfigError):
        make_app(ScriptedChatModel(echo), model_name=" ")
    with pytest.raises(ConfigError):
        make_app(ScriptedChatModel(echo), model_name="lab", api_key="")


async def test_a_cancelled_endpoint_stops_serving() -> None:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    app = make_app(ScriptedChatModel(echo), model_name="lab")
    task = asyncio.create_task(run_endpoint(app, ready.set_result))
    url = await ready
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(url + "/models")


PROGRAM = """
import asyncio
import io
from cowest.models.endpoint import make_app, run_endpoint
from cowest.models.scripted import ScriptedChatModel
app = make_app(ScriptedChatModel([], default="hello"), model_name="lab")
asyncio.run(run_endpoint(app, lambda url: print(url, flush=True)))
print("closed", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_shuts_it_down_cleanly(number: signal.Signals) -> None:
    path = os.pathsep.join(p for p in sys.path if p)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, stdout=pipe, stderr=pipe, env=os.environ | {"PYTHONPATH": path}
    )
    try:
        assert process.stdout is not None
        url = (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()
        async with aiohttp.ClientSession() as session:
            async with session.post(url + "/chat/completions", json=ASK) as response:
                assert response.status == 200
            process.send_signal(number)  # while a kept-alive connection is open
            out, err = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, out.decode().strip(), err.decode()) == (0, "closed", "")
