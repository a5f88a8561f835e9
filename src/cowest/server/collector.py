"""With ``--collect``: an exchange is on disk before its answer's end is sent, and feedback on it is entered beside it."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from cowest.ledger.exchanges import Exchanged, ExchangeLog, Turn, Verdict
from cowest.server.conversation import conversation
from cowest.server.errors import ApiError
from cowest.server.gateway import Exchange, Served
from cowest.server.metrics import Metrics
from cowest.server.redaction import Redactor
from cowest.server.request import Body, ChatRequest, text_of

logger = logging.getLogger("cowest.server")

MOST_CHARS: Final = 1_000_000
"""Characters of an exchange in all; a longer one is not kept, so that one client cannot fill memory or disk with it."""
MOST_FEEDBACK_BYTES: Final = 64 * 1024
MOST_WAIT_S: Final = 10.0
"""Seconds that the end of an answer waits for the disk; then it is sent all the same."""


class Feedback(BaseModel):
    """The body of ``POST /v1/feedback``."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    id: str = Field(min_length=1, max_length=100)
    helpful: bool | None = None
    answer: str | None = Field(default=None, min_length=1, max_length=20_000)


class Texts:
    """The text of every choice of an answer, or of the chunks of a stream as they come."""

    def __init__(self) -> None:
        self._parts: dict[int, list[str]] = {}
        self.chars = 0

    def feed(self, answer: Body) -> None:
        """Take note of a completion or a chunk. What goes beyond ``MOST_CHARS`` is only counted."""
        choices = answer.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if not isinstance(choice, dict):
                continue
            message, index = choice.get("message") or choice.get("delta"), choice.get("index", 0)
            parts = self._parts.setdefault(index if isinstance(index, int) else 0, [])
            text = message.get("content") if isinstance(message, dict) else None
            if isinstance(text, str):
                self.chars += len(text)
                if self.chars <= MOST_CHARS:
                    parts.append(text)

    @property
    def all(self) -> tuple[str | None, ...]:
        """In the order of the choices; None for one without text."""
        return tuple("".join(parts) or None for _, parts in sorted(self._parts.items()))


class Collector:
    """Keeps exchanges and feedback. What cannot be kept costs no answer: it is counted, and told in the log without a text."""

    def __init__(self, log: ExchangeLog, metrics: Metrics, redactor: Redactor | None = None) -> None:
        self._log, self._metrics, self._redactor = log, metrics, redactor

    async def keep(self, served: Served, chat: ChatRequest, exchange: Exchange, texts: Texts) -> None:
        """Enter an exchange; it is durable when this returns. ``chat`` and the draft are redacted already, the answer is not."""
        try:
            entry = _entry(served, chat, exchange)
            if _size(entry) + texts.chars > MOST_CHARS:
                self._metrics.collected("too_long")
                return
            async with asyncio.timeout(MOST_WAIT_S):
                answers = [None if text is None else await self._clean(text) for text in texts.all]
                await self._log.record(entry.model_copy(update={"answers": tuple(answers)}))
        except Exception as error:
            logger.error("the exchange %s was not kept: %s", exchange.id, type(error).__name__)
            self._metrics.collected("failed")
        else:
            self._metrics.collected("stored")

    async def feedback(self, raw: bytes) -> Body:
        """Enter a verdict, in place of an earlier one. Returns what was understood. Raises ApiError."""
        given = _parse(raw)
        about = self._log.find(given.id)
        if about is None:
            raise _unknown()
        told = (given.answer or "").strip()
        answer = await self._clean(told) if told else None
        if answer is not None and about.choices and answer not in about.choices:
            listed = ", ".join(about.choices)[:200]
            raise ApiError(400, f"answer: must be one of the choices that the request named ({listed})", param="answer")
        verdict = Verdict(at=time.time(), helpful=given.helpful, answer=answer)
        replaced = await self._log.judge(given.id, verdict)
        if replaced is None:  # deleted in this very moment
            raise _unknown()
        for name, said in (
            ("helpful", given.helpful is True),
            ("not_helpful", given.helpful is False),
            ("answer", answer),
        ):
            if said:
                self._metrics.judged(name)
        kept: Body = {"id": given.id, "object": "cowest.feedback", "helpful": given.helpful, "answer": answer}
        return kept | {"replaced": replaced}

    async def _clean(self, text: str) -> str:
        text = text.encode("utf-8", "replace").decode()  # half a character, which a model can write, is nothing to keep
        return text if self._redactor is None else await self._redactor.text(text)

    def close(self) -> None:
        """Write what is left."""
        self._log.close()


def _unknown() -> ApiError:
    message = "no exchange with this id was collected here; it is the id of the answer, chatcmpl-..."
    return ApiError(404, message, param="id", code="exchange_not_found")


@contextmanager
def open_collector(
    path: Path, run: str, metrics: Metrics, redactor: Redactor | None, collect: bool
) -> Iterator[Collector | None]:
    """A collector for the time of the block; None, and no file is touched, unless ``collect``."""
    collector = Collector(ExchangeLog(path, run), metrics, redactor) if collect else None
    try:
        yield collector
    finally:
        if collector is not None:
            collector.close()


def _entry(served: Served, chat: ChatRequest, exchange: Exchange) -> Exchanged:
    asked = conversation(chat, exchange.id)
    asked = replace(
        asked, example=asked.example.model_copy(update={"context": exchange.context})
    )  # with what was looked up
    drafted = exchange.draft_s is not None
    return Exchanged(
        id=exchange.id,
        at=time.time(),
        task=served.task,
        model=served.id,
        mode=exchange.mode or "both",
        degraded=exchange.degraded,
        messages=tuple(Turn(role=str(message["role"]), text=text_of(message)) for message in chat.messages),
        turn=asked.turn,
        context=chat.extension.context,
        choices=tuple(chat.extension.choices),
        prompt=asked.for_weak(served.frames) if drafted else (),
        draft=exchange.drafted.text,
        answers=(),
    )


def _size(entry: Exchanged) -> int:
    texts = (entry.context or "", entry.draft or "", *entry.choices)
    return sum(map(len, texts)) + sum(len(turn.role) + len(turn.text) for turn in entry.messages)


def _parse(raw: bytes) -> Feedback:
    if len(raw) > MOST_FEEDBACK_BYTES:
        raise ApiError(413, f"feedback is at most {MOST_FEEDBACK_BYTES} bytes long")
    try:
        body: JsonValue = json.loads(raw)
        given = Feedback.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = ".".join(str(part) for part in first["loc"])[:80] or None
        raise ApiError(400, f"{param}: {first['msg']}" if param else str(first["msg"]), param=param) from None
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not valid JSON") from None
    if given.helpful is None and (given.answer is None or not given.answer.strip()):
        raise ApiError(400, "give helpful (true or false), answer (the right one), or both", param="helpful")
    return given
