"""A paid model with the ledger before it: nothing is paid for twice, and nothing is used before it is entered."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast, runtime_checkable

from pydantic import JsonValue

from cowest.errors import BudgetExceededError, ModelCallError
from cowest.ledger.ledger import Call, Ledger, call_of, purpose
from cowest.ledger.prices import Price
from cowest.protocols import ChatModel
from cowest.types import Completion, Message, Sampling


@runtime_checkable
class Stoppable(Protocol):
    """A model that can be told to begin nothing new, while what is under way goes on."""

    def stop(self) -> None: ...


@runtime_checkable
class Sampler(Protocol):
    """A model that can give several samples in one request, where ``many`` says so."""

    @property
    def many(self) -> bool: ...

    async def sample(self, messages: Sequence[Message], sampling: Sampling, n: int) -> Sequence[Completion]:
        """As many of ``n`` samples as one request gives: at least one."""
        ...


@runtime_checkable
class EntersItself(Protocol):
    """A model that enters its answers and failures in the ledger itself, as a batch does."""

    enters: bool

    async def ask(self, call: Call, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Answer, and enter it under the call's key."""
        ...


@dataclass(slots=True)
class _Purchase:
    """Samples of one request that are to be paid for, and the callers that wait for them: each has a future of its own."""

    key: str
    calls: Sequence[Call]
    indexes: Sequence[int]
    messages: Sequence[Message]
    sampling: Sampling
    what_for: str
    waiters: list[asyncio.Future[list[Completion]]]


class LedgeredChatModel:
    """A :class:`cowest.protocols.ManyChatModel` around any model that costs something.

    ``cache``: ``read`` answers from the ledger what is in it; ``refresh`` asks everything anew once, and then reads what it got;
    ``off`` always asks. Every call is entered in each mode. Equal requests under way share one call, except with ``off``.
    Paid calls are made by tasks of this object: a caller that is cancelled does not cancel its call, and ``aclose`` waits for
    it, up to ``drain_s`` seconds. ``at_risk`` bounds how many calls are under way or answered and not yet entered: what a
    kill can lose.
    """

    def __init__(
        self,
        inner: ChatModel,
        ledger: Ledger,
        *,
        model: str,
        cache: Literal["read", "refresh", "off"] = "read",
        price: Price | None = None,
        extra: Mapping[str, JsonValue] | None = None,
        at_risk: int | None = None,
        drain_s: float = 60.0,
    ) -> None:
        self._inner, self._ledger, self._model, self._cache = inner, ledger, model, cache
        self._price, self._extra, self._drain_s = price, dict(extra or {}), drain_s
        self._most_buyers = at_risk or math.inf
        self._waiting: deque[_Purchase] = deque()
        self._buyers: set[asyncio.Task[None]] = set()
        self._under_way: dict[str, _Purchase] = {}
        self._fresh: set[str] = set()
        self._entering = inner if isinstance(inner, EntersItself) else None

    @property
    def name(self) -> str:
        """The model's name."""
        return self._inner.name

    @property
    def many(self) -> bool:
        """Whether one request of the inner model gives several samples: the ledger adds nothing to what it can."""
        return isinstance(self._inner, Sampler) and self._inner.many

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """One answer. Raises ModelCallError, BudgetExceededError, and DataError when the ledger cannot be written."""
        call = self._call(messages, sampling)
        known = self._known(call.key)
        if known is not None:
            return known
        return (await self._bought([call], (0,), messages, sampling))[0]

    async def generate_many(self, messages: Sequence[Message], sampling: Sampling, n: int) -> list[Completion]:
        """``n`` samples; only those that the ledger does not have are bought, together where the model can do that."""
        calls = [self._call(messages, sampling, index) for index in range(n)]
        found = {i: known for i, call in enumerate(calls) if (known := self._known(call.key)) is not None}
        missing = [i for i in range(n) if i not in found]
        together = [missing] if isinstance(self._inner, Sampler) and missing else [[i] for i in missing]
        bought = await asyncio.gather(
            *(self._bought([calls[i] for i in some], some, messages, sampling) for some in together)
        )
        for some, answers in zip(together, bought, strict=True):
            found |= dict(zip(some, answers, strict=True))
        return [found[i] for i in range(n)]

    async def aclose(self) -> None:
        """Begin nothing new, wait for what is under way, and close the model. May be called twice."""
        if isinstance(self._inner, Stoppable):
            self._inner.stop()
        if self._buyers:
            await asyncio.wait(self._buyers, timeout=self._drain_s)
        for buyer in self._buyers:
            buyer.cancel()
        await asyncio.gather(*self._buyers, return_exceptions=True)
        self._buyers.clear()  # one that was cancelled before its first step has not taken itself out
        while self._waiting:
            self._tell(self._waiting.popleft(), None)
        await self._inner.aclose()

    def _known(self, key: str) -> Completion | None:
        if self._cache == "off" or (self._cache == "refresh" and key not in self._fresh):
            return None
        return self._ledger.get(key)

    async def _bought(
        self, calls: Sequence[Call], indexes: Sequence[int], messages: Sequence[Message], sampling: Sampling
    ) -> list[Completion]:
        """The answers to samples of one request, which are bought unless that is under way already."""
        waiter: asyncio.Future[list[Completion]] = asyncio.get_running_loop().create_future()
        key = " ".join(call.key for call in calls)
        wanted = self._under_way.get(key)
        if wanted is not None:
            wanted.waiters.append(waiter)
        else:
            wanted = _Purchase(key, calls, indexes, messages, sampling, purpose.get(), [waiter])
            if self._cache != "off":
                self._under_way[key] = wanted
            self._waiting.append(wanted)
            if len(self._buyers) < self._most_buyers:
                self._buyers.add(asyncio.ensure_future(self._go_on_buying()))
        return await waiter

    async def _go_on_buying(self) -> None:
        """Buy what waits, one after the other: at thousands of calls a second, a task for each would be felt."""
        try:
            while self._waiting:
                wanted = self._waiting.popleft()
                purpose.set(wanted.what_for)
                try:
                    with self._ledger.call():
                        answers = await self._buy(wanted)
                except asyncio.CancelledError:
                    self._tell(wanted, None)
                    raise
                except Exception as error:  # for those who wait for it
                    self._tell(wanted, error)
                else:
                    self._tell(wanted, answers)
        finally:
            # Here and now, not in a callback: a caller who was just told may ask again before that, and must find room.
            self._buyers.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    def _tell(self, wanted: _Purchase, outcome: list[Completion] | Exception | None) -> None:
        """Hand over the outcome, None for none, to the callers that have not gone away."""
        if self._under_way.get(wanted.key) is wanted:
            del self._under_way[wanted.key]
        for waiter in wanted.waiters:
            if waiter.done():
                continue
            if outcome is None:
                waiter.cancel()
            elif isinstance(outcome, Exception):
                waiter.set_exception(outcome)
            else:
                waiter.set_result(outcome)

    async def _buy(self, wanted: _Purchase) -> list[Completion]:
        """Buy these samples, together where the model can do that."""
        bought: list[Completion] = []
        while len(bought) < len(wanted.calls):
            rest = wanted.indexes[len(bought) :]
            # The seed of the first sample that is missing: the rest of a series does not repeat its beginning.
            sampling, calls = _nth(wanted.sampling, rest[0]), wanted.calls[len(bought) :]
            try:
                if self._entering is not None:
                    bought.append(await self._entering.ask(calls[0], wanted.messages, sampling))
                    self._fresh.add(calls[0].key)
                    continue
                if len(rest) > 1 and isinstance(self._inner, Sampler):
                    some = await self._inner.sample(wanted.messages, sampling, len(rest))
                else:
                    some = [await self._inner.generate(wanted.messages, sampling)]
            except (ModelCallError, BudgetExceededError) as error:
                failed = (
                    calls[0] if len(rest) == 1 else self._call(wanted.messages, wanted.sampling, rest[0], len(rest))
                )
                await self._enter_failure(failed, error)
                raise
            # Entered before more is bought: what is held for them is free then, and a stop loses none.
            if len(some) == 1:
                bought.append(await self._enter(calls[0], some[0]))
            else:
                entered = zip(calls, some, strict=False)
                bought += await asyncio.gather(*(self._enter(call, completion) for call, completion in entered))
        return bought

    async def _enter(self, call: Call, completion: Completion) -> Completion:
        entered = await self._ledger.answered(call, completion)
        if self._cache == "refresh":
            self._fresh.add(call.key)
        return entered

    async def _enter_failure(self, call: Call, error: ModelCallError | BudgetExceededError) -> None:
        """Enter what was tried; a call that was never made leaves no trace, and a batch enters its own."""
        if self._entering is not None or (
            not error.attempts and (isinstance(error, BudgetExceededError) or error.kind == "stopped")
        ):
            return
        kind = error.kind if isinstance(error, ModelCallError) else "budget"
        await self._ledger.failed(call, kind, str(error), error.attempts)

    def _call(self, messages: Sequence[Message], sampling: Sampling, index: int = 0, n: int = 1) -> Call:
        return call_of(self._model, messages, sampling, self._extra, self._price, index, n)


def _nth(sampling: Sampling, index: int) -> Sampling:
    return (
        sampling if sampling.seed is None or not index else sampling.model_copy(update={"seed": sampling.seed + index})
    )
