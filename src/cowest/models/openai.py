"""A black-box model behind any OpenAI-compatible endpoint: the usual strong model pi_s of the paper.

One request is ``POST {base_url}/chat/completions``. This module is the order of events around it: what is asked (dialect.py,
wire.py), when (limiter.py), how often and through what (exchange.py), and what each attempt may have cost.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from cowest.errors import BudgetExceededError, ConfigError, ModelCallError
from cowest.models.address import address_of, joined
from cowest.models.chunks import Chunk, text_of
from cowest.models.dialect import Dialect, Quirks, dialect_of
from cowest.models.exchange import PATH, Answered, Exchange, Patience, Written, persistently
from cowest.models.failures import ASKED_AGAIN, EndpointError
from cowest.models.limiter import Limiter, LimiterClosedError, Slot
from cowest.models.replies import Choice, Reply, read_reply, without_secrets
from cowest.models.secrets import Secrets
from cowest.models.stream import Assembler, rest_of
from cowest.models.tools import tool_fields
from cowest.models.transport import Timeouts, Transport
from cowest.models.untrusted import excerpt
from cowest.models.wire import request_body
from cowest.protocols import Budget
from cowest.types import Attempt, Completion, Message, Sampling, Tooled, Usage

logger = logging.getLogger(__name__)

UNUSABLE_ATTEMPTS = 2
_AUTO = Quirks()


@dataclass(slots=True)
class _Call:
    """One call on its way: what is asked, and what was tried. ``hear`` gets the text of a single sample while it comes."""

    messages: Sequence[Message]
    sampling: Sampling
    n: int
    prompt_bytes: int
    attempts: list[Attempt] = field(default_factory=list)
    reservation: int | None = None
    unusable: int = 0
    started: float | None = None
    hear: Callable[[str], None] | None = None
    heard: bool = False
    sent: tuple[float, float] = (0.0, 0.0)  # the last request's Unix time, and the clock's

    @property
    def most(self) -> Usage:
        """The most that one attempt can take: no token is shorter than a byte, and a message's frame takes a few."""
        prompt = self.prompt_bytes + 16 * len(self.messages)
        return Usage(calls=1, input_tokens=prompt, output_tokens=self.n * self.sampling.max_tokens)

    async def overheard(self, chunks: AsyncIterator[Chunk]) -> AsyncIterator[Chunk]:
        """The chunks, whose text is told as they pass."""
        async for chunk in chunks:
            yield chunk
            if self.hear is not None and (text := text_of(chunk)):
                self.heard = True
                self.hear(text)

    def ended(self, outcome: str, usage: Usage, maybe_paid: bool = False) -> None:
        """Enter the request that was sent last."""
        at, began = self.sent
        self.attempts.append(
            Attempt(
                at=at,
                latency_s=time.perf_counter() - began,
                outcome=outcome,
                usage=usage,
                maybe_paid=maybe_paid,
                reservation=self.reservation,
            )
        )


class OpenAIChatModel:
    """A :class:`cowest.protocols.ManyChatModel` over an OpenAI-compatible endpoint.

    Broken connections, time-outs and statuses 408, 409, 429 and 5xx are tried up to ``max_attempts`` times; an unusable
    answer twice; anything else once. The wait is random up to ``backoff_s * 2**n`` seconds (60 at most), plus the endpoint's
    ``Retry-After``, and never above ``max_wait_s``. An overloaded endpoint slows all calls down (see
    :class:`cowest.models.limiter.Limiter`). ``budget`` is asked before each attempt that may cost something. Raises
    :class:`ConfigError` for a value that cannot be right. ``${NAME}`` in ``base_url`` and ``extra`` is a variable's value, from the
    environment or a .env file here or in ``folder``.
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
        folder: Path = Path(),
    ) -> None:
        if not model.strip():
            raise ConfigError("model: must not be empty")
        _at_least(1, concurrency=concurrency, max_attempts=max_attempts, samples_per_call=samples_per_call)
        _above_zero(timeout_s=timeout_s, connect_timeout_s=connect_timeout_s, stall_timeout_s=stall_timeout_s)
        _at_least(0, backoff_s=backoff_s, max_wait_s=max_wait_s)
        secrets = Secrets(api_key, folder)
        address = address_of(base_url, secrets)
        self._url, self._model, self._name = address.shown, model, name or model
        self._stream, self._samples_per_call = stream, samples_per_call
        self._extra = secrets.fill_all(extra or {})
        self._new_limiter: Callable[[], Limiter] = lambda: Limiter(
            concurrency, requests_per_minute, tokens_per_minute, max_wait_s
        )
        # With a budget only so many calls hold a part of it: a kill makes all that is held count as paid.
        self._new_gate: Callable[[], Limiter] = lambda: Limiter(2 * concurrency)
        transport = Transport(
            address.url, address.headers, Timeouts(timeout_s, connect_timeout_s, stall_timeout_s), ca_file
        )
        self._exchange = Exchange(
            self._name, transport, transport, dialect_of(model, quirks), self._new_limiter(), secrets
        )
        self._gate = self._new_gate()
        self._asleep: set[asyncio.Future[None]] = set()
        self._budget = budget
        self._patience = Patience(max_attempts, backoff_s, min(60.0, max_wait_s), max_wait_s)
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
        return self._exchange.limiter

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Ask once, with retries. ``latency_s`` holds retries, too.

        Raises :class:`ModelCallError` with kind ``connection``, ``dns``, ``tls``, ``timeout``, ``stalled``, ``truncated``,
        ``http_STATUS``, ``bad_response``, ``no_choices``, ``empty``, ``refusal``, ``content_filter``, ``server_error`` or
        ``stopped``; its message names the setting to look at and never holds the key. And BudgetExceededError.
        """
        return (await self._ask(messages, sampling, 1))[0]

    async def stream(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[str | Completion, None]:
        """See StreamingChatModel. What has begun is not tried again; an endpoint that does not stream gives one piece."""
        news: asyncio.Queue[str | None] = asyncio.Queue()  # as long as the text at most
        asked = asyncio.ensure_future(self._ask(messages, sampling, 1, news.put_nowait))
        asked.add_done_callback(lambda _: news.put_nowait(None))
        said = ""
        try:
            while (piece := await news.get()) is not None:
                said += piece
                yield piece
            (done,) = await asked
        finally:
            asked.cancel()  # of a reader that leaves: the connection is closed
        rest = rest_of(done.text, said)
        if rest is None:
            raise ModelCallError("bad_response", f"{self._name}: the text is not what was streamed", done.attempts)
        if rest:
            yield rest
        yield done

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
        several = min(self._samples_per_call, n) if self._exchange.dialect.several else 1
        return await self._ask(messages, sampling, several)

    def stop(self) -> None:
        """Begin nothing new: calls that wait end with kind ``stopped``; those under way go on."""
        self._stopped = True
        self.limiter.close()
        self._gate.close()
        for sleeper in self._asleep:
            if not sleeper.done():
                sleeper.set_result(None)

    async def aclose(self) -> None:
        """Close the connections. May be called twice; a later ``generate`` opens new ones."""
        await self._exchange.aclose()
        if self._stopped:
            self._stopped, self._exchange.limiter, self._gate = False, self._new_limiter(), self._new_gate()

    async def _ask(
        self, messages: Sequence[Message], sampling: Sampling, n: int, hear: Callable[[str], None] | None = None
    ) -> list[Completion]:
        call = _Call(messages, sampling, n, _prompt_bytes(messages, sampling), hear=hear)
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
            reply = await persistently(
                lambda: self._attempt(call),
                lambda error: self._hope(call, error),
                self._patience,
                sleep=self._sleep,
                before_sleep=self._log_retry,
            )
        except EndpointError as error:
            failure: CallFailure = self._report(error, call)
        except LimiterClosedError:
            failure = self._stop_of(call)
        except BudgetExceededError as error:
            failure = BudgetExceededError(str(error), call.attempts)
        else:
            return _completions(reply, call, time.perf_counter() - (call.started or 0.0))
        raise failure  # outside the except block: nothing raw stays chained to it

    async def _attempt(self, call: _Call) -> Reply:
        """One answer to a request."""
        # The budget before the slot: who waits for others' reservations must not keep their retries from a slot.
        if self._budget is not None and call.reservation is None:
            held = {a.reservation for a in call.attempts if a.reservation is not None}
            call.reservation = await self._budget.reserve(call.most, sorted(held))
        async with self.limiter.slot(call.most.input_tokens // 4 + call.most.output_tokens) as slot:
            call.started = call.started or time.perf_counter()
            reply = await self._asked(call, slot)
            slot.used(reply.usage.input_tokens + reply.usage.output_tokens)
        call.ended("ok", reply.usage)
        return without_secrets(reply, self._exchange.secrets)

    async def _asked(self, call: _Call, slot: Slot) -> Reply:
        limit: JsonValue = None
        stream = self._stream or call.hear is not None

        def write(dialect: Dialect) -> Written:
            nonlocal limit
            n = call.n if dialect.several else 1
            body = request_body(self._model, call.messages, call.sampling, dialect, self._extra, n)
            limit = body.get("max_completion_tokens", body.get("max_tokens"))
            if stream:
                body["stream"] = True
                if dialect.stream_usage:
                    body["stream_options"] = {"include_usage": True}
            call.sent = time.time(), time.perf_counter()
            return Written(_json(body), body, n)

        async def read(answer: Answered) -> Reply:
            most = limit if isinstance(limit, int) else None
            tool = call.sampling.tool if isinstance(call.sampling, Tooled) else None
            if answer.chunks is None:
                return read_reply(answer.body, call.prompt_bytes, most, tool)
            return (await Assembler().all(call.overheard(answer.chunks))).reply(call.prompt_bytes, most, tool)

        def failed(error: EndpointError) -> None:
            self._record(call, error)

        return await self._exchange.ask(write, read, slot, stream=stream, failed=failed)

    def _record(self, call: _Call, error: EndpointError) -> None:
        call.unusable += error.kind in ASKED_AGAIN
        call.ended(error.kind, error.usage, error.maybe_paid and not error.usage.calls)
        if error.maybe_paid or error.usage.calls:
            call.reservation = None  # it stays held for what this attempt may cost; the next one needs its own

    def _hope(self, call: _Call, error: Exception) -> float | None:
        """The wait that an endpoint asks for; None where another attempt would do no better."""
        if (
            not isinstance(error, EndpointError)
            or not error.retry
            or self._stopped
            or call.heard  # what was told cannot be taken back
            or call.unusable >= UNUSABLE_ATTEMPTS
        ):
            return None
        return error.retry_after_s or 0.0

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

    def _log_retry(self, error: Exception, number: int, seconds: float) -> None:
        kind = error.kind if isinstance(error, ModelCallError) else type(error).__name__
        logger.info("%s: %s; attempt %d follows in %.1f s", self._name, kind, number + 1, seconds)

    def _stop_of(self, call: _Call) -> ModelCallError:
        if call.reservation is not None and all(a.reservation != call.reservation for a in call.attempts):
            # Nothing was sent, and the budget has to hear so, or it would hold the reservation for good.
            call.attempts.append(
                Attempt(at=time.time(), latency_s=0.0, outcome="stopped", reservation=call.reservation)
            )
        return ModelCallError("stopped", f"{self._name}: stopped before the call was made", call.attempts)

    def _report(self, error: EndpointError, call: _Call) -> ModelCallError:
        said = excerpt(error.quote, self._exchange.secrets)
        tries = f" ({len(call.attempts)} attempts)" if len(call.attempts) > 1 else ""
        message = f"{self._name} at {joined(self._url, PATH)}: {error}{tries}" + (f": {said}" if said else "")
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


def _json(body: Mapping[str, JsonValue]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _prompt_bytes(messages: Sequence[Message], sampling: Sampling) -> int:
    """Of all that is billed as prompt: the contents, a schema, and a tool with the frames of its calls."""
    schema = 0 if sampling.json_schema is None else len(_json(sampling.json_schema))
    if isinstance(sampling, Tooled):
        turns = 1 + sum(m.role == "assistant" for m in messages)
        schema += turns * len(_json(tool_fields(sampling.tool, sampling.may_call)))
    return schema + sum(len(m.content.encode("utf-8", "replace")) for m in messages)


def _completions(reply: Reply, call: _Call, latency_s: float) -> list[Completion]:
    """A reply's answers, each with its share of what they took: the prompt on the first, the answer by length."""
    choices = reply.choices[: call.n]
    shares = _shares(reply.usage, choices)
    return [
        Completion(
            text=choice.text,
            thinking=choice.thinking,
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
