"""A paid model with the ledger before it: nothing is paid for twice, and nothing is used before it is entered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

from pydantic import JsonValue

from cowest.errors import BudgetExceededError, ModelCallError
from cowest.ledger import Call, Ledger, call_of
from cowest.prices import Price
from cowest.protocols import ChatModel
from cowest.types import Completion, Message, Sampling


@runtime_checkable
class Stoppable(Protocol):
    """A model that can be told to begin nothing new, while what is under way goes on."""

    def stop(self) -> None: ...


@runtime_checkable
class Sampler(Protocol):
    """A model that can give several samples in one request."""

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


class LedgeredChatModel:
    """A :class:`cowest.protocols.ManyChatModel` around any model that costs something.

    ``cache``: ``read`` answers from the ledger what is in it; ``refresh`` asks everything anew once, and then reads what it got;
    ``off`` always asks. Every call is entered in each mode. Equal requests under way share one call, except with ``off``.
    A paid call runs in a task of its own: a caller that is cancelled does not cancel it, and ``aclose`` waits for it, up
    to ``drain_s`` seconds. ``at_risk`` bounds how many calls are under way or answered and not yet entered: what a kill
    can lose.
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
        self._places = asyncio.Semaphore(at_risk) if at_risk else contextlib.nullcontext()
        self._under_way: dict[str, asyncio.Task[list[Completion]]] = {}
        self._tasks: set[asyncio.Task[list[Completion]]] = set()
        self._fresh: set[str] = set()
        self._entering = inner if isinstance(inner, EntersItself) else None

    @property
    def name(self) -> str:
        """The model's name."""
        return self._inner.name

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """One answer. Raises ModelCallError, BudgetExceededError, and DataError when the ledger cannot be written."""
        call = self._call(messages, sampling)
        known = self._known(call.key)
        if known is not None:
            return known

        async def buy() -> list[Completion]:
            return [await self._buy(call, messages, sampling)]

        return (await self._shared(call.key, buy))[0]

    async def generate_many(self, messages: Sequence[Message], sampling: Sampling, n: int) -> list[Completion]:
        """``n`` samples; only those that the ledger does not have are bought, together where the model can do that."""
        keys = [self._call(messages, sampling, index).key for index in range(n)]
        found = {i: known for i, key in enumerate(keys) if (known := self._known(key)) is not None}
        missing = [i for i in range(n) if i not in found]
        if missing:

            async def buy() -> list[Completion]:
                return await self._buy_many(missing, messages, sampling)

            bought = await self._shared(" ".join(keys[i] for i in missing), buy)
            found |= dict(zip(missing, bought, strict=True))
        return [found[i] for i in range(n)]

    async def aclose(self) -> None:
        """Begin nothing new, wait for what is under way, and close the model. May be called twice."""
        if isinstance(self._inner, Stoppable):
            self._inner.stop()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._drain_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._inner.aclose()

    def _known(self, key: str) -> Completion | None:
        if self._cache == "off" or (self._cache == "refresh" and key not in self._fresh):
            return None
        return self._ledger.get(key)

    async def _shared(self, key: str, buy: Callable[[], Awaitable[list[Completion]]]) -> list[Completion]:
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.ensure_future(buy())
            self._tasks.add(task)
            if self._cache != "off":
                self._under_way[key] = task

            def done(task: asyncio.Task[list[Completion]]) -> None:
                self._tasks.discard(task)
                self._under_way.pop(key, None)
                if not task.cancelled():
                    task.exception()  # nobody may be waiting for it any more; it is in the ledger

            task.add_done_callback(done)
        return await asyncio.shield(task)

    async def _buy(self, call: Call, messages: Sequence[Message], sampling: Sampling) -> Completion:
        async with self._places:
            try:
                if self._entering is not None:
                    completion = await self._entering.ask(call, messages, sampling)
                    self._fresh.add(call.key)
                    return completion
                completion = await self._inner.generate(messages, sampling)
            except (ModelCallError, BudgetExceededError) as error:
                await self._enter_failure(call, error)
                raise
            return await self._enter(call, completion)

    async def _buy_many(
        self, missing: Sequence[int], messages: Sequence[Message], sampling: Sampling
    ) -> list[Completion]:
        """Buy the samples with these indexes, together where the model can do that."""
        calls = [self._call(messages, sampling, index) for index in missing]
        if not isinstance(self._inner, Sampler):
            each = zip(missing, calls, strict=True)
            return list(await asyncio.gather(*(self._buy(call, messages, _nth(sampling, i)) for i, call in each)))
        bought: list[Completion] = []
        while len(bought) < len(missing):
            # The seed of the first sample that is missing: the rest of a series does not repeat its beginning.
            rest = missing[len(bought) :]
            async with self._places:
                try:
                    some = await self._inner.sample(messages, _nth(sampling, rest[0]), len(rest))
                except (ModelCallError, BudgetExceededError) as error:
                    await self._enter_failure(self._call(messages, sampling, rest[0], len(rest)), error)
                    raise
                # Entered before more is bought: what is held for them is free then, and a stop loses none.
                entered = zip(calls[len(bought) :], some, strict=False)
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
