"""What goes wrong below the routes (no HTTP, a header too long, an unknown ``Expect``) is told in OpenAI's shape too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aiohttp import web

from cowest.server.errors import ApiError

_NO_HTTP: Final = "the request is not HTTP as this server reads it, or its line or headers are too long"


class Connection(web.RequestHandler):
    """aiohttp's connection with other error bodies: its own are plain text and quote what was sent."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what never reached a route; the connection is closed after it."""
        super().handle_error(request, status, exc, message)  # writes the log line, and raises where an answer had begun
        response = _told(ApiError(status, _NO_HTTP) if status < 500 else _OURS)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer."""
        if isinstance(resp, web.HTTPException):
            resp = _told(ApiError(resp.status, resp.reason))
        return await super().finish_response(request, resp, start_time)


def connections(factory: Callable[[], asyncio.Protocol]) -> Callable[[], asyncio.Protocol]:
    """The factory of an aiohttp server, whose connections become ours. aiohttp has no setting for it."""

    def make() -> asyncio.Protocol:
        connection = factory()
        if type(connection) is web.RequestHandler:
            connection.__class__ = Connection
        return connection

    return make


_OURS: Final = ApiError(500, "internal error", type_="server_error")


def _told(error: ApiError) -> web.Response:
    return web.Response(body=error.body(), status=error.status, content_type="application/json")
