"""What calls under way can cost: nobody waits for ever, nothing is held for ever, and a kill leaves no bill too low."""

from __future__ import annotations

import asyncio
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cowest.errors import BudgetExceededError
from cowest.ledger import reservations
from cowest.ledger.ledger import Call, Ledger, Limits, call_of
from cowest.ledger.prices import Price
from cowest.ledger.summary import summarise_ledger
from cowest.models.ledgered import LedgeredChatModel
from cowest.types import Attempt, Completion, Message, Sampling, Usage

PRICE = Price(1.0, 10.0)
MOST = Usage(calls=1, input_tokens=100, output_tokens=20)
LIMITS = {"calls": Limits(calls=4), "tokens": Limits(tokens=480), "usd": Limits(usd=4 * PRICE.cost(MOST))}
BOUND_S = 30.0  # a wait that ends ends long before


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def call(text: str) -> Call:
    asked = call_of("big", [Message(role="user", content=text)], Sampling(max_tokens=20), {}, PRICE)
    return replace(asked, most=MOST)


def tried(*held: int, outcome: str = "timeout") -> list[Attempt]:
    return [Attempt(at=0.0, latency_s=1.0, outcome=outcome, maybe_paid=True, reservation=number) for number in held]


def rows(path: Path) -> int:
    with sqlite3.connect(path) as db:
        return int(db.execute("SELECT count(*) FROM reservations").fetchone()[0])


# With a budget


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
async def test_processes_that_wait_for_one_another_are_told_that_the_budget_is_reached(
    path: Path, limits: Limits
) -> None:
    """Each holds attempts that may have been paid and wants another: a ledger object is to the file what a process is."""
    ledgers = [Ledger(path, "run", limits) for _ in range(2)]

    async def again(ledger: Ledger, number: int) -> None:
        held = await ledger.budget(PRICE).reserve(MOST)
        await ready.wait()
        try:
            await ledger.budget(PRICE).reserve(MOST, [held])
        finally:
            await ledger.failed(call(f"{id(ledger)} {number}"), "timeout", "", tried(held))

    ready = asyncio.Event()
    calls = [asyncio.ensure_future(again(ledger, n)) for ledger in ledgers for n in range(2)]
    while rows(path) < 4:
        await asyncio.sleep(0.01)
    ready.set()
    async with asyncio.timeout(BOUND_S):
        found = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(error, BudgetExceededError) for error in found), found
    for ledger in ledgers:
        ledger.close()
    assert rows(path) == 0 and summarise_ledger(path).maybe_paid == 4


async def test_a_call_waits_for_what_another_process_gives_back(path: Path) -> None:
    one, two = (Ledger(path, "run", Limits(calls=2)) for _ in range(2))
    held = [await one.budget(None).reserve(MOST) for _ in range(2)]
    waiting = asyncio.ensure_future(two.budget(None).reserve(MOST))
    await asyncio.sleep(0.5)
    assert not waiting.done()
    await one.release(held[:1])
    async with asyncio.timeout(BOUND_S):
        assert await waiting not in held
    one.close()
    two.close()


async def test_what_a_process_holds_that_has_died_is_not_waited_for(path: Path) -> None:
    process = _holder(path, "Limits(calls=1)")
    process.send_signal(signal.SIGKILL)  # and not waited for: it stays in the process table
    ledger = Ledger(path, "run", Limits(calls=1))
    with pytest.raises(BudgetExceededError, match=r"1 is reached: 0 paid, 1 perhaps paid"):
        async with asyncio.timeout(BOUND_S):
            await ledger.budget(None).reserve(MOST)
    ledger.close()
    process.communicate()


async def test_a_process_that_stands_still_is_not_waited_for_for_ever(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reservations, "PATIENCE_S", 0.5)
    process = _holder(path, "Limits(calls=2)")
    process.send_signal(signal.SIGSTOP)
    ledger = Ledger(path, "run", Limits(calls=1))
    with pytest.raises(BudgetExceededError, match="1 reserved for calls under way"):
        async with asyncio.timeout(BOUND_S):
            await ledger.budget(None).reserve(Usage(calls=1))
    ledger.close()
    process.kill()
    process.communicate()


async def test_a_wait_that_is_cancelled_holds_nothing(path: Path) -> None:
    ledger = Ledger(path, "run", Limits(calls=3))
    for pause in (0.0, 0.001, 0.003, 0.01):
        reserving = [asyncio.ensure_future(ledger.budget(None).reserve(MOST)) for _ in range(6)]
        await asyncio.sleep(pause)
        for task in reserving:
            task.cancel()
        found = await asyncio.gather(*reserving, return_exceptions=True)
        await ledger.release([number for number in found if isinstance(number, int)])
        async with asyncio.timeout(BOUND_S):
            while rows(path):
                await asyncio.sleep(0.01)
    ledger.close()


@pytest.mark.parametrize(
    ("limits", "name"),
    [(Limits(calls=20), "calls"), (Limits(tokens=2400), "tokens"), (Limits(usd=0.006), "usd")],
    ids=str,
)
async def test_the_message_adds_up(path: Path, limits: Limits, name: str) -> None:
    ledger = Ledger(path, "run", limits)
    budget = ledger.budget(PRICE)
    for n in range(6):
        held = await budget.reserve(MOST)
        paid = Attempt(at=0.0, latency_s=1.0, outcome="ok", usage=MOST, reservation=held)
        await ledger.answered(call(str(n)), Completion(text="x", usage=MOST, attempts=(paid,)))
    lost = [await budget.reserve(MOST) for _ in range(3)]
    await ledger.failed(call("lost"), "timeout", "", tried(*lost))
    live = [await budget.reserve(MOST) for _ in range(4)]
    over = [await budget.reserve(MOST) for _ in range(7)]
    waiting = asyncio.ensure_future(budget.reserve(MOST, over))
    await asyncio.sleep(0.3)
    assert not waiting.done(), "others may still leave room"
    with pytest.raises(BudgetExceededError) as stopped:
        await ledger.budget(PRICE).reserve(
            Usage(calls=1, input_tokens=1900, output_tokens=200)
        ) if name != "calls" else await ledger.reserve([Usage(calls=1)] * 12, PRICE)
    waiting.cancel()
    text = str(stopped.value)
    limit, *parts = [
        float(n.replace(",", "")) for n in re.findall(r"\$?([\d,]+(?:\.\d+)?)(?= is| paid| perhaps| reserved|\.)", text)
    ]
    assert f"budget_{name}" in text and "reserved for calls under way" in text and "perhaps paid" in text
    assert sum(parts) > limit, text
    await ledger.release([*live, *over])
    ledger.close()


# Without one


class Slow:
    """A model whose calls are under way until they are let go."""

    name = "big"

    def __init__(self, ledger: Ledger) -> None:
        self._budget, self.asked, self.go = ledger.budget(PRICE), 0, asyncio.Event()

    async def generate(self, messages: list[Message], sampling: Sampling) -> Completion:
        held = await self._budget.reserve(MOST)
        self.asked += 1
        await self.go.wait()
        done = Attempt(at=0.0, latency_s=1.0, outcome="ok", usage=MOST, reservation=held)
        return Completion(text="x", usage=MOST, attempts=(done,))

    async def aclose(self) -> None: ...


@pytest.mark.parametrize("limits", [Limits(), Limits(calls=100)], ids=["no budget", "budget"])
async def test_calls_that_are_broken_off_may_have_been_paid(path: Path, limits: Limits) -> None:
    ledger = Ledger(path, "run", limits)
    slow = Slow(ledger)
    model = LedgeredChatModel(slow, ledger, model="big", price=PRICE, drain_s=0.1)  # type: ignore[arg-type]
    asking = [
        asyncio.ensure_future(model.generate([Message(role="user", content=str(n))], Sampling())) for n in range(5)
    ]
    while slow.asked < 5:
        await asyncio.sleep(0.01)
    assert summarise_ledger(path).under_way == 5
    await model.aclose()
    await asyncio.gather(*asking, return_exceptions=True)
    ledger.close()
    bill = summarise_ledger(path)
    assert (bill.paid_calls, bill.maybe_paid, bill.under_way) == (0, 5, 0)
    assert bill.at_most_usd is not None and bill.at_most_usd >= 5 * PRICE.cost(MOST)


async def test_hardly_a_call_waits_for_a_note_of_it(path: Path) -> None:
    ledger = Ledger(path, "run")
    budget = ledger.budget(PRICE)

    async def ask(number: int) -> None:
        most = Usage(calls=1, input_tokens=100 + number % 40, output_tokens=20)
        held = await budget.reserve(most)
        await asyncio.sleep(0)
        done = Attempt(at=0.0, latency_s=1.0, outcome="ok", usage=MOST, reservation=held)
        await ledger.answered(call(str(number)), Completion(text="x", usage=MOST, attempts=(done,)))

    for start in range(0, 400, 8):
        await asyncio.gather(*(ask(number) for number in range(start, start + 8)))
    with sqlite3.connect(path) as db:
        made = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'reservations'").fetchone()[0]
    assert 8 <= made <= 40, "8 at once: the rows go from call to call"
    async with asyncio.timeout(BOUND_S):
        while rows(path):  # nothing is under way, and a kill now would lose nothing
            await asyncio.sleep(0.1)
    ledger.close()


HOLDS = """
import asyncio, sys
from pathlib import Path
from cowest.ledger.ledger import Ledger, Limits
from cowest.types import Usage
async def main():
    ledger = Ledger(Path(sys.argv[1]), "run", {limits})
    budget = ledger.budget(None)
    for _ in range(int(sys.argv[2])):
        await budget.reserve(Usage(calls=1, input_tokens=100, output_tokens=20))
    print("held", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def _holder(path: Path, limits: str, number: int = 1) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", HOLDS.format(limits=limits), str(path), str(number)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    return process


@pytest.fixture
def killed(path: Path) -> Iterator[Path]:
    process = _holder(path, "Limits()", 7)
    process.kill()
    process.communicate()
    yield path


def test_a_kill_without_a_budget_leaves_what_was_under_way_in_at_most(killed: Path) -> None:
    assert summarise_ledger(killed).under_way == 7
    Ledger(killed, "run").close()
    bill = summarise_ledger(killed)
    assert (bill.under_way, bill.maybe_paid, bill.paid_calls) == (0, 7, 0)


async def test_what_no_call_uses_is_not_on_the_bill_of_a_run_that_goes_on(path: Path) -> None:
    """Rows that go from call to call stay on disk; when the bill is made at a run's end they are nothing that was paid."""
    ledger = Ledger(path, "run")
    with ledger.call():
        held = await ledger.reserve([MOST, MOST], PRICE)
        assert ledger.summary("run").under_way == 2
        await ledger.release(held)
    bill = ledger.summary("run")
    assert bill.under_way == 0 and bill.at_most_usd == bill.cost_usd == 0.0
    ledger.close()
