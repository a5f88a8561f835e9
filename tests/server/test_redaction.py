"""No text reaches a model or the disk but through the hook; where the hook fails, nothing is sent."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.server.loopback import Upstream, reply, serving, strong

from cowest.errors import ConfigError
from cowest.ledger.exchanges import read_exchanges
from cowest.models.scripted import ScriptedChatModel
from cowest.server.redaction import load_hook


def hook(text: str) -> str:
    """Takes out what names Ann, in any form."""
    return re.sub(r"(?i)\bann\b", "[X]", text)


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with strong() as upstream:
        yield upstream


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


async def test_every_text_is_redacted_before_it_leaves_and_before_it_is_kept(upstream: Upstream, ledger: Path) -> None:
    weak = ScriptedChatModel([], default="As ann told me: no")
    call = {"id": "call_ann", "type": "function", "function": {"name": "f", "arguments": '{"who": "Ann"}'}}
    messages = [
        {"role": "system", "content": "You serve Ann."},
        {"role": "user", "name": "ann", "content": [{"type": "text", "text": "I am Ann."}]},
        {"role": "assistant", "content": "Hello Ann", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_ann", "content": "ANN is 7"},
        {"role": "user", "content": "May Ann smoke?"},
    ]
    fields: dict[str, Any] = {
        "user": "ann",
        "metadata": {"id": "Ann", "type": "Ann", "tool_calls": "ann"},
        "stop": ["Ann"],
        "prediction": {"type": "content", "content": [{"type": "text", "text": "Ann"}]},
        "tools": [
            {"type": "function", "function": {"name": "f", "description": "of Ann", "parameters": {"type": "object"}}}
        ],
        "future": [[{"deep": "Ann"}]],
        "cowest": {"context": "Ann's file", "choices": ["Ann may", "no"], "details": True},
    }
    upstream.plan = [reply("No, Ann.")]
    async with serving(upstream.url, weak, ledger=ledger, hook=hook) as client:
        got = await client.ask(messages=messages, **fields)
        assert got.text == "No, Ann."  # what the strong model says to its client is theirs
        assert got.json["cowest"]["draft"] == "As [X] told me: no"
        await client.judge({"id": got.json["id"], "answer": "Ann may"})
        assert (await client.judge({"id": got.json["id"], "answer": "[X] may"})).status == 200
    for sent in (json.dumps(upstream.bodies), str(weak.requests)):
        assert not re.search(r"(?i)\bann\b", sent.replace("call_ann", "")) and "[X]" in sent
    body = upstream.bodies[0]
    assert body["messages"][2]["tool_calls"][0]["id"] == body["messages"][3]["tool_call_id"] == "call_ann"
    assert body["tools"][0]["type"] == "function" and body["messages"][1]["name"] == "[X]"
    assert "As [X] told me" in body["messages"][4]["content"]
    ((entry, verdict),) = read_exchanges(ledger, "pair")
    assert entry.answers == ("No, [X].",) and verdict is not None and verdict.answer == "[X] may"
    files = b"".join(path.read_bytes() for path in ledger.parent.iterdir())
    assert not re.search(rb"(?i)\bann\b", files)


@pytest.mark.parametrize("model", ["pair", "pair.weak", "pair.strong"])
@pytest.mark.parametrize("stream", [False, True])
async def test_where_the_hook_fails_nothing_is_sent(
    upstream: Upstream, ledger: Path, caplog: pytest.LogCaptureFixture, model: str, stream: bool
) -> None:
    weak = ScriptedChatModel([], default="no")

    def failing(text: str) -> str:
        raise ValueError(f"cannot redact {text}")

    async with serving(upstream.url, weak, ledger=ledger, hook=failing) as client:
        with caplog.at_level(logging.DEBUG):
            got = await client.ask("a secret", model=model, stream=stream)
    assert got.status == 500 and got.json["error"]["code"] == "redaction_failed"
    assert not upstream.bodies and not weak.requests and not list(read_exchanges(ledger, "pair"))
    assert b"secret" not in got.raw and "secret" not in caplog.text and "ValueError" in caplog.text


def refuse(text: str) -> Any:
    if "draft" in text:
        raise SystemExit(1)
    return text


def give_none(text: str) -> Any:
    return None if "draft" in text else text


def half_a_character(text: str) -> str:
    return text.replace("draft", "\ud800")


@pytest.mark.parametrize("bad", [refuse, give_none, half_a_character])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_draft_that_cannot_be_redacted_is_not_sent(
    upstream: Upstream, ledger: Path, bad: Any, stream: bool
) -> None:
    weak = ScriptedChatModel([], default="a draft")
    async with serving(upstream.url, weak, ledger=ledger, hook=bad) as client:
        got = await client.ask(stream=stream, cowest={"early_draft": True})
        assert got.status == 500 and got.json["error"]["code"] == "redaction_failed"
        assert weak.requests and not upstream.bodies and b"draft" not in ledger.read_bytes()


async def test_the_redacted_draft_is_what_stands_in_for_the_strong_model(upstream: Upstream) -> None:
    weak = ScriptedChatModel([], default="Ann may")
    async with serving(upstream.url, weak, hook=hook) as client:
        upstream.plan = [500, 500, 500]
        assert (await client.ask()).text == "[X] may"


async def test_a_draft_of_which_nothing_is_left_is_none(upstream: Upstream) -> None:
    weak = ScriptedChatModel([], default="Ann")
    async with serving(upstream.url, weak, hook=lambda text: text.replace("Ann", "")) as client:
        got = await client.ask(cowest={"details": True})
        assert got.json["cowest"]["degraded"] == "draft_empty" and got.json["model"] == "pair.strong"


async def test_an_answer_that_cannot_be_redacted_is_given_and_not_kept(upstream: Upstream, ledger: Path) -> None:
    def failing(text: str) -> str:
        if text.startswith("No, it"):
            raise ValueError
        return text

    async with serving(upstream.url, ledger=ledger, hook=failing) as client:
        assert (await client.ask()).text == "No, it is not."
        assert await client.metric('cowest_collected_total{outcome="failed"}') == 1
    assert not list(read_exchanges(ledger, "pair"))


async def test_feedback_that_cannot_be_redacted_is_refused(upstream: Upstream, ledger: Path) -> None:
    def failing(text: str) -> str:
        if text == "never":
            raise ValueError
        return text

    async with serving(upstream.url, ledger=ledger, hook=failing) as client:
        id_ = (await client.ask()).json["id"]
        got = await client.judge({"id": id_, "answer": "never"})
        assert got.status == 500 and got.json["error"]["code"] == "redaction_failed"
    assert next(read_exchanges(ledger, "pair"))[1] is None


async def test_what_is_no_text_cannot_be_redacted_and_is_refused(upstream: Upstream) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    async with serving(upstream.url, hook=hook) as client:
        got = await client.ask(messages=[{"role": "user", "content": [image]}])
        assert got.status == 400 and got.json["error"]["param"] == "messages[0].content"
        got = await client.ask(messages=[{"role": "assistant", "audio": {"id": "x"}}])
        assert got.status == 400 and not upstream.bodies


async def test_a_hook_that_hangs_refuses_and_does_not_stop_the_server(upstream: Upstream) -> None:
    let_go = threading.Event()

    def slow(text: str) -> str:
        if "wait" in text:
            let_go.wait(60)
        return text

    async with serving(upstream.url, hook=slow, hook_patience_s=1.0) as client:
        hanging = asyncio.ensure_future(client.ask("please wait"))
        assert (await client.get("/healthz")).status == 200
        got = await hanging
        assert got.status == 500 and not upstream.bodies
        let_go.set()
        while (await client.ask("go on")).status != 200:  # until the thread has been scheduled again
            await asyncio.sleep(0.05)


def test_the_hook_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ours_to_redact.py").write_text("def quiet(text):\n    return text.lower()\nLEVEL = 3\n")
    (tmp_path / "broken_hook.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    assert load_hook("ours_to_redact:quiet")("ABC") == "abc"
    for name, why in (
        ("ours_to_redact", "module:function"),
        ("ours_to_redact:loud", "cannot be loaded"),
        ("ours_to_redact:LEVEL", "not a function"),
        ("nowhere.at.all:f", "cannot be loaded"),
        ("broken_hook:f", "ZeroDivisionError"),
    ):
        with pytest.raises(ConfigError, match=why):
            load_hook(name)
