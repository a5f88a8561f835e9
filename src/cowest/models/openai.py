"""A black-box model behind any OpenAI-compatible endpoint: the usual strong model pi_s of the paper.

One request is ``POST {base_url}/chat/completions``. This module is the order of events around it: what is asked (dialect.py,
wire.py), when (limiter.py), how often (tenacity), through what (transport.py), and what each attempt may have cost.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from cowest.errors import BudgetExceededError, ConfigError, ModelCallError
from cowest.models.dialect import Dialect, Quirks, dialect_of, learn
from cowest.models.limiter import Limiter, LimiterClosedError, Slot, parse_retry_after
from cowest.models.stream import bounded, read_stream
from cowest.models.transport import HttpReply, Timeouts, Transport, TransportError
from cowest.models.wire import (
    ASKED_AGAIN,
    Choice,
    EndpointError,
    Reply,
    check_base_url,
    check_status,
    excerpt,
    read_reply,
    rejected_field,
    request_body,
    without_secret,
)
from cowest.protocols import Budget
from cowest.types import Attempt, Completion, Message, Sampling, Usage

logger = logging.getLogger(__name__)

UNUSABLE_ATTEMPTS = 2
PATH = "chat/completions"
_AUTO = Quirks()


@dataclass(slots=True)
class _Call:
    """One call on its way: what is asked, and what was tried."""

    messages: Sequence[Message]
    sampling: Sampling
    n: int
    prompt_bytes: int
    attempts: list[Attempt] = field(default_factory=list)
    reservation: int | None = None
    unusable: int = 0
    started: float | None = None

    @property
    def most(self) -> Usage:
        """The most that one attempt can take: no token is shorter than a byte, and a message's frame takes a few."""
        prompt = self.prompt_bytes + 16 * len(self.messages)
        return Usage(calls=1, input_tokens=prompt, output_tokens=self.n * self.sampling.max_tokens)


class OpenAIChatModel:
    """A :class:`cowest.protocols.ManyChatModel` over an OpenAI-compatible endpoint.

    Broken connections, time-outs and statuses 408, 409, 429 and 5xx are tried up to ``max_attempts`` times; an unusable
    answer twice; anything else once. The wait is random up to ``backoff_s * 2**n`` seconds (60 at most), plus the endpoint's
    ``Retry-After``, and never above ``max_wait_s``. An overloaded endpoint slows all calls down (see
    :class:`cowest.models.limiter.Limiter`). ``budget`` is asked before each attempt that may cost something. Raises
    :class:`ConfigError` for a value that cannot be right.
    """

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key: str | None,
        concurrency: int = 16,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        timeout_s: float = 120,
        connect_timeout_s: float = 10,
        stall_timeout_s: float = 60,
        max_attempts: int = 6,
        stream: bool = False,
        quirks: Quirks = _AUTO,
        samples_per_call: int = 1,
        extra: Mapping[str, JsonValue] | None = None,
        ca_file: Path | None = None,
        budget: Budget | None = None,
        name: str | None = None,
        backoff_s: float = 1.0,
        max_wait_s: float = 300.0,
    ) -> None:
        if not model.strip():
            raise ConfigError("model: must not be empty")
        if api_key is not None and not (api_key and all("!" <= c <= "~" for c in api_key)):
            raise ConfigError("api_key_env: the key is empty or holds blanks or characters that no key has")
        _at_least(1, concurrency=concurrency, max_attempts=max_attempts, samples_per_call=samples_per_call)
        _above_zero(timeout_s=timeout_s, connect_timeout_s=connect_timeout_s, stall_timeout_s=stall_timeout_s)
        _at_least(0, backoff_s=backoff_s, max_wait_s=max_wait_s)
        self._url = check_base_url(base_url)
        self._model, self._api_key, self._name = model, api_key, name or model
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._transport = Transport(
            self._url, headers, Timeouts(timeout_s, connect_timeout_s, stall_timeout_s), ca_file
        )
        self._new_limiter: Callable[[], Limiter] = lambda: Limiter(
            concurrency, requests_per_minute, tokens_per_minute, max_wait_s
        )
        # With a budget only so many calls hold a part of it: a kill makes all that is held count as paid.
        self._new_gate: Callable[[], Limiter] = lambda: Limiter(2 * concurrency)
        self._limiter, self._gate = self._new_limiter(), self._new_gate()
        self._asleep: set[asyncio.Future[None]] = set()
        self._dialect = dialect_of(model, quirks)
        self._stream, self._samples_per_call, self._extra = stream, samples_per_call, dict(extra or {})
        self._max_attempts, self._budget = max_attempts, budget
        self._jitter = wait_random_exponential(multiplier=backoff_s, max=min(60.0, max_wait_s))
        self._max_wait_s = max_wait_s
        self._stopped = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self._model!r}, url={self._url!r})"

    @property
    def name(self) -> str:
        """The name given, else the model's."""
        return self._name

    @property
    def many(self) -> bool:
        """Whether one request is to give several samples: as it was opened, whatever the endpoint then turns out to do."""
        return self._samples_per_call > 1

    @property
    def limiter(self) -> Limiter:
        """How much may be asked at once, at the moment."""
        return self._limiter

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Ask once, with retries. ``latency_s`` holds retries, too.

        Raises :class:`ModelCallError` with kind ``connection``, ``dns``, ``tls``, ``timeout``, ``stalled``, ``truncated``,
        ``http_STATUS``, ``bad_response``, ``no_choices``, ``empty``, ``refusal``, ``content_filter``, ``server_error`` or
        ``stopped``; its message names the setting to look at and never holds the key. And BudgetExceededError.
        """
        return (await self._ask(messages, sampling, 1))[0]

    async def generate_many(self, messages: Sequence[Message], sampling: Sampling, n: int) -> list[Completion]:
        """``n`` samples, ``samples_per_call`` of them a request. Prompt tokens are booked on the first sample of each request.

        The seed, where there is one, grows by one with each sample that a request before it gave.
        """
        found: list[Completion] = []
        while len(found) < n:
            seed = None if sampling.seed is None else sampling.seed + len(found)
            found += await self.sample(messages, sampling.model_copy(update={"seed": seed}), n - len(found))
        return found

    async def sample(self, messages: Sequence[Message], sampling: Sampling, n: int) -> list[Completion]:
        """As many of ``n`` samples as one request gives: at least one."""
        several = min(self._samples_per_call, n) if self._dialect.several else 1
        return await self._ask(messages, sampling, several)

    def stop(self) -> None:
        """Begin nothing new: calls that wait end with kind ``stopped``; those under way go on."""
        self._stopped = True
        self._limiter.close()
        self._gate.close()
        for sleeper in self._asleep:
            if not sleeper.done():
                sleeper.set_result(None)

    async def aclose(self) -> None:
        """Close the connections. May be called twice; a later ``generate`` opens new ones."""
        await self._transport.aclose()
        if self._stopped:
            self._stopped, self._limiter, self._gate = False, self._new_limiter(), self._new_gate()

    async def _ask(self, messages: Sequence[Message], sampling: Sampling, n: int) -> list[Completion]:
        call = _Call(messages, sampling, n, _prompt_bytes(messages, sampling))
        if self._budget is None:
            return await self._answered(call)
        try:
            async with self._gate.slot():
                return await self._answered(call)
        except LimiterClosedError:
            failure = self._stop_of(call)
        raise failure

    async def _answered(self, call: _Call) -> list[Completion]:
        """Try until there is an answer, or no hope of one."""
        try:
            reply = await self._persistently(call)
        except EndpointError as error:
            failure: CallFailure = self._report(error, call)
        except LimiterClosedError:
            failure = self._stop_of(call)
        except BudgetExceededError as error:
            failure = BudgetExceededError(str(error), call.attempts)
        else:
            return _completions(reply, call, time.perf_counter() - (call.started or 0.0))
        raise failure  # outside the except block: nothing raw stays chained to it

    async def _persistently(self, call: _Call) -> Reply:
        """Attempt until it succeeds or cannot. Most calls succeed at once, so only a failure sets tenacity up."""
        try:
            return await self._attempt(call)
        except EndpointError as error:
            first: list[EndpointError] = [error]

        async def attempt() -> Reply:
            if first:
                raise first.pop()  # tenacity's first attempt is the one that was made already
            return await self._attempt(call)

        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda e: isinstance(e, EndpointError) and e.retry and not self._stopped),
            wait=self._wait,
            stop=lambda state: call.unusable >= UNUSABLE_ATTEMPTS or state.attempt_number >= self._max_attempts,
            before_sleep=self._log_retry,
            sleep=self._sleep,
            reraise=True,
        )
        reply: Reply = await retrying(attempt)
        return reply

    async def _attempt(self, call: _Call) -> Reply:
        """One answer to a request; lessons that a 400 teaches cost nothing and are applied at once."""
        # The budget before the slot: who waits for others' reservations must not keep their retries from a slot.
        if self._budget is not None and call.reservation is None:
            held = {a.reservation for a in call.attempts if a.reservation is not None}
            call.reservation = await self._budget.reserve(call.most, sorted(held))
        async with self._limiter.slot(call.most.input_tokens // 4 + call.most.output_tokens) as slot:
            call.started = call.started or time.perf_counter()
            while True:
                used = self._dialect
                n = call.n if used.several else 1
                body = request_body(self._model, call.messages, call.sampling, used, self._extra, n)
                at, began = time.time(), time.perf_counter()
                try:
                    reply = await self._exchange(body, call, slot, n)
                except EndpointError as error:
                    self._record(call, error, at, time.perf_counter() - began)
                    if self._learn(error, body, used):
                        continue
                    raise
                self._limiter.succeeded()
                slot.used(reply.usage.input_tokens + reply.usage.output_tokens)
                call.attempts.append(
                    Attempt(
                        at=at,
                        latency_s=time.perf_counter() - began,
                        outcome="ok",
                        usage=reply.usage,
                        reservation=call.reservation,
                    )
                )
                return without_secret(reply, self._api_key)

    async def _exchange(self, body: dict[str, JsonValue], call: _Call, slot: Slot, n: int) -> Reply:
        """One request and its answer. Raises EndpointError."""
        try:
            if self._stream:
                return await self._streamed(body, call, slot, n)
            got = await self._transport.post(PATH, _json(body))
        except TransportError as error:
            failure = EndpointError(error.kind, str(error), retry=error.retry, quote=error.quote, maybe_paid=error.sent)
        else:
            self._heed(got.status, got.headers, slot)
            _check(got)
            return read_reply(got.body, call.prompt_bytes)
        raise failure

    async def _streamed(self, body: dict[str, JsonValue], call: _Call, slot: Slot, n: int) -> Reply:
        asked = body | {"stream": True}
        if self._dialect.stream_usage:
            asked["stream_options"] = {"include_usage": True}
        async with self._transport.stream(PATH, _json(asked)) as (status, headers, pieces):
            self._heed(status, headers, slot)
            kind = headers.get("Content-Type", "")
            if 200 <= status < 300 and "json" not in kind and "html" not in kind:
                return await read_stream(pieces, call.prompt_bytes, n)
            whole = b"".join([piece async for piece in bounded(pieces)])  # an error, or a server that does not stream
        _check(HttpReply(status, headers, whole))
        return read_reply(whole, call.prompt_bytes)

    def _heed(self, status: int, headers: Mapping[str, str], slot: Slot) -> None:
        self._limiter.note(headers)
        if status in (429, 503, 529):
            self._limiter.overloaded(slot, parse_retry_after(headers))

    def _record(self, call: _Call, error: EndpointError, at: float, latency_s: float) -> None:
        call.unusable += error.kind in ASKED_AGAIN
        call.attempts.append(
            Attempt(
                at=at,
                latency_s=latency_s,
                outcome=error.kind,
                usage=error.usage,
                maybe_paid=error.maybe_paid and not error.usage.calls,
                reservation=call.reservation,
            )
        )
        if error.maybe_paid or error.usage.calls:
            call.reservation = None  # it stays held for what this attempt may cost; the next one needs its own

    def _learn(self, error: EndpointError, body: Mapping[str, JsonValue], used: Dialect) -> bool:
        """Whether requests are now written otherwise than this one, which the endpoint rejected."""
        if error.kind not in ("http_400", "http_422"):
            return False
        if self._dialect != used:
            return True  # another call has learned meanwhile
        sent = {**body, "stream_options": True} if self._stream and used.stream_usage else body
        learned = learn(used, sent, error.quote, error.rejected)
        if learned is None:
            return False
        logger.info(
            "%s: the endpoint rejects a field; requests are written otherwise from now on: %s", self._name, learned
        )
        self._dialect = learned
        return True

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after_s if isinstance(error, EndpointError) else None
        return min(self._max_wait_s, self._jitter(state) + (asked or 0.0))

    async def _sleep(self, seconds: float) -> None:
        """Wait before another attempt, or until the model is stopped."""
        woken = asyncio.get_running_loop().create_future()
        self._asleep.add(woken)
        try:
            await asyncio.wait_for(woken, seconds)
        except TimeoutError:
            pass
        finally:
            self._asleep.discard(woken)

    def _log_retry(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        kind = error.kind if isinstance(error, ModelCallError) else type(error).__name__
        wait = state.next_action.sleep if state.next_action else 0.0
        logger.info("%s: %s; attempt %d follows in %.1f s", self._name, kind, state.attempt_number + 1, wait)

    def _stop_of(self, call: _Call) -> ModelCallError:
        if call.reservation is not None and all(a.reservation != call.reservation for a in call.attempts):
            # Nothing was sent, and the budget has to hear so, or it would hold the reservation for good.
            call.attempts.append(
                Attempt(at=time.time(), latency_s=0.0, outcome="stopped", reservation=call.reservation)
            )
        return ModelCallError("stopped", f"{self._name}: stopped before the call was made", call.attempts)

    def _report(self, error: EndpointError, call: _Call) -> ModelCallError:
        said = excerpt(error.quote, self._api_key)
        tries = f" ({len(call.attempts)} attempts)" if len(call.attempts) > 1 else ""
        message = f"{self._name} at {self._url}/{PATH}: {error}{tries}" + (f": {said}" if said else "")
        return ModelCallError(error.kind, message, call.attempts)


CallFailure = ModelCallError | BudgetExceededError


def _at_least(least: int, **settings: float) -> None:
    for name, number in settings.items():
        if not (math.isfinite(number) and number >= least):
            raise ConfigError(f"{name}: {number} must be at least {least}")


def _above_zero(**settings: float) -> None:
    for name, number in settings.items():
        if not (math.isfinite(number) and number > 0):
            raise ConfigError(f"{name}: {number} must be above 0")


def _check(reply: HttpReply) -> None:
    """Raise EndpointError for a status that is no success; a 400's ``param`` is kept, for what it teaches."""
    try:
        check_status(reply.status, reply.body, parse_retry_after(reply.headers), reply.headers.get("Location"))
    except EndpointError as error:
        error.rejected = rejected_field(reply.body)
        raise


def _json(body: Mapping[str, JsonValue]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _prompt_bytes(messages: Sequence[Message], sampling: Sampling) -> int:
    """Of all that is billed as prompt: the contents, and a schema."""
    schema = 0 if sampling.json_schema is None else len(_json(sampling.json_schema))
    return schema + sum(len(m.content.encode("utf-8", "replace")) for m in messages)


def _completions(reply: Reply, call: _Call, latency_s: float) -> list[Completion]:
    """A reply's answers, each with its share of what they took: the prompt on the first, the answer by length."""
    choices = reply.choices[: call.n]
    shares = _shares(reply.usage, choices)
    return [
        Completion(
            text=choice.text,
            finish_reason=choice.finish_reason,
            usage=usage,
            latency_s=latency_s,
            logprobs=choice.logprobs,
            attempts=tuple(call.attempts) if index == 0 else (),
        )
        for index, (choice, usage) in enumerate(zip(choices, shares, strict=True))
    ]


def _shares(usage: Usage, choices: Sequence[Choice]) -> list[Usage]:
    if len(choices) == 1:
        return [usage]
    lengths = [len(c.text) for c in choices]
    tokens = [usage.output_tokens * length // sum(lengths) for length in lengths]
    tokens[0] += usage.output_tokens - sum(tokens)  # what rounding left
    first = usage.model_copy(update={"output_tokens": tokens[0]})
    return [first, *(Usage(output_tokens=t) for t in tokens[1:])]
