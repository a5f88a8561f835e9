"""The HTTP surface: routes, checks, server-sent events, and errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from cowest.server.auth import Keys
from cowest.server.breaker import Breaker
from cowest.server.collector import Collector, Texts
from cowest.server.completions import Completions
from cowest.server.errors import CLIENT_GONE, ApiError, Unavailable
from cowest.server.gateway import Exchange, Gateway, Served, new_id
from cowest.server.limits import Admission
from cowest.server.metrics import Metrics
from cowest.server.playground import playground
from cowest.server.redaction import Redactor
from cowest.server.request import EXTENSION, Body, ChatRequest, as_json, decoded
from cowest.server.responses import Responses
from cowest.server.settings import Settings
from cowest.server.surface import Chat, Surface
from cowest.systems.registry import current_name

logger = logging.getLogger("cowest.server")

BODY_TIMEOUT_S: Final = 30.0
MOST_NAMED: Final = 20
"""Model ids in an error; a recipe of many domains has more."""
SURFACES: Final[Mapping[str, type[Surface]]] = {
    "/v1/chat/completions": Chat,
    "/v1/responses": Responses,
    "/v1/completions": Completions,
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class _Asked:
    """What is noted of a request; ``further`` exchanges where it brings several prompts."""

    first: Exchange
    began: float
    model: str = "unknown"
    further: list[Exchange] = field(default_factory=list)

    @property
    def exchanges(self) -> list[Exchange]:
        return [self.first, *self.further]


@dataclass(slots=True)
class Server:
    """What the routes share. ``draining``: nothing new is taken, and what is under way is finished."""

    served: Mapping[str, Served]
    settings: Settings
    keys: Keys
    breakers: dict[str, Breaker] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)
    redactor: Redactor | None = None
    collector: Collector | None = None
    draining: bool = False
    admission: Admission = field(init=False)
    gateway: Gateway = field(init=False)

    def __post_init__(self) -> None:
        """Make the parts that follow from the settings."""
        s = self.settings
        self.admission = Admission(s.concurrency, s.queue, s.rate_per_minute)
        self.gateway = Gateway(s, self.redactor, self.breakers)
        self.metrics.inside(lambda: self.admission.inside)
        self.metrics.breakers(self.breakers)

    def application(self) -> web.Application:
        """The routes. Run it with ``handler_cancellation``, so that a client that leaves frees the models."""
        app = web.Application(middlewares=[self._shaped], client_max_size=self.settings.max_body_bytes)
        for path, kind in SURFACES.items():
            app.router.add_post(path, partial(self._answer, kind=kind))
        app.router.add_post("/v1/feedback", self._feedback)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{id:.+}", self._model)
        app.router.add_get("/", self._page)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        if self.settings.cors_origin is not None:
            app.router.add_route("OPTIONS", "/v1/{any:.*}", self._preflight)
            app.on_response_prepare.append(self._cors)
        return app

    @web.middleware
    async def _shaped(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every failure leaves in OpenAI's shape, none with a traceback."""
        try:
            return await handler(request)
        except ApiError as error:
            return _told(error)
        except web.HTTPException as error:
            return _told(ApiError(error.status, _explained(request, error)))
        except Exception:
            logger.exception("the server failed")
            return _told(ApiError(500, "internal error", type_="server_error"))

    def _allowed(self, request: web.Request) -> str:
        """Who asks. Raises ApiError 401 or 403."""
        try:
            return self.keys.check(request.headers.get("Authorization", ""), request.headers.get("Host", ""))
        except ApiError as error:
            self.metrics.rejected(error.code or "auth")
            raise

    async def _answer(self, request: web.Request, kind: type[Surface]) -> web.StreamResponse:
        """An answer of one of the routes, by the same rules for all of them."""
        asked = _Asked(Exchange(id=new_id(kind.prefix)), time.perf_counter())
        status = CLIENT_GONE
        try:
            who = self._allowed(request)
            self._refuse_while_draining()
            with self._admit(who), ExitStack() as places:
                surface = await self._read(request, kind)
                served = self._find(surface.chats[0].model)
                asked.model = served.id
                for i in range(
                    1, len(surface.chats)
                ):  # each prompt is a request: it takes a place, and counts for the rate
                    places.enter_context(self._admit(who))
                    asked.further.append(Exchange(id=f"{asked.first.id}-{i}"))
                chats = surface.chats
                if self.redactor is not None:
                    chats = [await self.redactor.request(chat) for chat in chats]
                if chats[0].stream:
                    response, status = await self._streamed(request, served, surface, chats[0], asked.first)
                    return response
                answer = surface.whole(await self._whole(served, chats, asked.exchanges))
            status = 200
            return web.Response(body=as_json(answer), content_type="application/json", headers=_ids(asked.first))
        except (ApiError, Unavailable) as error:
            told = error if isinstance(error, ApiError) else error.for_client()
            status = told.status
            return _told(told, asked.first)
        except web.HTTPRequestEntityTooLarge:
            status = 413
            message = f"the body is longer than {self.settings.max_body_bytes} bytes"
            return _told(ApiError(413, message), asked.first)
        except Exception:
            status = 500
            logger.exception("the server failed (%s)", asked.first.id)
            return _told(ApiError(500, "internal error", type_="server_error"), asked.first)
        finally:
            for exchange in asked.exchanges:
                self._note(asked.model, status, exchange, time.perf_counter() - asked.began)

    async def _whole(self, served: Served, chats: Sequence[ChatRequest], exchanges: Sequence[Exchange]) -> list[Body]:
        """The answers, each kept where exchanges are. Raises ApiError or Unavailable: one that fails ends them all."""

        async def one(chat: ChatRequest, exchange: Exchange) -> Body:
            answer = await self.gateway.complete(served, chat, exchange)
            if self.collector is not None:
                texts = Texts()
                texts.feed(answer)
                await self.collector.keep(served, chat, exchange, texts)
            return answer

        if len(chats) == 1:
            return [await one(chats[0], exchanges[0])]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(*both)) for both in zip(chats, exchanges, strict=True)]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    def _refuse_while_draining(self) -> None:
        if self.draining:
            raise ApiError(503, "the server is shutting down", type_="server_error", headers=_CLOSE)

    async def _feedback(self, request: web.Request) -> web.Response:
        who = self._allowed(request)
        self._refuse_while_draining()
        if self.collector is None:
            raise ApiError(404, "this server collects no feedback; --collect makes it", code="collect_off")
        with self._admit(who):
            return web.json_response(await self.collector.feedback(await self._raw(request)))

    def _admit(self, who: str) -> AbstractContextManager[None]:
        """A place for one request. Raises ApiError 429."""
        try:
            return self.admission.admitted(who)
        except ApiError as error:
            self.metrics.rejected(error.code or "limit")
            raise

    async def _raw(self, request: web.Request) -> bytes:
        if request.content_type != "application/json":  # also keeps a web page's plain form from reaching the models
            raise ApiError(415, "the body must be sent as application/json")
        try:
            if request.content.is_eof():  # all of it is there, as with most requests
                return await request.read()
            async with asyncio.timeout(BODY_TIMEOUT_S):
                return await request.read()
        except TimeoutError:
            raise ApiError(408, "the body did not arrive in time", headers=_CLOSE) from None
        except web.RequestPayloadError:
            raise ApiError(400, "the body is not encoded as its headers say", headers={"Connection": "close"}) from None

    async def _read(self, request: web.Request, kind: type[Surface]) -> Surface:
        raw = await self._raw(request)
        body = decoded(raw)
        if request.headers.get("X-Cowest-Details") == "1":
            extension = body.get(EXTENSION) or {}
            if isinstance(extension, dict):
                body[EXTENSION] = {**extension, "details": True}
        return kind(body, len(raw), self.settings)

    def _find(self, name: str) -> Served:
        id_ = name.replace("/", ".")  # as ids were written before; a system may have had another name, too
        recipe, _, system = id_.rpartition(".")
        served = self.served.get(name) or self.served.get(id_) or self.served.get(f"{recipe}.{current_name(system)}")
        if served is None:
            there = list(self.served)
            more = f" and {len(there) - MOST_NAMED} more (GET /v1/models)" if len(there) > MOST_NAMED else ""
            message = f"the model does not exist here; these do: {', '.join(there[:MOST_NAMED])}{more}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return served

    async def _streamed(
        self, request: web.Request, served: Served, surface: Surface, chat: ChatRequest, exchange: Exchange
    ) -> tuple[web.StreamResponse, int]:
        """Send the chunks as server-sent events. Raises ApiError or Unavailable as long as nothing was sent."""
        response, texts = web.StreamResponse(headers=_SSE | _ids(exchange)), Texts() if self.collector else None
        async with aclosing(self.gateway.stream(served, chat, exchange)) as chunks:
            first = await anext(chunks)
            try:
                await response.prepare(request)
                async for chunk in _all(first, chunks):
                    if texts is not None:
                        texts.feed(chunk)
                    await self._send(response, surface.events(chunk))
                if self.collector is not None and texts is not None:
                    await self.collector.keep(served, chat, exchange, texts)
                await self._send(response, surface.end())
                await response.write_eof()
            except Unavailable as error:
                told = error.for_client()
                await self._send(response, surface.failed(told))
                return response, told.status
            except (ConnectionError, TimeoutError):
                _hang_up(request)
                return response, CLIENT_GONE
            except Exception:
                logger.exception("the server failed in a stream (%s)", exchange.id)
                _hang_up(request)
                return response, 500
        return response, 200

    async def _send(self, response: web.StreamResponse, events: Iterator[bytes]) -> None:
        """Some events. Waits for a slow client, up to the limit; then TimeoutError."""
        told = b"".join(events)
        if told:
            async with asyncio.timeout(self.settings.write_timeout_s):
                await response.write(told)

    def _note(self, model: str, status: int, exchange: Exchange, seconds: float) -> None:
        self.metrics.answered(model, status, exchange, seconds)
        fields = {
            "id": exchange.id,
            "model": model,
            "status": status,
            "mode": exchange.mode,
            "degraded": exchange.degraded,
            "ms": round(seconds * 1000, 1),
        }
        if logger.isEnabledFor(logging.INFO):
            # Made by hand: finding the calling line takes longer than all the rest of it.
            record = {
                "name": logger.name,
                "levelno": logging.INFO,
                "levelname": "INFO",
                "msg": "request",
                "fields": fields,
            }
            logger.handle(logging.makeLogRecord(record))

    async def _models(self, request: web.Request) -> web.Response:
        self._allowed(request)
        return web.json_response({"object": "list", "data": [self._card(served) for served in self.served.values()]})

    async def _model(self, request: web.Request) -> web.Response:
        self._allowed(request)
        return web.json_response(self._card(self._find(request.match_info["id"])))

    def _card(self, served: Served) -> dict[str, object]:
        """A model as /v1/models tells of it; ``answer_tokens`` null: the model's own limit counts."""
        about = served.about
        told: dict[str, object] = {
            "system": about.system,
            "route": served.route.name if served.drafter is not None else None,
            "answer_tokens": about.answer_tokens,
            "draft_tokens": about.draft_tokens,
            "max_answer_tokens": self.settings.max_output_tokens,
        }
        if about.examples:
            told["examples"] = [e.model_dump(include={"input", "context", "choices"}) for e in about.examples]
        return {"id": served.id, "object": "model", "created": about.created, "owned_by": "cowest", "cowest": told}

    async def _page(self, request: web.Request) -> web.Response:
        page = playground(wants_key=bool(self.keys), collects=self.collector is not None)
        return web.Response(body=page.body, content_type="text/html", charset="utf-8", headers=page.headers)

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _readyz(self, request: web.Request) -> web.Response:
        states = {side: breaker.state for side, breaker in self.breakers.items()}
        dead = self.settings.strong_down == "error" and states.get("strong") == "open"
        status = "draining" if self.draining else "strong_down" if dead else "ready"
        body = {"status": status, "models": list(self.served), "breakers": states}
        return web.json_response(body, status=200 if status == "ready" else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        self._allowed(request)
        return web.Response(body=self.metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _preflight(self, request: web.Request) -> web.Response:
        allowed = {"Access-Control-Allow-Methods": "GET, POST", "Access-Control-Allow-Headers": "*, Authorization"}
        return web.Response(status=204, headers=allowed)

    async def _cors(self, request: web.Request, response: web.StreamResponse) -> None:
        origin = self.settings.cors_origin
        if origin is not None and request.headers.get("Origin") == origin:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Vary"] = "Origin"


_CLOSE: Final = {"Connection": "close", "Retry-After": "5"}
_SSE: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def _explained(request: web.Request, error: web.HTTPException) -> str:
    """What is there in place of what was asked for: a wrong base URL is the first mistake that everyone makes."""
    if error.status == 405 and isinstance(error, web.HTTPMethodNotAllowed):
        return f"this path takes {' and '.join(sorted(error.allowed_methods - {'HEAD'}))}, not {error.method[:20]}"
    if error.status != 404:
        return error.reason
    routes = {
        f"{route.method} {route.resource.canonical}"
        for route in request.app.router.routes()
        if route.resource is not None and route.method in ("GET", "POST")
    }
    return f"there is no such path here; there are {', '.join(sorted(routes))} (a client's base URL ends in /v1)"


async def _all(first: Body, rest: AsyncIterator[Body]) -> AsyncIterator[Body]:
    yield first
    async for chunk in rest:
        yield chunk


def _ids(exchange: Exchange) -> dict[str, str]:
    return {"X-Request-Id": exchange.id}


def _told(error: ApiError, exchange: Exchange | None = None) -> web.Response:
    headers = error.headers | (_ids(exchange) if exchange is not None else {})
    return web.Response(body=error.body(), status=error.status, headers=headers, content_type="application/json")


def _hang_up(request: web.Request) -> None:
    """Close the connection: a client of a stream that was cut must not take it for whole."""
    if request.transport is not None:
        request.transport.abort()
