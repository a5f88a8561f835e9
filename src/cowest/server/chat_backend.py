"""Any ChatModel (the lab's strong model, a weak model alone) as a backend of the server."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice

from pydantic import JsonValue

from cowest.errors import ModelCallError
from cowest.models.endpoint import parse_request
from cowest.models.wire import request_body
from cowest.protocols import ChatModel, RoomyChatModel, StreamingChatModel
from cowest.server.answers import chunks_of, completion_of, cut
from cowest.server.breaker import Breaker
from cowest.server.errors import ApiError
from cowest.server.faults import meaning
from cowest.server.held_request import called, wanted
from cowest.server.request import TOKEN_LIMITS, Body, wants_usage
from cowest.server.room import too_long
from cowest.server.upstream import patience, with_defaults
from cowest.types import Completion, Message, Sampling


class ChatBackend:
    """Answers with a ChatModel. What would change the answer and cannot be done (images, say) is refused with 400.

    Schemas, tools and log-probabilities are for models in this process (HoldingChatModel). A stream comes as the model writes it
    where the model can tell (StreamingChatModel) and one text is asked for, without ``stop``, tools or log-probabilities; else
    each choice is one piece. ``sampling`` counts where the client says nothing, but for max_tokens where ``most`` is given: then
    the answer may take what the model's window leaves (RoomyChatModel), and ``most`` tokens at most.
    """

    def __init__(self, model: ChatModel, sampling: Sampling, breaker: Breaker, most: int | None = None) -> None:
        self._model, self._breaker, self._most = model, breaker, most
        self._defaults = request_body("", (), sampling)
        del self._defaults["messages"], self._defaults["model"]

    def check(self, body: Body) -> None:
        """See Backend."""
        self._asked(body)

    async def complete(self, body: Body, until: float) -> Body:
        """See Backend."""
        return await self._whole(self._asked(body), until)

    async def _whole(self, asked: _Asked, until: float) -> Body:
        with self._breaker.guarded():
            async with patience(until):
                answers = await self._all(asked.messages, asked.samplings)
        whole = completion_of(self._model.name, [_stopped(answer, asked.stops) for answer in answers])
        return called(whole) if asked.calls else whole

    async def stream(self, body: Body, until: float) -> AsyncGenerator[Body, None]:
        """See Backend."""
        usage = wants_usage(body)
        asked = self._asked(body)
        one = asked.samplings[0]
        whole = asked.stops or asked.calls or one.logprobs is not None or len(asked.samplings) > 1
        if whole or not isinstance(self._model, StreamingChatModel):
            for chunk in chunks_of(await self._whole(asked, until), usage):
                yield chunk
            return
        async with aclosing(self._model.stream(asked.messages, one)) as pieces:
            with self._breaker.guarded():
                async with patience(until):
                    piece = await _next(pieces)
            created, role = int(time.time()), {"role": "assistant"}
            while isinstance(piece, str):
                choice: JsonValue = {"index": 0, "delta": {**role, "content": piece}, "finish_reason": None}
                yield {"object": "chat.completion.chunk", "created": created, "choices": [choice]}
                role, piece = {}, await _next(pieces)
        done = completion_of(self._model.name, [piece]) | {"created": created}
        for chunk in islice(chunks_of(done, usage), 1, None):  # the first would be the text once more
            yield chunk

    def _asked(self, body: Body) -> _Asked:
        """What a body asks for. Raises ApiError 400."""
        open_ = self._most is not None and all(body.get(name) is None for name in TOKEN_LIMITS)
        asked = with_defaults(body, self._defaults) | {"model": self._model.name}
        stops = _stops(asked.pop("stop", None))
        asked.pop("stream", None)
        asked, want = wanted(asked, self._model)
        request = parse_request(json.dumps(asked).encode(), self._model.name)
        messages, samplings = tuple(turn.message() for turn in request.messages), request.samplings()
        room = self._room(messages)
        if open_ and self._most is not None:
            limit = self._most if room is None else max(1, min(self._most, room))
            samplings = [sampling.model_copy(update={"max_tokens": limit}) for sampling in samplings]
        if room is not None and samplings[0].max_tokens > room:
            raise too_long(samplings[0].max_tokens, room)
        return _Asked(messages, [want.of(sampling) for sampling in samplings], stops, want.calls)

    def _room(self, messages: Sequence[Message]) -> int | None:
        try:
            return self._model.room(messages) if isinstance(self._model, RoomyChatModel) else None
        except ModelCallError as error:
            raise meaning(error) from None

    async def aclose(self) -> None:
        """Close the model."""
        await self._model.aclose()

    async def _all(self, messages: Sequence[Message], samplings: Sequence[Sampling]) -> list[Completion]:
        """An answer for each sampling; one failure, or a client that leaves, ends them all."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(messages, sampling)) for sampling in samplings]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _one(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        try:
            return await self._model.generate(messages, sampling)
        except ModelCallError as error:
            raise meaning(error) from None


@dataclass(frozen=True, slots=True)
class _Asked:
    """A checked request; one sampling for each choice. ``calls``: the text may be calls of tools."""

    messages: tuple[Message, ...]
    samplings: list[Sampling]
    stops: list[str]
    calls: bool


async def _next(pieces: AsyncGenerator[str | Completion, None]) -> str | Completion:
    try:
        return await anext(pieces)
    except ModelCallError as error:
        raise meaning(error) from None


def _stops(found: object) -> list[str]:
    """``stop`` as a list. Raises ApiError for what is none."""
    stops = [found] if isinstance(found, str) else found if isinstance(found, list) else [] if found is None else None
    if stops is None or not all(isinstance(s, str) and s for s in stops):
        raise ApiError(400, "stop: must be a string or a list of strings", param="stop")
    return stops


def _stopped(done: Completion, stops: Sequence[str]) -> Completion:
    """The text up to the first stop. A ChatModel knows no stops, so what it wrote beyond is thrown away."""
    cuts = [at for stop in stops if (at := done.text.find(stop)) >= 0]
    return cut(done, done.text[: min(cuts)]).model_copy(update={"finish_reason": "stop"}) if cuts else done
