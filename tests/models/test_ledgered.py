"""A paid model with the ledger before it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
from tests.models.scripted_endpoint import endpoint, too_slow

from cowest.errors import BudgetExceededError, ModelCallError
from cowest.ledger.ledger import Ledger, Limits, purpose
from cowest.ledger.prices import Price
from cowest.models.ledgered import LedgeredChatModel
from cowest.models.openai import OpenAIChatModel
from cowest.protocols import ManyChatModel
from cowest.types import Attempt, Completion, Message, Sampling, Usage

PRICE = Price(input=1.0, output=2.0)
USED = Usage(calls=1, input_tokens=1000, output_tokens=500)
ASK = (Message(role="user", content="Why?"),)


class Counter:
    """A model that costs something, counts its calls and can be slow or fail."""

    name = "counter"

    def __init__(self, delay_s: float = 0.0) -> None:
        self.asked: list[Sampling] = []
        self.answered = 0
        self.delay_s = delay_s
        self.error: ModelCallError | None = None
        self.stopped = self.closed = False

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        self.asked.append(sampling)
        await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        self.answered += 1
        return Completion(text=f"answer {self.answered}", usage=USED, latency_s=0.25)

    def stop(self) -> None:
        self.stopped = True

    async def aclose(self) -> None:
        self.closed = True


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite", "run")


def paid(inner: Counter, ledger: Ledger, cache: Literal["read", "refresh", "off"] = "read") -> LedgeredChatModel:
    return LedgeredChatModel(inner, ledger, model="m", cache=cache, price=PRICE)


async def test_the_same_request_is_paid_for_once(ledger: Ledger) -> None:
    inner = Counter()
    model = paid(inner, ledger)
    assert isinstance(model, ManyChatModel) and not model.many and model.name == "counter"
    first = await model.generate(ASK, Sampling())
    again = await paid(Counter(), ledger).generate(ASK, Sampling(seed=9))  # greedy: the seed changes nothing
    assert again == first and first.text == "answer 1" and len(inner.asked) == 1
    assert first.usage.cost_usd == pytest.approx(0.002) and first.latency_s == 0.25
    await model.generate(ASK, Sampling(temperature=1.0, seed=9))
    assert len(inner.asked) == 2
    assert ledger.summary("run").hits == 1


async def test_equal_requests_under_way_share_one_call(ledger: Ledger) -> None:
    inner = Counter(delay_s=0.01)
    model = paid(inner, ledger)
    got = await asyncio.gather(*(model.generate(ASK, Sampling()) for _ in range(10)))
    assert len(inner.asked) == 1 and {g.text for g in got} == {"answer 1"}


async def test_refresh_asks_anew_once_and_off_always(ledger: Ledger) -> None:
    await paid(Counter(), ledger).generate(ASK, Sampling())
    inner = Counter()
    model = paid(inner, ledger, "refresh")
    assert [(await model.generate(ASK, Sampling())).text for _ in range(3)] == ["answer 1"] * 3 and len(
        inner.asked
    ) == 1
    inner = Counter()
    model = paid(inner, ledger, "off")
    assert [(await model.generate(ASK, Sampling())).text for _ in range(3)] == ["answer 1", "answer 2", "answer 3"]
    assert ledger.summary("run").answered == 5, "every call is in the bill"


async def test_a_failure_is_entered_and_asked_again(ledger: Ledger) -> None:
    inner = Counter()
    lost = Attempt(at=0.0, latency_s=1.0, outcome="timeout", maybe_paid=True)
    inner.error = ModelCallError("timeout", "too slow", [lost])
    model = paid(inner, ledger)
    with pytest.raises(ModelCallError, match="too slow"):
        await model.generate(ASK, Sampling())
    inner.error = None
    assert (await model.generate(ASK, Sampling())).text == "answer 1"
    bill = ledger.summary("run")
    assert bill.failures == {"timeout": 1} and bill.maybe_paid == 1 and bill.answered == 1


async def test_a_caller_that_goes_away_does_not_waste_the_call(ledger: Ledger) -> None:
    inner = Counter(delay_s=0.03)
    model = paid(inner, ledger)
    caller = asyncio.ensure_future(model.generate(ASK, Sampling()))
    await asyncio.sleep(0.01)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await model.aclose()
    assert inner.stopped and inner.closed and inner.answered == 1
    assert (await paid(Counter(), ledger).generate(ASK, Sampling())).text == "answer 1"


async def test_closing_does_not_wait_for_ever(ledger: Ledger) -> None:
    inner = Counter(delay_s=60)
    model = LedgeredChatModel(inner, ledger, model="m", drain_s=0.05)
    caller = asyncio.ensure_future(model.generate(ASK, Sampling()))
    await asyncio.sleep(0.01)
    await model.aclose()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert inner.closed


@pytest.mark.parametrize(("callers", "at_risk"), [("a", 1), ("abc", 1), ("abcdef", 3)])
async def test_as_many_are_at_risk_as_may_be_and_nobody_is_forgotten(
    ledger: Ledger, callers: str, at_risk: int
) -> None:
    inner = Counter(delay_s=0.001)
    under_way = most = 0

    class Watched(Counter):
        async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            try:
                return await inner.generate(messages, sampling)
            finally:
                under_way -= 1

    model = LedgeredChatModel(Watched(), ledger, model="m", at_risk=at_risk)

    async def caller(name: str) -> None:
        for i in range(5):  # each asks again at the very moment it is answered, when a buyer may just be going
            await model.generate((Message(role="user", content=f"{name} {i}"),), Sampling())

    async with asyncio.timeout(30):
        await asyncio.gather(*(caller(name) for name in callers))
    await model.aclose()
    assert most == at_risk and inner.answered == 5 * len(callers)


async def test_what_a_call_is_for_is_entered_with_it(ledger: Ledger) -> None:
    model = LedgeredChatModel(Counter(delay_s=0.005), ledger, model="m", at_risk=1)

    async def caller(what_for: str) -> None:
        purpose.set(what_for)
        await model.generate((Message(role="user", content=what_for),), Sampling())

    await asyncio.gather(*(caller(name) for name in ("sample", "feedback", "evaluate")))
    await model.aclose()
    assert {name: part.calls for name, part in ledger.summary("run").purposes.items()} == {
        "sample": 1,
        "feedback": 1,
        "evaluate": 1,
    }


async def test_samples_are_bought_once_each(ledger: Ledger) -> None:
    inner, warm = Counter(), Sampling(temperature=1.0, seed=10)
    model = paid(inner, ledger)
    two = await model.generate_many(ASK, warm, 2)
    four = await model.generate_many(ASK, warm, 4)
    assert four[:2] == two and len({c.text for c in four}) == 4
    assert [s.seed for s in inner.asked] == [10, 11, 12, 13]


class Dozen(Counter):
    """Gives up to three samples for one request, where it was opened to."""

    many = True

    async def sample(self, messages: Sequence[Message], sampling: Sampling, n: int) -> list[Completion]:
        first = await self.generate(messages, sampling)
        more = [Completion(text=f"{first.text}.{i}", usage=Usage(output_tokens=100)) for i in range(1, min(n, 3))]
        return [first, *more]


async def test_samples_of_one_request_are_one_call_on_the_bill(ledger: Ledger) -> None:
    inner = Dozen()
    got = await paid(inner, ledger).generate_many(ASK, Sampling(temperature=1.0), 5)
    assert [g.text for g in got] == ["answer 1", "answer 1.1", "answer 1.2", "answer 2", "answer 2.1"]
    bill = ledger.summary("run")
    assert bill.paid_calls == 2 and bill.answered == 5
    assert len(await paid(Dozen(), ledger).generate_many(ASK, Sampling(temperature=1.0), 5)) == 5
    assert len(inner.asked) == 2


async def test_the_ledger_can_no_more_than_the_model_in_it(ledger: Ledger) -> None:
    assert not paid(Counter(), ledger).many and paid(Dozen(), ledger).many
    for several in (1, 2):
        inner = OpenAIChatModel(base_url="http://127.0.0.1:1/v1", model="m", api_key=None, samples_per_call=several)
        assert LedgeredChatModel(inner, ledger, model="m").many == inner.many == (several > 1)
        await inner.aclose()


async def test_an_empty_budget_goes_through_and_leaves_no_failure(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.sqlite", "run", Limits(calls=1))
    budget = ledger.budget(PRICE)
    assert budget is not None

    class Bounded(Counter):
        async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
            assert budget is not None
            held = await budget.reserve(USED)
            done = await super().generate(messages, sampling)
            attempt = Attempt(at=0.0, latency_s=0.0, outcome="ok", usage=USED, reservation=held)
            return done.model_copy(update={"attempts": (attempt,)})

    model = paid(Bounded(), ledger)
    await model.generate(ASK, Sampling())
    with pytest.raises(BudgetExceededError, match="budget_calls"):
        await model.generate(ASK, Sampling(max_tokens=7))
    assert (await model.generate(ASK, Sampling())).text == "answer 1", "what is paid for can still be used"
    assert ledger.summary("run").failed == 0


@pytest.mark.parametrize("calls", [1, 3])
async def test_a_time_out_at_the_end_of_the_budget_ends_the_run_and_does_not_hang(tmp_path: Path, calls: int) -> None:
    async with endpoint(too_slow) as server:
        ledger = Ledger(tmp_path / "ledger.sqlite", "run", Limits(calls=calls))
        inner = OpenAIChatModel(
            base_url=server.url, model="m", api_key=None, budget=ledger.budget(None), timeout_s=0.1, backoff_s=0.01
        )
        model = LedgeredChatModel(inner, ledger, model="m")
        asked = [model.generate((Message(role="user", content=str(i)),), Sampling()) for i in range(calls)]
        async with asyncio.timeout(30):
            got = await asyncio.gather(*asked, return_exceptions=True)
        await model.aclose()
        ledger.close()
    assert len(server.bodies) == calls and all(isinstance(e, BudgetExceededError) for e in got)
