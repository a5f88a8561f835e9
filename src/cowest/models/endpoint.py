"""An OpenAI-compatible endpoint over any ChatModel, so that a local model can be used as a true black box.

Routes: ``POST /v1/chat/completions`` (no streaming), ``GET /v1/models``, ``GET /healthz``. Every error has the OpenAI
shape ``{"error": {"message", "type", "param", "code"}}``. An option that would change the answer and is not supported
is refused, never ignored. As with OpenAI, temperature is 1 where the request gives none.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from cowest.errors import ConfigError, ModelCallError
from cowest.models.api_error import ApiError
from cowest.protocols import ChatModel
from cowest.types import Completion, Message, Role, Sampling

logger = logging.getLogger(__name__)

DEFAULT_HOST = "127.0.0.1"
MAX_BODY_BYTES = 16 * 1024**2
MAX_SAMPLES = 64
_BOOKKEEPING = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "safety_identifier",
        "service_tier",
        "store",
        "stream_options",
        "user",
    }
)
"""Options that do not change the answer (there are no tools)."""
_NEUTRAL: tuple[JsonValue, ...] = (None, False, 0, "", "none", "auto", {"type": "text"}, [], {})
"""Values that ask for nothing special, whatever the option."""
_REQUEST_FAULTS: Final = {"too_long": "context_length_exceeded", "chat_template": "invalid_value"}
"""Failures that asking again does not mend, by their code at OpenAI."""


class _TextPart(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["text"]
    text: str


class _Turn(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_TextPart]

    def message(self) -> Message:
        role: Role = "system" if self.role == "developer" else self.role
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message(role=role, content=text)


class ChatRequest(BaseModel):
    """The body of ``POST /v1/chat/completions``; null means not given."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    model: str
    messages: list[_Turn] = Field(min_length=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63 - MAX_SAMPLES)
    n: int | None = Field(default=None, ge=1, le=MAX_SAMPLES)
    stream: bool | None = None

    def samplings(self) -> list[Sampling]:
        """One per sample asked for: the seeds count up from the given one, so that the samples differ."""
        limit = self.max_completion_tokens or self.max_tokens or Sampling().max_tokens
        return [
            Sampling(
                temperature=1.0 if self.temperature is None else self.temperature,
                top_p=1.0 if self.top_p is None else self.top_p,
                max_tokens=limit,
                seed=None if self.seed is None else self.seed + i,
            )
            for i in range(self.n or 1)
        ]


def parse_request(body: bytes, model_name: str) -> ChatRequest:
    """Check a body. Raises :class:`ApiError`: 400 naming the field that is wrong, 404 for an unknown model."""
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = ".".join(str(part) for part in first["loc"]) or None
        raise ApiError(400, f"{param or 'body'}: {first['msg']}", param=param) from None
    if request.model != model_name:
        message = f"the model does not exist here; this endpoint serves {model_name!r}"
        raise ApiError(404, message, param="model", code="model_not_found")
    if request.stream:
        raise ApiError(400, "stream: streaming is not supported", param="stream", code="unsupported_parameter")
    for key, value in request.__pydantic_extra__.items():
        if key not in _BOOKKEEPING and value not in _NEUTRAL:
            raise ApiError(400, f"{key[:60]}: not supported", param=key[:60], code="unsupported_parameter")
    return request


def reply_body(model_name: str, completions: list[Completion]) -> dict[str, object]:
    """The JSON of a completion; the prompt's tokens count once, however many samples were asked for."""
    prompt = completions[0].usage.input_tokens
    output = sum(c.usage.output_tokens for c in completions)
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model_name,
        "choices": [
            {
                "index": i,
                "message": {"role": "assistant", "content": c.text},
                "finish_reason": c.finish_reason,
                "logprobs": None,
            }
            for i, c in enumerate(completions)
        ],
        "usage": {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output},
    }


@web.middleware
async def _error_shape(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Every failure leaves in the OpenAI shape, none with a traceback."""
    try:
        return await handler(request)
    except ApiError as error:
        told = error
    except ModelCallError as error:
        if error.kind in _REQUEST_FAULTS:
            told = ApiError(400, str(error), code=_REQUEST_FAULTS[error.kind])
        else:
            told = ApiError(502, str(error), type_="upstream_error", code=error.kind)
    except web.HTTPException as error:
        told = ApiError(error.status, error.reason)
    except Exception:
        logger.exception("the endpoint failed")
        told = ApiError(500, "internal error", type_="server_error")
    return web.json_response(told.payload(), status=told.status, headers=told.headers)


def make_app(model: ChatModel, *, model_name: str, api_key: str | None = None) -> web.Application:
    """The application that serves ``model`` as ``model_name``; with a key, all routes but ``/healthz`` ask for it.

    The caller keeps the model and closes it. Raises :class:`ConfigError` for an empty name or key.
    """
    if not model_name.strip() or (api_key is not None and not api_key.strip()):
        raise ConfigError("the endpoint's model name and, where one is given, its key must not be empty")

    def authorize(request: web.Request) -> None:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if api_key is not None and not hmac.compare_digest(given, f"Bearer {api_key}".encode()):
            raise ApiError(401, "missing or wrong API key", code="invalid_api_key")

    async def complete(request: web.Request) -> web.Response:
        authorize(request)
        if request.content_type != "application/json":  # also keeps a web page's plain form from reaching the model
            raise ApiError(415, "the body must be sent as application/json")
        asked = parse_request(await request.read(), model_name)
        messages = tuple(turn.message() for turn in asked.messages)
        answers = await asyncio.gather(
            *(model.generate(messages, sampling) for sampling in asked.samplings()), return_exceptions=True
        )
        completions: list[Completion] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            completions.append(answer)
        return web.json_response(reply_body(model_name, completions))

    async def models(request: web.Request) -> web.Response:
        authorize(request)
        card = {"id": model_name, "object": "model", "created": 0, "owned_by": "cowest"}
        return web.json_response({"object": "list", "data": [card]})

    async def healthz(request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    app = web.Application(middlewares=[_error_shape], client_max_size=MAX_BODY_BYTES)
    app.router.add_post("/v1/chat/completions", complete)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/healthz", healthz)
    return app


@asynccontextmanager
async def serve(app: web.Application, host: str = DEFAULT_HOST, port: int = 0) -> AsyncIterator[str]:
    """Serve within the ``async with`` block, which gets the base URL (``http://127.0.0.1:PORT/v1``); port 0 picks one.

    Requests under way at the end get 5 s to finish. Raises :class:`ConfigError` where the address cannot be bound.
    """
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=5.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except (OSError, OverflowError) as error:
            raise ConfigError(f"cannot listen on {host}:{port} ({error}); choose another host or port") from None
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


async def run_endpoint(
    app: web.Application, ready: Callable[[str], None], *, host: str = DEFAULT_HOST, port: int = 0
) -> None:
    """Serve until SIGINT or SIGTERM, then shut down cleanly; ``ready`` gets the base URL once it answers."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    handled: list[signal.Signals] = []
    async with serve(app, host, port) as base_url:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                try:
                    loop.add_signal_handler(number, stop.set)
                    handled.append(number)
                except (NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
                    continue
            ready(base_url)
            await stop.wait()
        finally:  # from here on a second Ctrl-C interrupts the shutdown itself
            for number in handled:
                loop.remove_signal_handler(number)
