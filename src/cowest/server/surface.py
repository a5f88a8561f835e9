"""The routes that are answered, each a translation onto chat completions and back: so every rule holds for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Protocol

from cowest.server.errors import ApiError
from cowest.server.request import Body, ChatRequest, as_json, checked
from cowest.server.settings import Settings


class Surface(Protocol):
    """One request of a route. It is made of the request's JSON, and raises ApiError 400 where that asks for what cannot be done.

    ``chats`` are what is asked through chat completions, in most cases one. An answer's ids begin with ``prefix``.
    """

    prefix: ClassVar[str]

    def __init__(self, body: Body, size: int, settings: Settings) -> None: ...

    @property
    def chats(self) -> list[ChatRequest]: ...

    def whole(self, answers: Sequence[Body]) -> Body:
        """The answer, from a ``chat.completion`` for each of ``chats``."""
        ...

    def events(self, chunk: Body) -> Iterator[bytes]:
        """The server-sent events for a chunk of the stream."""
        ...

    def end(self) -> Iterator[bytes]:
        """What ends a stream that is whole."""
        ...

    def failed(self, error: ApiError) -> Iterator[bytes]:
        """What ends a stream that broke off."""
        ...


def data(body: Body) -> bytes:
    """A server-sent event without a name."""
    return b"data: " + as_json(body) + b"\n\n"


class Chat:
    """Implements Surface for ``/v1/chat/completions``: nothing is translated."""

    prefix: ClassVar[str] = "chatcmpl-"

    def __init__(self, body: Body, size: int, settings: Settings) -> None:
        self.chats = [checked(body, size, settings)]

    def whole(self, answers: Sequence[Body]) -> Body:
        """See Surface."""
        return answers[0]

    def events(self, chunk: Body) -> Iterator[bytes]:
        """See Surface."""
        yield data(chunk)

    def end(self) -> Iterator[bytes]:
        """See Surface."""
        yield b"data: [DONE]\n\n"

    def failed(self, error: ApiError) -> Iterator[bytes]:
        """See Surface."""
        yield data(error.payload())


def refused(param: str, message: str) -> ApiError:
    """The refusal of an option that would change the answer and cannot be had here."""
    return ApiError(400, f"{param}: {message}", param=param, code="unsupported_parameter")
