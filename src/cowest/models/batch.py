"""A provider's batch API (OpenAI's files and batches): answers within a day, at a lower price, for calls that nobody waits for.

Calls that come together become one job: an input file is uploaded, a batch is made of it, looked at now and then, and its
output read. The ledger keeps where each job stands, so that a process that was killed is continued by the next one:

    creating    the input is uploaded; the batch may or may not exist (its ``metadata.cowest`` tells)
    running     the provider works on it; a call whose key is in it waits for it and is not sent again
    collected   its answers are in the ledger
    lost        the provider failed or dropped it; what it did not answer is asked again
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import aiohttp
from pydantic import JsonValue

from cowest.errors import ModelCallError
from cowest.ledger import BatchEntry, Call, Ledger, call_of
from cowest.models.dialect import Dialect
from cowest.models.transport import HttpReply, Transport, TransportError
from cowest.models.wire import EndpointError, check_status, excerpt, field, read_payload, request_body
from cowest.prices import Price
from cowest.types import Attempt, Completion, Message, Sampling, Usage

logger = logging.getLogger(__name__)

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
GATHER_S = 0.2
"""So long may no further call come before those that are there become a batch."""
LOST_AFTER = 5
"""Looks in a row at a job that the provider does not know any more."""


@dataclass(slots=True)
class _Waiting:
    """A call that waits for a batch."""

    call: Call
    body: dict[str, JsonValue]
    future: asyncio.Future[Completion]


class BatchChatModel:
    """A :class:`cowest.protocols.ChatModel` through the batch API, under a LedgeredChatModel with the same ledger and price.

    It enters its answers itself (``enters``): also those that nobody waits for any more. A call raises ModelCallError with the
    provider's reason, or ``batch_expired``, ``batch_failed`` or ``batch_cancelled``; the next run asks again. ``stop``
    leaves jobs running at the provider.
    """

    enters = True

    def __init__(
        self,
        transport: Transport,
        ledger: Ledger,
        *,
        model: str,
        dialect: Dialect,
        extra: Mapping[str, JsonValue] | None = None,
        price: Price | None = None,
        api_key: str | None = None,
        max_requests: int = 50_000,
        poll_s: float = 30.0,
        gather_s: float = GATHER_S,
    ) -> None:
        self._transport, self._ledger, self._model, self._dialect = transport, ledger, model, dialect
        self._extra, self._price, self._api_key = dict(extra or {}), price, api_key
        self._max_requests, self._poll_s, self._gather_s = max_requests, poll_s, gather_s
        self._bounded = ledger.budget(price) is not None
        self._gathered: dict[str, _Waiting] = {}
        self._sent: dict[str, _Waiting | None] = {}  # every key in a job under way, and who waits for it
        self._jobs: set[asyncio.Task[None]] = set()
        self._gathering: asyncio.Task[None] | None = None
        self._resumed: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Wait for the batch that holds this request; it is made of all that come within a moment."""
        if self._resumed is None:
            self._resumed = asyncio.ensure_future(self._resume())
        await asyncio.shield(self._resumed)
        call = call_of(self._model, messages, sampling, self._extra, self._price)
        body = request_body(self._model, messages, sampling, self._dialect, self._extra)
        waiting = _Waiting(call, body, asyncio.get_running_loop().create_future())
        if call.key in self._sent:
            self._sent[call.key] = waiting
        else:
            known = self._ledger.get(call.key)  # a job of an earlier process may just have brought it
            if known is not None:
                return known
            self._gathered[call.key] = waiting
            if self._gathering is None or self._gathering.done():
                self._gathering = asyncio.ensure_future(self._gather())
        return await waiting.future

    def stop(self) -> None:
        """Send nothing more. Jobs at the provider go on; the next run collects them."""
        tasks = [t for t in (self._gathering, *self._jobs) if t is not None and not t.done()]
        for task in tasks:
            task.cancel()
        if self._sent:
            logger.warning("%s: a batch goes on at the provider; run the same command to collect it", self._model)
        for waiting in (*self._gathered.values(), *self._sent.values()):
            if waiting is not None:
                _fail(waiting, ModelCallError("stopped", f"{self._model}: stopped before the batch ended"))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    # From calls to jobs

    async def _gather(self) -> None:
        """Make jobs of what has come, once nothing has come for a moment."""
        while self._gathered:
            before = -1
            while len(self._gathered) != before and len(self._gathered) < self._max_requests:
                before = len(self._gathered)
                await asyncio.sleep(self._gather_s)
            keys = list(self._gathered)[: self._max_requests]
            waiting = [self._gathered.pop(key) for key in keys]
            try:
                await self._submit(waiting)
            except (EndpointError, TransportError) as error:
                told = self._told(f"the batch could not be made: {error}", error.quote)
                for w in waiting:
                    await self._ledger.failed(w.call, error.kind, told, ())
                    _fail(w, ModelCallError(error.kind, told))
            except Exception as error:  # an empty budget, a full disk
                for w in waiting:
                    _fail(w, error)

    async def _submit(self, waiting: Sequence[_Waiting]) -> None:
        most = [w.call.most for w in waiting]
        held = await self._ledger.reserve(most, self._price, batch=True) if self._bounded else []
        tag, keys = uuid.uuid4().hex, tuple(w.call.key for w in waiting)
        lines = (
            {"custom_id": w.call.key, "method": "POST", "url": "/v1/chat/completions", "body": w.body} for w in waiting
        )
        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        form.add_field("file", content, filename=f"cowest-{tag}.jsonl", content_type="application/jsonl")
        try:
            uploaded = _object(await self._exchange("POST", "files", data=form))
        except (EndpointError, TransportError):
            await self._ledger.release(held)  # no batch was made of it
            raise
        entry = BatchEntry(
            id=tag,
            model=self._model,
            file_id=_text(uploaded, "id"),
            job=None,
            status="creating",
            keys=keys,
            held=tuple(held),
            created=time.time(),
        )
        await self._ledger.save_batch(entry)
        try:
            entry = await self._create(entry)
        except EndpointError as error:
            if not error.retry:  # surely not made; else the next process finds out
                await self._ledger.collected(entry.model_copy(update={"status": "lost"}), (), ())
            raise
        self._sent |= {w.call.key: w for w in waiting}
        self._follow(entry)

    async def _create(self, entry: BatchEntry) -> BatchEntry:
        asked: dict[str, JsonValue] = {
            "input_file_id": entry.file_id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"cowest": entry.id},
        }
        headers = {"Content-Type": "application/json"}
        made = _object(await self._exchange("POST", "batches", data=json.dumps(asked).encode(), headers=headers))
        running = entry.model_copy(update={"job": _text(made, "id"), "status": "running"})
        await self._ledger.save_batch(running)
        logger.info("%s: batch %s with %d requests", self._model, running.job, len(running.keys))
        return running

    async def _resume(self) -> None:
        """Take up the jobs that an earlier process left."""
        for entry in self._ledger.batches(self._model):
            if entry.status == "creating":
                entry = await self._adopt(entry)
            if entry.status == "running":
                self._sent |= dict.fromkeys(entry.keys)
                self._follow(entry)

    async def _adopt(self, entry: BatchEntry) -> BatchEntry:
        """Find out whether a batch was made in the moment before its maker died."""
        listed = field(_object(await self._exchange("GET", "batches?limit=100")), "data")
        for job in listed if isinstance(listed, list) else ():
            if field(field(job, "metadata"), "cowest") == entry.id:
                found = entry.model_copy(update={"job": _text(job, "id"), "status": "running"})
                await self._ledger.save_batch(found)
                return found
        lost = entry.model_copy(update={"status": "lost"})
        await self._ledger.save_batch(lost)
        return lost

    # From jobs to answers

    def _follow(self, entry: BatchEntry) -> None:
        task = asyncio.ensure_future(self._watch(entry))
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _watch(self, entry: BatchEntry) -> None:
        try:
            job = await self._ended(entry)
            if job is None:
                reason = "the provider does not know the batch any more"
                await self._enter(
                    entry.model_copy(update={"status": "lost"}), {}, "batch_failed", self._told(reason, "")
                )
                return
            lines = await self._download(job)
            status = _text(job, "status")
            kind = "batch_failed" if status == "completed" else f"batch_{status}"
            told = self._told(f"batch {entry.job} ended as {status}", _errors(job))
            await self._enter(entry.model_copy(update={"status": "collected"}), lines, kind, told)
        except Exception as error:  # whoever waits must hear of it
            told = self._told(f"batch {entry.job}: {type(error).__name__}", str(error))
            for waiting in self._waiters(entry.keys).values():
                _fail(waiting, ModelCallError("batch_failed", told))
            raise

    async def _ended(self, entry: BatchEntry) -> Mapping[str, object] | None:
        """Look at a job until it has ended; None for one that is not there. Trouble on the way loses no job."""
        missing = 0
        while True:
            try:
                job = _object(await self._exchange("GET", f"batches/{entry.job}"))
                missing = 0
                if field(job, "status") in ENDED:
                    return job
            except TransportError:
                pass
            except EndpointError as error:
                missing = missing + 1 if error.kind == "http_404" else 0
                if missing >= LOST_AFTER:
                    return None
                if not error.retry and error.kind != "http_404":
                    raise
            await asyncio.sleep(self._poll_s * random.uniform(0.9, 1.1))

    async def _download(self, job: Mapping[str, object]) -> dict[str, str]:
        """The lines of the output and error files by their key, whatever their order."""
        lines: dict[str, str] = {}
        for name in ("output_file_id", "error_file_id"):
            file = field(job, name)
            if not isinstance(file, str) or not file:
                continue
            reply = await self._persistent("GET", f"files/{file}/content")
            for raw in reply.body.decode("utf-8", "replace").splitlines():
                key = field(_loads(raw), "custom_id")
                if isinstance(key, str):
                    lines.setdefault(key, raw)
        return lines

    async def _enter(self, entry: BatchEntry, lines: Mapping[str, str], kind: str, told: str) -> None:
        """Enter what a batch brought, all together, then tell those who wait.

        ``kind`` and ``told`` are for the requests that it did not answer.
        """
        waiters = self._waiters(entry.keys)
        answers: list[tuple[Call, Completion]] = []
        failures: list[tuple[Call, ModelCallError]] = []
        for key in entry.keys:
            waiting = waiters.get(key)
            unknown = Call(key, self._model, json.dumps({"batch": entry.job}), Usage(), self._price)
            call = waiting.call if waiting else unknown
            try:
                if key in lines:
                    answers.append((call, _answer(lines[key], call)))
                else:
                    failures.append((call, ModelCallError(kind, told)))
            except EndpointError as error:
                paid = Attempt(at=time.time(), latency_s=0.0, outcome=error.kind, usage=error.usage)
                failures.append((call, ModelCallError(error.kind, self._told(str(error), error.quote), (paid,))))
        entered = await self._ledger.collected(entry, answers, failures)
        for (call, _), completion in zip(answers, entered, strict=True):
            if (waiting := waiters.get(call.key)) is not None and not waiting.future.done():
                waiting.future.set_result(completion)
        for call, failure in failures:
            if (waiting := waiters.get(call.key)) is not None:
                _fail(waiting, failure)

    def _waiters(self, keys: Sequence[str]) -> dict[str, _Waiting]:
        found = {key: self._sent.pop(key, None) for key in keys}
        return {key: waiting for key, waiting in found.items() if waiting is not None}

    # One exchange

    async def _exchange(
        self,
        method: str,
        path: str,
        *,
        data: bytes | aiohttp.FormData | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> HttpReply:
        reply = await self._transport.request(method, path, data=data, headers=headers)
        check_status(reply.status, reply.body, None, reply.headers.get("Location"))
        return reply

    async def _persistent(self, method: str, path: str) -> HttpReply:
        """An exchange that loses nothing when it is repeated, repeated until it succeeds or cannot."""
        while True:
            try:
                return await self._exchange(method, path)
            except TransportError:
                pass
            except EndpointError as error:
                if not error.retry:
                    raise
            await asyncio.sleep(self._poll_s)

    def _told(self, message: str, quote: str) -> str:
        said = excerpt(quote, self._api_key)
        return f"{self._model}: {message}" + (f": {said}" if said else "")


def _answer(raw: str, call: Call) -> Completion:
    """The completion in a line of the output file. Raises EndpointError for a request that failed."""
    line = _loads(raw)
    response, error = field(line, "response"), field(line, "error")
    if not isinstance(response, dict):
        code, message = field(error, "code"), field(error, "message")
        kind = code if isinstance(code, str) and code.isidentifier() else "failed"
        kind = kind if kind.startswith("batch_") else f"batch_{kind}"
        raise EndpointError(kind, "the batch did not answer the request", retry=True, quote=str(message or raw))
    status = response.get("status_code")
    check_status(status if isinstance(status, int) else 500, json.dumps(response.get("body")).encode())
    reply = read_payload(response.get("body"), raw, call.most.input_tokens)
    first = reply.choices[0]
    attempt = Attempt(at=time.time(), latency_s=0.0, outcome="ok", usage=reply.usage)
    return Completion(
        text=first.text,
        finish_reason=first.finish_reason,
        usage=reply.usage,
        logprobs=first.logprobs,
        attempts=(attempt,),
    )


def _loads(raw: str) -> object:
    try:
        found: object = json.loads(raw)
    except ValueError:
        return None
    return found


def _fail(waiting: _Waiting, error: Exception) -> None:
    if not waiting.future.done():
        waiting.future.set_exception(error)


def _errors(job: Mapping[str, object]) -> str:
    """What a failed job says of its input, line by line."""
    found = field(field(job, "errors"), "data")
    told = [
        f"line {field(e, 'line')}: {field(e, 'message')}" if field(e, "line") else str(field(e, "message"))
        for e in (found if isinstance(found, list) else ())
    ]
    return "; ".join(told)


def _object(reply: HttpReply) -> Mapping[str, object]:
    try:
        found: object = json.loads(reply.body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise EndpointError(
            "bad_response",
            "the batch API answered no JSON object",
            retry=True,
            quote=reply.body.decode("utf-8", "replace"),
        )
    return found


def _text(found: object, key: str) -> str:
    value = field(found, key)
    if not isinstance(value, str) or not value:
        raise EndpointError("bad_response", f"the batch API's answer has no {key}", retry=True, quote=str(found))
    return value
