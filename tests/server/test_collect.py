"""What is kept of an exchange, what is taken as feedback, and that nothing is kept unless asked for."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.server.loopback import DRAFT, FRAMES, Client, Held, Upstream, chunk, events, hang, reply, serving, strong

from cowest.ledger.exchanges import Exchanged, ExchangeLog, Turn, Verdict, delete_exchanges, read_exchanges
from cowest.ledger.ledger import Ledger
from cowest.server.auth import Keys
from cowest.server.settings import Settings
from cowest.types import Example, Message


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with strong() as upstream:
        yield upstream


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
async def client(upstream: Upstream, ledger: Path) -> AsyncIterator[Client]:
    async with serving(upstream.url, ledger=ledger) as client:
        yield client


def kept(ledger: Path) -> list[tuple[Exchanged, Verdict | None]]:
    return list(read_exchanges(ledger, "pair"))


async def test_an_exchange_is_kept_with_all_that_made_it(client: Client, ledger: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "May I?"}, {"type": "image_url", "image_url": {"url": "x"}}],
        },
    ]
    extension = {"context": "Kasti", "choices": ["yes", "no"]}
    got = await client.ask(messages=messages, cowest=extension)
    ((entry, verdict),) = kept(ledger)
    seen = "May I?\n\n[1 image attached here, which you cannot see; the model after you can]"  # by the weak model
    asked = Example(id="x", input=seen, context="Kasti", references=("",), choices=("yes", "no"))
    assert verdict is None and entry.at > 1.7e9
    assert entry.model_copy(update={"at": 0.0}) == Exchanged(
        id=got.json["id"],
        at=0.0,
        task="",
        model="pair",
        mode="both",
        messages=(Turn(role="system", text="Be brief."), Turn(role="user", text="May I?")),
        turn=1,
        context="Kasti",
        choices=("yes", "no"),
        prompt=(Message(role="system", content="Be brief."), *FRAMES.draft(asked)),
        draft=DRAFT,
        answers=("No, it is not.",),
    )


async def test_a_stream_is_kept_before_its_end_is_sent(client: Client, upstream: Upstream, ledger: Path) -> None:
    async def slowly(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(
            events(chunk({"role": "assistant", "content": "No, "}), chunk({"content": "never."}, "stop"))
        )
        return response

    upstream.plan = [slowly]
    body = {"model": "pair", "stream": True, "messages": [{"role": "user", "content": "May I?"}]}
    async with client.session.post(f"{client.url}/chat/completions", json=body) as got:
        seen = b""
        async for piece in got.content.iter_any():
            seen += piece
            if b"[DONE]" in seen:
                assert [entry.answers for entry, _ in kept(ledger)] == [("No, never.",)]
    assert b"[DONE]" in seen


async def test_every_choice_is_kept_and_a_tool_call_has_no_text(
    client: Client, upstream: Upstream, ledger: Path
) -> None:
    choices = [{"index": i, "message": {"role": "assistant", "content": text}} for i, text in ((1, None), (0, "a"))]
    upstream.plan = [reply(choices=choices)]
    await client.ask(n=2)
    assert kept(ledger)[0][0].answers == ("a", None)


async def test_which_model_answered_is_kept(client: Client, upstream: Upstream, ledger: Path) -> None:
    await client.ask(model="pair.strong")
    await client.ask(model="pair.weak")
    upstream.plan = [500, 500, 500]
    await client.ask()
    found = [(e.model, e.mode, e.degraded, e.draft, e.prompt != (), e.answers) for e, _ in kept(ledger)]
    assert found == [
        ("pair.strong", "strong_alone", None, None, False, ("No, it is not.",)),
        ("pair.weak", "weak_alone", None, None, False, (DRAFT,)),
        ("pair", "weak_alone", "strong_http_500", DRAFT, True, (DRAFT,)),
    ]


async def test_what_was_not_answered_is_not_kept(client: Client, upstream: Upstream, ledger: Path) -> None:
    upstream.plan = [400, hang]
    assert (await client.ask()).status == 400
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.ask(), 0.3)
    await upstream.left.wait()
    broken = events(chunk({"content": "No"}), done=False)
    upstream.plan = [lambda request: _raw(broken)]
    assert b'"error"' in (await client.ask(stream=True)).raw
    assert kept(ledger) == []


async def _raw(body: bytes) -> web.StreamResponse:
    return web.Response(body=body, headers={"Content-Type": "text/event-stream"})


async def test_many_at_once_are_all_kept(client: Client, ledger: Path) -> None:
    got = await asyncio.gather(*(client.ask(f"May I {i}?") for i in range(60)))
    assert {e.id: e.messages[0].text for e, _ in kept(ledger)} == {
        r.json["id"]: f"May I {i}?" for i, r in enumerate(got)
    }
    assert await client.metric('cowest_collected_total{outcome="stored"}') == 60


async def test_a_file_that_cannot_be_written_costs_no_answer(client: Client, ledger: Path) -> None:
    with closing(sqlite3.connect(ledger, isolation_level=None)) as db:
        db.execute("DROP TABLE exchanges")
    assert (await client.ask()).text == "No, it is not."
    assert await client.metric('cowest_collected_total{outcome="failed"}') == 1


async def test_an_exchange_beyond_all_bounds_is_answered_and_not_kept(
    client: Client, upstream: Upstream, ledger: Path
) -> None:
    upstream.plan = [reply("x" * 1_000_001)]
    assert len((await client.ask()).text) == 1_000_001
    assert kept(ledger) == [] and await client.metric('cowest_collected_total{outcome="too_long"}') == 1


async def test_a_disk_that_hangs_does_not_hold_the_answer(
    client: Client, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cowest.server.collector.MOST_WAIT_S", 0.2)
    with closing(sqlite3.connect(ledger, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # another process writes, and does not end
        assert (await client.ask()).text == "No, it is not."
        assert await client.metric('cowest_collected_total{outcome="failed"}') == 1
        other.execute("ROLLBACK")
    while not kept(ledger):  # it is entered all the same, once that is possible
        await asyncio.sleep(0.02)


async def test_half_a_character_from_the_model_is_replaced(client: Client, upstream: Upstream, ledger: Path) -> None:
    upstream.plan = [reply("No\ud800.")]
    assert (await client.ask()).text == "No\ud800."
    assert kept(ledger)[0][0].answers == ("No?.",)


async def test_collecting_in_a_ledger_leaves_its_bill_alone(client: Client, ledger: Path) -> None:
    await client.ask()
    bill = Ledger(ledger, "pair")
    assert bill.summary().answered == 0
    bill.close()
    assert len(kept(ledger)) == 1


async def test_unless_asked_nothing_is_kept(
    upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with serving(upstream.url) as client:
        got = await client.ask()
        refused = await client.judge({"id": got.json["id"], "helpful": True})
        assert refused.status == 404 and refused.json["error"]["code"] == "collect_off"
    assert list(tmp_path.iterdir()) == []


async def test_feedback_is_entered_and_the_last_one_counts(client: Client, ledger: Path) -> None:
    id_ = (await client.ask()).json["id"]
    first = await client.judge({"id": id_, "helpful": True})
    assert first.status == 200
    assert first.json == {"id": id_, "object": "cowest.feedback", "helpful": True, "answer": None, "replaced": False}
    second = await client.judge({"id": id_, "helpful": False, "answer": " no "})
    assert second.json["replaced"] is True and second.json["answer"] == "no"
    ((_, verdict),) = kept(ledger)
    assert verdict is not None and verdict.helpful is False and verdict.answer == "no"
    for name, n in (("helpful", 1), ("not_helpful", 1), ("answer", 1)):
        assert await client.metric(f'cowest_feedback_total{{verdict="{name}"}}') == n


WRONG: list[tuple[dict[str, Any] | bytes, int, str | None]] = [
    ({"id": "chatcmpl-unknown", "helpful": True}, 404, "id"),
    ({"helpful": True}, 400, "id"),
    ({"id": "ID"}, 400, "helpful"),
    ({"id": "ID", "answer": "  "}, 400, "helpful"),
    ({"id": "ID", "helpful": "yes"}, 400, "helpful"),
    ({"id": "ID", "helpful": 1}, 400, "helpful"),
    ({"id": "ID", "answer": "x" * 20_001}, 400, "answer"),
    ({"id": "ID", "answer": "perhaps"}, 400, "answer"),
    ({"id": "ID", "helpful": True, "rating": 5}, 400, "rating"),
    ({"id": "ID", "answer": "\ud800"}, 400, "answer"),
    (b"[" * 50_000, 400, None),
    (b"null", 400, None),
    (b"{" + b" " * 70_000 + b"}", 413, None),
]


@pytest.mark.parametrize(("body", "status", "param"), WRONG)
async def test_wrong_feedback_is_refused_in_openais_shape(
    client: Client, ledger: Path, body: dict[str, Any] | bytes, status: int, param: str | None
) -> None:
    id_ = (await client.ask(cowest={"choices": ["yes", "no"]})).json["id"]
    sent = {k: id_ if v == "ID" else v for k, v in body.items()} if isinstance(body, dict) else body
    got = await client.judge(sent)
    assert got.status == status and got.json["error"].keys() == {"message", "type", "param", "code"}
    assert got.json["error"]["param"] == param
    assert kept(ledger)[0][1] is None


async def test_feedback_wants_the_key_and_keeps_to_the_rate(upstream: Upstream, ledger: Path) -> None:
    settings = Settings(rate_per_minute=12)  # two at once
    async with serving(upstream.url, settings=settings, keys=Keys(["k"]), ledger=ledger) as client:
        key = {"Authorization": "Bearer k"}
        id_ = (await client.ask(headers=key)).json["id"]
        assert (await client.judge({"id": id_, "helpful": True})).status == 401
        assert (await client.judge({"id": id_, "helpful": True}, key)).status == 200
        late = await client.judge({"id": id_, "helpful": False}, key)
        assert late.status == 429 and int(late.headers["Retry-After"]) >= 1
        plain = await client.judge({"id": id_, "helpful": True}, key | {"Content-Type": "text/plain"})
        assert plain.status in (415, 429)


async def test_another_runs_exchange_in_a_shared_file_is_unknown(client: Client, ledger: Path) -> None:
    id_ = (await client.ask()).json["id"]
    with closing(sqlite3.connect(ledger, isolation_level=None)) as db:
        db.execute("UPDATE exchanges SET run = 'other'")
    assert (await client.judge({"id": id_, "helpful": True})).status == 404
    assert kept(ledger) == []


async def test_feedback_on_what_is_deleted_meanwhile_is_not_entered(
    client: Client, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_ = (await client.ask()).json["id"]
    found = kept(ledger)[0][0]
    delete_exchanges(ledger, "pair")
    monkeypatch.setattr(ExchangeLog, "find", lambda self, id_: found)
    assert (await client.judge({"id": id_, "answer": "no"})).json["error"]["code"] == "exchange_not_found"
    with closing(sqlite3.connect(ledger, isolation_level=None)) as db:
        assert db.execute("SELECT count(*) FROM verdicts").fetchone() == (0,)


async def test_what_is_deleted_leaves_no_byte(upstream: Upstream, ledger: Path) -> None:
    async with serving(upstream.url, ledger=ledger) as client:
        ids = [(await client.ask(f"Does Ms. Quorra{i} smoke?")).json["id"] for i in range(3)]
        await client.judge({"id": ids[0], "answer": "Quorra0 does"})
        found = delete_exchanges(ledger, "pair", ids[:1])
        assert found.exchanges == 1 and found.complete
        assert (await client.judge({"id": ids[0], "helpful": True})).status == 404
    left = b"".join(path.read_bytes() for path in ledger.parent.iterdir())
    assert b"Quorra1" in left and b"Quorra0" not in left
    assert [entry.id for entry, _ in kept(ledger)] == ids[1:]
    assert delete_exchanges(ledger, "pair", before=kept(ledger)[0][0].at).exchanges == 0
    assert delete_exchanges(ledger, "other").exchanges == 0
    assert delete_exchanges(ledger, "pair").exchanges == 2
    assert b"Quorra" not in b"".join(path.read_bytes() for path in ledger.parent.iterdir())


async def test_the_early_draft_comes_before_the_strong_model_has_answered(client: Client, upstream: Upstream) -> None:
    held = Held()

    async def wait(request: web.Request) -> web.StreamResponse:
        await held.let_go.wait()
        return web.json_response(reply())

    upstream.plan = [wait]
    body = {
        "model": "pair",
        "stream": True,
        "messages": [{"role": "user", "content": "May I?"}],
        "cowest": {"early_draft": True},
    }
    async with client.session.post(f"{client.url}/chat/completions", json=body) as got:
        first = await got.content.readline()
        assert DRAFT.encode() in first and b'"choices":[]' in first
        held.let_go.set()
        assert (await got.read()).endswith(b"[DONE]\n\n")
