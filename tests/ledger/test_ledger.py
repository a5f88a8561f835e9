"""The ledger: durable before it returns, shared by processes, exact in what it adds up."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import JsonValue

from cowest.errors import BudgetExceededError, ConfigError, DataError
from cowest.ledger.ledger import BatchEntry, Call, Ledger, Limits, call_of, purpose
from cowest.ledger.prices import Price
from cowest.ledger.schema import connect
from cowest.ledger.summary import export_ledger, summarise_ledger
from cowest.types import Attempt, Completion, Message, Sampling, TokenLogprob, Usage

PRICE = Price(input=1.0, output=10.0)
USED = Usage(calls=1, input_tokens=100, output_tokens=20, reasoning_tokens=5)
COST = (100 * 1.0 + 20 * 10.0) / 1e6


def call(text: str = "Why?", price: Price | None = PRICE, max_tokens: int = 30) -> Call:
    return call_of("big", [Message(role="user", content=text)], Sampling(max_tokens=max_tokens), {}, price)


def answer(text: str = "Because.", *before: Attempt, reservation: int | None = None, usage: Usage = USED) -> Completion:
    last = Attempt(at=1.0, latency_s=0.5, outcome="ok", usage=usage, reservation=reservation)
    return Completion(text=text, usage=usage, latency_s=0.7, attempts=(*before, last))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "ledger.sqlite"


async def test_an_answer_comes_back_as_it_was(path: Path) -> None:
    ledger = Ledger(path, "run")
    logprobs = (TokenLogprob(token="Be", logprob=-0.25, top=(("Be", -0.25), ("As", -1.5))),)
    given = answer().model_copy(update={"logprobs": logprobs, "finish_reason": "length"})
    entered = await ledger.answered(call(), given)
    assert entered.usage.cost_usd == pytest.approx(COST)
    assert ledger.get(call().key) == entered
    assert ledger.get(call("Another?").key) is None
    ledger.close()
    ledger.close()
    again = Ledger(path, "another run")
    assert again.get(call().key) == entered
    again.close()


def test_the_key_is_what_is_asked_and_nothing_else() -> None:
    ask = [Message(role="user", content="Why?")]
    extra: dict[str, JsonValue] = {}
    warm = Sampling(temperature=1.0, seed=1)
    base = call_of("big", ask, warm, extra, PRICE).key
    assert call_of("big", ask, warm, extra, None).key == base
    others = [
        call_of("small", ask, warm, extra, PRICE),
        call_of("big", [Message(role="system", content="Why?")], warm, extra, PRICE),
        call_of("big", ask, warm.model_copy(update={"max_tokens": 9}), extra, PRICE),
        call_of("big", ask, warm.model_copy(update={"seed": 2}), extra, PRICE),
        call_of("big", ask, warm, {"reasoning_effort": "low"}, PRICE),
        call_of("big", ask, warm, extra, PRICE, index=1),
    ]
    assert len({base, *(o.key for o in others)}) == 7
    greedy = [call_of("big", ask, Sampling(seed=seed), extra, PRICE).key for seed in (None, 1, 2)]
    assert len(set(greedy)) == 1, "greedy decoding has no use for a seed"


async def test_the_bill_holds_what_was_of_no_use_and_what_may_have_been_paid(path: Path) -> None:
    ledger = Ledger(path, "run")
    purpose.set("feedback")
    useless = Attempt(at=0.0, latency_s=0.1, outcome="empty", usage=USED)
    lost = Attempt(at=0.0, latency_s=9.0, outcome="timeout", maybe_paid=True)
    refused = Attempt(at=0.0, latency_s=0.1, outcome="http_429")
    await ledger.answered(call(), answer("Because.", useless, lost, refused))
    await ledger.failed(call("Why not?"), "timeout", "no full answer within 5 s", [lost, lost])
    bill = ledger.summary("run")
    assert (bill.answered, bill.paid_calls, bill.failed, bill.maybe_paid) == (1, 2, 1, 3)
    assert bill.failures == {"timeout": 1}
    assert bill.retries == {"empty": 1, "timeout": 2, "http_429": 1}
    assert bill.cost_usd == pytest.approx(2 * COST)
    most = sum(PRICE.cost(c.most) for c in (call(), call("Why not?"), call("Why not?")))
    assert bill.at_most_usd == pytest.approx(2 * COST + most, abs=3e-6)  # each is rounded up to a millionth
    assert bill.purposes["feedback"].calls == 1 and bill.models["big"].cost_usd == pytest.approx(COST)
    assert bill.slowest[0].latency_s == 0.7 and bill.slowest[0].attempts == 4
    assert ledger.get(call("Why not?").key) is None, "a failure is never cached"
    ledger.close()
    exported = list(export_ledger(path))
    assert [e["entry"] for e in exported] == ["answer", "failure"]
    assert exported[0]["text"] == "Because." and exported[0]["cost_usd"] == pytest.approx(COST)
    assert exported[1]["kind"] == "timeout" and isinstance(exported[1]["attempts"], list)


async def test_a_refreshed_answer_stays_in_the_bill(path: Path) -> None:
    ledger = Ledger(path, "run")
    await ledger.answered(call(), answer("Old."))
    await ledger.answered(call(), answer("New."))
    found = ledger.get(call().key)
    assert found is not None and found.text == "New."
    assert ledger.summary("run").cost_usd == pytest.approx(2 * COST)
    ledger.close()


async def test_an_unknown_price_is_said_and_not_nought(path: Path) -> None:
    ledger = Ledger(path, "run")
    entered = await ledger.answered(call(price=None), answer())
    bill = ledger.summary("run")
    assert entered.usage.cost_usd is None and bill.cost_usd is None and bill.unpriced_models == ["big"]
    with pytest.raises(ConfigError, match="price"):
        Ledger(path, "run", Limits(usd=1.0)).budget(None)
    ledger.close()


async def test_runs_that_share_a_file_share_answers_and_not_bills(path: Path) -> None:
    one, two = Ledger(path, "one"), Ledger(path, "two")
    await one.answered(call(), answer())
    assert two.get(call().key) is not None
    assert (two.summary("two").answered, two.summary("two").hits) == (0, 1)
    assert two.summary(None).answered == 1
    one.close()
    two.close()


# Budgets


@pytest.mark.parametrize("limits", [Limits(calls=10), Limits(usd=10 * COST), Limits(tokens=1200)], ids=str)
async def test_concurrent_calls_never_exceed_a_limit(path: Path, limits: Limits) -> None:
    ledger = Ledger(path, "run", limits)
    budget = ledger.budget(PRICE)
    stopped: list[str] = []

    async def one(number: int) -> None:
        try:
            held = await budget.reserve(Usage(calls=1, input_tokens=100, output_tokens=20))
        except BudgetExceededError as error:
            stopped.append(str(error))
            return
        await asyncio.sleep(0.001 * (number % 5))
        # Every other call takes half of what was held for it.
        used = USED if number % 2 else USED.model_copy(update={"input_tokens": 50, "output_tokens": 10})
        await ledger.answered(call(f"question {number}"), answer(reservation=held, usage=used))

    await asyncio.gather(*(one(n) for n in range(40)))
    bill = ledger.summary("run")
    assert bill.under_way == 0 and stopped and "raise" in stopped[0]
    assert bill.cost_usd is not None and bill.at_most_usd == bill.cost_usd
    spent = {"calls": bill.paid_calls, "usd": bill.cost_usd, "tokens": bill.input_tokens + bill.output_tokens}
    for name in ("calls", "usd", "tokens"):
        limit = getattr(limits, name)
        assert limit is None or 0.85 * limit < spent[name] <= limit + 1e-9
    ledger.close()


async def test_a_budget_counts_what_earlier_processes_spent(path: Path) -> None:
    first = Ledger(path, "run", Limits(calls=2))
    await first.answered(call("1"), answer())
    await first.answered(call("2"), answer())
    first.close()
    second = Ledger(path, "run", Limits(calls=2))
    budget = second.budget(None)
    with pytest.raises(
        BudgetExceededError, match=r"budget_calls: 2 is reached: 2 paid, and the next call could take 1"
    ):
        await budget.reserve(USED)
    second.close()
    other = Ledger(path, "another", Limits(calls=1)).budget(None)
    await other.reserve(USED)  # its own budget


DIES = """
import asyncio, os, sys
from pathlib import Path
from cowest.ledger.ledger import Ledger, Limits
from cowest.ledger.prices import Price
from cowest.types import Usage
async def main():
    ledger = Ledger(Path(sys.argv[1]), "run", Limits(usd=1.0))
    await ledger.budget(Price(1.0, 10.0)).reserve(Usage(calls=1, input_tokens=100, output_tokens=20))
    print("held", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_what_a_killed_process_had_under_way_stays_counted(path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", DIES, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    assert summarise_ledger(path).under_way == 1
    process.send_signal(signal.SIGKILL)
    process.communicate()
    Ledger(path, "run", Limits(usd=1.0)).close()
    bill = summarise_ledger(path)
    assert (bill.under_way, bill.maybe_paid) == (0, 1)
    assert bill.cost_usd == 0 and bill.at_most_usd == pytest.approx(COST)


# Processes


WRITES = """
import asyncio, sys
from pathlib import Path
from cowest.ledger.ledger import Ledger, call_of
from cowest.types import Attempt, Completion, Message, Sampling, Usage
async def main():
    ledger, name = Ledger(Path(sys.argv[1]), "run"), sys.argv[2]
    usage = Usage(calls=1, input_tokens=10, output_tokens=1)
    done = Completion(text="x" * 500, usage=usage, attempts=(Attempt(at=0, latency_s=0, outcome="ok", usage=usage),))
    async def one(n):
        call = call_of("m", [Message(role="user", content=f"{name} {n}")], Sampling(), {}, None)
        await ledger.answered(call, done)
        sys.stdout.write(call.key + "\\n"); sys.stdout.flush()
    for batch in range(int(sys.argv[3])):
        await asyncio.gather(*(one(20 * batch + n) for n in range(20)))
    ledger.close()
asyncio.run(main())
"""


def _writer(path: Path, name: str, batches: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITES, str(path), name, str(batches)], stdout=subprocess.PIPE)


def test_several_processes_write_at_once(path: Path) -> None:
    writers = [_writer(path, name, 10) for name in ("a", "b", "c")]
    keys = [key for w in writers for key in w.communicate()[0].split()]
    assert [w.returncode for w in writers] == [0, 0, 0]
    assert len(set(keys)) == 600 and summarise_ledger(path).answered == 600


def test_whoever_opens_a_new_file_first_the_others_find_a_ledger(tmp_path: Path) -> None:
    at_once, files, failed = 6, 100, list[Exception]()
    start = threading.Barrier(at_once)

    def open_all() -> None:
        for n in range(files):
            start.wait(60)
            try:
                connect(tmp_path / f"{n}.sqlite").close()
            except DataError as error:
                failed.append(error)

    with ThreadPoolExecutor(at_once) as pool:
        for done in [pool.submit(open_all) for _ in range(at_once)]:
            done.result()
    assert not failed


def test_what_was_acknowledged_outlives_a_kill(path: Path) -> None:
    writer = _writer(path, "killed", 10_000)
    assert writer.stdout is not None
    told = [writer.stdout.readline() for _ in range(150)]
    os.kill(writer.pid, signal.SIGKILL)
    told += writer.communicate()[0].splitlines(keepends=True)
    ledger = Ledger(path, "run")
    complete = [line.strip().decode() for line in told if line.endswith(b"\n")]
    assert len(complete) >= 150
    assert all(ledger.get(key) is not None for key in complete)
    ledger.close()


# Files


async def test_a_full_disk_is_told_to_everyone_who_waits(path: Path) -> None:
    ledger = Ledger(path, "run")
    pages = ledger._writer.call(lambda db: int(db.execute("PRAGMA page_count").fetchone()[0]))
    ledger._writer.call(lambda db: db.execute(f"PRAGMA max_page_count = {pages + 1}").fetchone())
    results = await asyncio.gather(
        *(ledger.answered(call(f"{n}"), answer("x" * 5000)) for n in range(20)), return_exceptions=True
    )
    failed = [r for r in results if isinstance(r, BaseException)]
    assert failed and all(isinstance(r, DataError) and "full" in str(r) for r in failed)
    ledger.close()
    assert summarise_ledger(path).answered == len(results) - len(failed)


def test_files_that_are_no_ledger(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database at all, but long enough to look like one\n" * 50)
    with pytest.raises(DataError, match=r"notes\.txt: damaged, or no ledger.*cowest ledger recover"):
        Ledger(text, "run")
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE mine (a)")
    with pytest.raises(DataError, match="no ledger of cowest"):
        Ledger(other, "run")
    newer = tmp_path / "newer.sqlite"
    Ledger(newer, "run").close()
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(DataError, match=r"version 99.*newer cowest"):
        Ledger(newer, "run")
    with pytest.raises(DataError, match="there is no ledger"):
        summarise_ledger(tmp_path / "none.sqlite")
    assert not (tmp_path / "none.sqlite").exists(), "reading makes no file"


async def test_it_serves_one_event_loop_after_another(path: Path) -> None:
    ledger = Ledger(path, "run")
    for n in range(2):
        await asyncio.to_thread(_in_a_loop_of_its_own, ledger, n)
    assert ledger.summary(None).answered == 2
    ledger.close()


def _in_a_loop_of_its_own(ledger: Ledger, number: int) -> None:
    asyncio.run(_enter(ledger, number))


async def _enter(ledger: Ledger, number: int) -> None:
    await ledger.answered(call(f"loop {number}"), answer())


async def test_batches_are_kept_with_their_state(path: Path) -> None:
    ledger = Ledger(path, "run")
    entry = BatchEntry(id="b", model="big", file_id="f", job=None, status="creating", keys=("k1", "k2"), created=1.0)
    await ledger.save_batch(entry)
    done = entry.model_copy(update={"job": "batch_1", "status": "running"})
    await ledger.save_batch(done)
    assert ledger.batches("big") == [done] and ledger.batches("small") == []
    ledger.close()
