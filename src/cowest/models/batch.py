"""A provider's batch API (OpenAI's files and batches): answers within a day, at a lower price, for calls that nobody waits for.

Calls that come together become one job: an input file is uploaded, a batch is made of it, looked at now and then, and its
output read. The ledger keeps where each job stands, so that a process that was killed is continued by the next one:

    creating    the input is uploaded; the batch may or may not exist (its ``metadata.cowest`` tells)
    running     the provider works on it; a call whose key is in it waits for it and is not sent again
    collected   its answers are in the ledger
    lost        it was never made, or the provider dropped it; what it did not answer is asked again
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from cowest.errors import CowestError, ModelCallError
from cowest.ledger.ledger import BatchEntry, Call, Ledger, call_of, process_identity
from cowest.ledger.prices import Price
from cowest.models.batch_api import BatchApi, MaybeMadeError
from cowest.models.batch_wire import answer_bytes, input_line, problems, read_answer, text_of
from cowest.models.dialect import Dialect
from cowest.models.failures import EndpointError
from cowest.models.secrets import Secrets
from cowest.models.transport import MAX_BODY, Transport, TransportError
from cowest.models.untrusted import excerpt
from cowest.models.wire import request_body
from cowest.types import Attempt, Completion, Message, Sampling, Usage

logger = logging.getLogger(__name__)

GATHER_S: Final = 0.2
"""So long may no further call come before those that are there become a batch."""


@dataclass(slots=True)
class _Waiting:
    """A call that waits for a batch: its line of the input file, and about the most that the answer's line will take."""

    call: Call
    line: bytes
    answer_bytes: int
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
        secrets: Secrets | None = None,
        max_requests: int = 50_000,
        max_bytes: int = MAX_BODY,
        poll_s: float = 30.0,
        gather_s: float = GATHER_S,
    ) -> None:
        self._secrets = secrets or Secrets()
        self._api = BatchApi(transport, self._secrets, poll_s)
        self._ledger, self._model, self._dialect = ledger, model, dialect
        self._extra, self._price = dict(extra or {}), price
        self._sent_extra = self._secrets.fill_all(self._extra)
        self._max_requests, self._max_bytes, self._gather_s = max_requests, max_bytes, gather_s
        ledger.budget(price)  # raises where it could not be kept
        self._gathered: list[_Waiting] = []
        self._waiting: dict[str, _Waiting] = {}  # by key: gathered, or in a job
        self._under_way: dict[str, BatchEntry] = {}  # jobs that are followed, by our id
        self._sent: set[str] = set()  # the keys in them
        self._brought: set[str] = set()  # keys whose answers came when nobody waited for them
        self._unsure: set[str] = set()  # ids of jobs that this object gave up making, and that may exist
        self._jobs: set[asyncio.Task[None]] = set()
        self._gathering: asyncio.Task[None] | None = None
        self._resumed: asyncio.Task[None] | None = None
        self._stopped = False

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Wait for the batch that holds this request; it is made of all that come within a moment."""
        call = call_of(self._model, messages, sampling, self._extra, self._price)
        return await self.ask(call, messages, sampling)

    async def ask(self, call: Call, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """The same for a call that is known by another key, such as one of several samples. Equal keys share an answer."""
        await self._ready()
        if call.key in self._brought:
            self._brought.discard(call.key)
            known = self._ledger.get(call.key)
            if known is not None:
                return known
        waiting = self._waiting.get(call.key)
        if waiting is None:
            body = request_body(self._model, messages, sampling, self._dialect, self._sent_extra)
            line = input_line(call.key, body)
            future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
            # Its callers may have gone away, and then nobody looks at an exception.
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
            waiting = self._waiting[call.key] = _Waiting(call, line, answer_bytes(sampling), future)
            if call.key not in self._sent:
                self._gathered.append(waiting)
                if self._gathering is None or self._gathering.done():
                    self._gathering = asyncio.ensure_future(self._gather())
        return await asyncio.shield(waiting.future)

    def stop(self) -> None:
        """Send nothing more. Jobs at the provider go on; the next run collects them."""
        self._stopped = True
        for task in (self._resumed, self._gathering, *self._jobs):
            if task is not None:
                task.cancel()
        for entry in self._under_way.values():
            told = "%s: batch %s continues at the provider; run the same command to collect it"
            logger.warning(told, self._model, entry.job)
        self._fail(list(self._waiting), self._stop_error())

    async def aclose(self) -> None:
        """Close the connections. Jobs at the provider go on."""
        tasks = [task for task in (self._resumed, self._gathering, *self._jobs) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fail(list(self._waiting), self._stop_error())
        self._gathered.clear()
        self._under_way.clear()
        self._sent.clear()
        self._resumed, self._gathering, self._stopped = None, None, False
        await self._api.aclose()

    async def _ready(self) -> None:
        """Wait until the jobs of an earlier process are taken up."""
        while not self._stopped:
            if self._resumed is None:
                self._resumed = asyncio.ensure_future(self._resume())
            resuming = self._resumed
            await asyncio.wait([resuming])
            if resuming.cancelled():
                break
            error = resuming.exception()
            if error is None:
                return
            if self._resumed is resuming:
                self._resumed = None  # the next call tries again
            raise self._told_error("the batches under way could not be looked up", error)
        raise self._stop_error()

    # From calls to jobs

    async def _gather(self) -> None:
        """Make jobs of what has come, once nothing has come for a moment."""
        while self._gathered:
            before = -1
            while len(self._gathered) != before and len(self._gathered) < self._max_requests:
                before = len(self._gathered)
                await asyncio.sleep(self._gather_s)
            some = self._next_batch()
            try:
                await self._submit(some)
            except Exception as error:  # an endpoint's, an empty budget, a full disk: whoever waits must hear of it
                failure = self._told_error("the batch could not be made", error)
                if isinstance(failure, ModelCallError):
                    entered = (self._ledger.failed(w.call, failure.kind, str(failure), ()) for w in some)
                    await asyncio.gather(*entered, return_exceptions=True)
                self._fail([w.call.key for w in some], failure)

    def _next_batch(self) -> list[_Waiting]:
        """As many as one batch may hold: neither its input nor its output may become too large to be sent or read."""
        sent = answered = n = 0
        for waiting in self._gathered[: self._max_requests]:
            sent, answered = sent + len(waiting.line), answered + waiting.answer_bytes
            if n and max(sent, answered) > self._max_bytes:
                break
            n += 1
        some, self._gathered = self._gathered[:n], self._gathered[n:]
        return some

    async def _submit(self, waiting: Sequence[_Waiting]) -> None:
        most = [w.call.most for w in waiting]
        held = await self._ledger.reserve(most, self._price, batch=True)
        # The maker is in the id: until it is known whether the batch exists, no other live process may decide about it.
        tag = f"{os.getpid()}-{process_identity(os.getpid()) or ''}-{uuid.uuid4().hex}"
        try:
            entry = BatchEntry(
                id=tag,
                model=self._model,
                file_id=await self._api.upload(b"".join(w.line for w in waiting), f"cowest-{tag}.jsonl"),
                job=None,
                status="creating",
                keys=tuple(w.call.key for w in waiting),
                held=tuple(held),
                created=time.time(),
            )
            await self._ledger.save_batch(entry)
        except BaseException:
            await self._ledger.release(held)  # no batch was made of it
            raise
        try:
            job = await self._api.create(entry.file_id, tag)
        except (MaybeMadeError, asyncio.CancelledError):
            self._unsure.add(tag)
            self._resumed = None  # found out before anything is asked again
            raise
        except (EndpointError, TransportError):
            await self._ledger.collected(entry.model_copy(update={"status": "lost"}), (), ())
            raise
        running = entry.model_copy(update={"job": job, "status": "running"})
        await self._ledger.save_batch(running)
        logger.info("%s: batch %s with %d requests", self._model, job, len(running.keys))
        self._follow(running)

    async def _resume(self) -> None:
        """Take up the jobs that an earlier process left, or that this one could not make for sure."""
        for entry in self._ledger.batches(self._model):
            if entry.status == "creating" and (entry.id in self._unsure or not _maker_lives(entry.id)):
                entry = await self._adopt(entry)
            if entry.status == "running" and entry.id not in self._under_way:
                self._follow(entry)

    async def _adopt(self, entry: BatchEntry) -> BatchEntry:
        """Find out whether a batch was made in the moment before its maker died."""
        lag = self._api.list_lag_s
        await asyncio.sleep(min(lag, entry.created + lag - time.time()))
        job = await self._api.find(entry.id)
        if job is None:
            lost = entry.model_copy(update={"status": "lost"})
            await self._ledger.collected(lost, (), ())  # with what was held for it
            return lost
        found = entry.model_copy(update={"job": job, "status": "running"})
        await self._ledger.save_batch(found)
        return found

    # From jobs to answers

    def _follow(self, entry: BatchEntry) -> None:
        self._under_way[entry.id] = entry
        self._sent |= set(entry.keys)
        task = asyncio.ensure_future(self._watch(entry))
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    async def _watch(self, entry: BatchEntry) -> None:
        try:
            job = await self._api.ended(entry.job or "")
            lines = {} if job is None else await self._api.download(job)
            if self._settled(entry):  # another process follows it too, and was faster
                self._deliver(entry)
            elif job is None or lines is None:
                told = self._told("the provider does not know the batch any more", "")
                await self._enter(entry.model_copy(update={"status": "lost"}), {}, "batch_failed", told)
            else:
                status = text_of(job, "status")
                kind = "batch_failed" if status == "completed" else f"batch_{status}"
                told = self._told(f"batch {entry.job} ended as {status}", problems(job))
                await self._enter(entry.model_copy(update={"status": "collected"}), lines, kind, told)
        except Exception as error:  # whoever waits must hear of it; the job is taken up again by the next call
            self._resumed = None
            self._fail(entry.keys, self._told_error(f"batch {entry.job} could not be collected", error))
        finally:
            self._under_way.pop(entry.id, None)
            self._sent -= set(entry.keys)

    async def _enter(self, entry: BatchEntry, lines: Mapping[str, bytes], kind: str, told: str) -> None:
        """Enter what a batch brought, all together, then tell those who wait.

        ``kind`` and ``told`` are for the requests that it did not answer.
        """
        answers: list[tuple[Call, Completion]] = []
        failures: list[tuple[Call, ModelCallError]] = []
        lost = Attempt(at=time.time(), latency_s=0.0, outcome=kind, maybe_paid=True)
        for key in entry.keys:
            waiting = self._waiting.get(key)
            unknown = Call(key, self._model, json.dumps({"batch": entry.job}), Usage(), self._price)
            call = waiting.call if waiting else unknown
            try:
                if key in lines:
                    answers.append((call, read_answer(lines[key], call, self._secrets)))
                else:
                    attempts = (lost,) if entry.status == "lost" else ()
                    failures.append((call, ModelCallError(kind, told, attempts)))
            except EndpointError as error:
                paid = Attempt(at=time.time(), latency_s=0.0, outcome=error.kind, usage=error.usage)
                failures.append((call, ModelCallError(error.kind, self._told(str(error), error.quote), (paid,))))
        entered = await self._ledger.collected(entry, answers, failures)
        for (call, _), completion in zip(answers, entered, strict=True):
            if not self._answer(call.key, completion):
                self._brought.add(call.key)
        for call, failure in failures:
            self._fail([call.key], failure)

    def _settled(self, entry: BatchEntry) -> bool:
        saved = {e.id: e.status for e in self._ledger.batches(self._model)}
        return saved.get(entry.id) in ("collected", "lost")

    def _deliver(self, entry: BatchEntry) -> None:
        """Tell those who wait what another process has entered."""
        for key in entry.keys:
            known = self._ledger.get(key) if key in self._waiting else None
            if known is None:
                told = self._told(f"batch {entry.job} brought no answer", "")
                self._fail([key], ModelCallError("batch_failed", told))
            else:
                self._answer(key, known)

    def _answer(self, key: str, completion: Completion) -> bool:
        """Whether anybody waited for it."""
        waiting = self._waiting.pop(key, None)
        if waiting is None or waiting.future.done():
            return False
        waiting.future.set_result(completion)
        return True

    def _fail(self, keys: Sequence[str], error: Exception) -> None:
        for key in keys:
            waiting = self._waiting.pop(key, None)
            if waiting is not None and not waiting.future.done():
                waiting.future.set_exception(error)

    def _told(self, message: str, raw: str) -> str:
        said = excerpt(raw, self._secrets)
        return f"{self._model}: {message}" + (f": {said}" if said else "")

    def _told_error(self, message: str, error: BaseException) -> CowestError:
        """What went wrong, for those who wait. A full disk or an empty budget stays what it is."""
        if isinstance(error, EndpointError | TransportError):
            return ModelCallError(error.kind, self._told(f"{message}: {error}", error.quote))
        if isinstance(error, CowestError):
            return error
        return ModelCallError("batch_failed", self._told(f"{message}: {type(error).__name__}", str(error)))

    def _stop_error(self) -> ModelCallError:
        return ModelCallError("stopped", f"{self._model}: stopped before the batch ended")


def _maker_lives(tag: str) -> bool:
    """Whether the process that made this id runs."""
    pid, _, rest = tag.partition("-")
    return pid.isdecimal() and process_identity(int(pid)) == rest.partition("-")[0]
