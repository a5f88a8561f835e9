"""The batch API of a provider, call by call: files and batches as OpenAI's, over a transport; nothing about ledger or models.

What can be repeated without harm is repeated until the provider says what it is; a batch is never made twice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Callable, Mapping
from typing import Final, TypeVar
from urllib.parse import quote

import aiohttp
from pydantic import JsonValue

from cowest.models.batch_wire import ENDED, files_of, read_lines, read_object, text_of
from cowest.models.failures import EndpointError, check_status
from cowest.models.secrets import Secrets
from cowest.models.transport import HttpReply, Transport, TransportError
from cowest.models.untrusted import excerpt, field

logger = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS: Final = 6
"""For uploading an input file, and for making a batch of it."""
LOST_AFTER: Final = 5
"""Times in a row that something is not there, or unreadable, before that is believed."""
LIST_LAG: Final = 2
"""In units of ``poll_s``: so old must a batch be before the provider's list tells for sure that there is none."""
_GONE: Final = frozenset({"http_404", "http_410"})
_JSON: Final = {"Content-Type": "application/json"}


class MaybeMadeError(EndpointError):
    """A batch could not be made, or was made and the answer was lost."""


class BatchApi:
    """``poll_s`` seconds lie between two looks at the same thing. Raises EndpointError and TransportError."""

    def __init__(self, transport: Transport, secrets: Secrets, poll_s: float) -> None:
        self._transport, self._secrets, self._poll_s = transport, secrets, poll_s

    @property
    def list_lag_s(self) -> float:
        """So old must a batch be before :meth:`find` tells for sure that there is none."""
        return LIST_LAG * self._poll_s

    async def upload(self, content: bytes, name: str) -> str:
        """The id of a new input file."""
        for attempt in range(ATTEMPTS):
            form = aiohttp.FormData()  # made anew for each attempt, as it is read only once
            form.add_field("purpose", "batch")
            form.add_field("file", content, filename=name, content_type="application/jsonl")
            try:
                return text_of(read_object(await self._exchange("POST", "files", data=form)), "id")
            except (EndpointError, TransportError) as error:
                if not error.retry or attempt == ATTEMPTS - 1:
                    raise
            await self._back_off(attempt)
        raise AssertionError("the last attempt returns or raises")

    async def create(self, file: str, tag: str) -> str:
        """The id of a new batch, which is marked with ``tag``. Raises MaybeMadeError where it may exist all the same."""
        asked: dict[str, JsonValue] = {
            "input_file_id": file,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"cowest": tag},
        }
        body, unsure = json.dumps(asked).encode(), False
        for attempt in range(ATTEMPTS):
            try:
                if unsure and (job := await self.find(tag)) is not None:
                    return job
                unsure = False
                return text_of(read_object(await self._exchange("POST", "batches", data=body, headers=_JSON)), "id")
            except (EndpointError, TransportError) as error:
                unsure = unsure or _maybe_done(error)
                if unsure and (not error.retry or attempt == ATTEMPTS - 1):
                    raise MaybeMadeError(error.kind, str(error), retry=False, quote=error.quote) from None
                if not error.retry or attempt == ATTEMPTS - 1:
                    raise
            await self._back_off(attempt)
            if unsure:
                await asyncio.sleep(self.list_lag_s)
        raise AssertionError("the last attempt returns or raises")

    async def find(self, tag: str) -> str | None:
        """The id of the batch with this mark; None when there is no such batch."""
        after = ""
        while True:
            page = await self._until_told(f"batches?limit=100{after}", read_object)
            if page is None:
                raise EndpointError("http_404", "the batch API has no list of batches", retry=False)
            listed = field(page, "data")
            jobs = listed if isinstance(listed, list) else []
            for job in jobs:
                if field(field(job, "metadata"), "cowest") == tag:
                    return text_of(job, "id")
            if not jobs or field(page, "has_more") is not True:
                return None
            after = f"&after={quote(text_of(jobs[-1], 'id'), safe='')}"

    async def ended(self, job: str) -> Mapping[str, object] | None:
        """Look at a batch until it has ended; None for one that is not there. Trouble on the way loses no batch."""
        without_files = 0
        while True:
            found = await self._until_told(f"batches/{quote(job, safe='')}", read_object)
            if found is None:
                return None
            status = text_of(found, "status")
            if status in ENDED:
                without_files += 1
                if files_of(found) or status != "completed" or without_files == LOST_AFTER:
                    return found  # a batch that is completed may name its files a moment later
            await self._pause()

    async def download(self, job: Mapping[str, object]) -> dict[str, bytes] | None:
        """The lines of the output and error files by their key; None when one of them is not there any more."""
        lines: dict[str, bytes] = {}
        for file in files_of(job):
            found = await self._until_told(f"files/{quote(file, safe='')}/content", read_lines)
            if found is None:
                return None
            lines = found | lines
        done = field(field(job, "request_counts"), "completed")
        if isinstance(done, int) and done > 0 and not lines:
            raise EndpointError("bad_response", f"the files of a batch of {done} answers hold none", retry=True)
        return lines

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def _exchange(
        self,
        method: str,
        path: str,
        *,
        data: bytes | aiohttp.FormData | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> HttpReply:
        reply = await self._transport.request(method, path, data=data, headers=headers)
        check_status(reply.status, reply.body, reply.headers)
        return reply

    async def _until_told(self, path: str, read: Callable[[HttpReply], T]) -> T | None:
        """Look until the provider says what is there; None for what is not there, several times in a row."""
        trouble = useless = 0
        while True:
            try:
                return read(await self._exchange("GET", path))
            except (EndpointError, TransportError) as error:
                trouble += 1
                gone = error.kind in _GONE
                useless = useless + 1 if gone or error.kind == "bad_response" else 0
                if gone and useless >= LOST_AFTER:
                    return None
                if useless >= LOST_AFTER or error.kind == "too_large" or not (error.retry or gone):
                    raise
                if trouble == 1:
                    said = excerpt(error.quote, self._secrets)
                    logger.warning("%s (%s); looked at again every %g s", error, said, self._poll_s)
            await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(self._poll_s * random.uniform(0.9, 1.1))

    async def _back_off(self, attempt: int) -> None:
        await asyncio.sleep(random.uniform(0.5, 1.0) * min(self._poll_s, 2.0**attempt))


def _maybe_done(error: EndpointError | TransportError) -> bool:
    """Whether a request that failed so may have been carried out."""
    if isinstance(error, TransportError):
        return error.sent
    return error.retry and error.kind != "http_429"
