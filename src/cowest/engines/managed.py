"""A model that is answered by a server of ours, and the engine that a recipe names."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from cowest.engines.llamacpp import LlamaCpp
from cowest.engines.program import MOST_WINDOW, Program, Wanted, python_of
from cowest.engines.servers import Address, Server, Servers
from cowest.engines.vllm import Vllm
from cowest.errors import ModelCallError, StageError
from cowest.models.openai import OpenAIChatModel
from cowest.protocols import ChatModel, Reporter
from cowest.recipe.models import EngineOptions, LocalModelConfig
from cowest.run.progress import QuietReporter
from cowest.types import Completion, Message, ModelRef, Sampling

PROGRAMS: Final[dict[str, Program]] = {"vllm": Vllm(), "llamacpp": LlamaCpp()}
BROKEN: Final = frozenset({"connection", "timeout", "truncated", "http_500", "http_502", "http_503", "server_error"})
"""How a call fails whose server dies under it."""
ANSWER_S: Final = 1800.0
"""So long an answer may take: requests wait in the server's own queue, and a CPU is slow."""


class ManagedChatModel:
    """A :class:`cowest.protocols.ChatModel` behind a server that cowest starts, restarts and ends.

    A call whose server dies is asked again when that is up again. Raises StageError of kind ``engine`` where it cannot be had
    (ModelCallError of that kind where its process lasts), and ModelCallError as :class:`cowest.models.openai.OpenAIChatModel` does.
    """

    def __init__(self, program: Program, wanted: Wanted, servers: Servers, label: str) -> None:
        self._program, self._wanted, self._servers, self._label = program, wanted, servers, label
        self._server: Server | None = None
        self._client: tuple[Address, OpenAIChatModel] | None = None
        self._extra: dict[str, JsonValue] | None = None

    @property
    def name(self) -> str:
        """The last part of the weights' path."""
        return Path(self._wanted.adapter or self._wanted.base).name

    async def start(self) -> None:
        """Have the server up before the first call. Raises StageError."""
        await self._asked_at()

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """One answer."""
        while True:
            try:
                at, client, server = await self._asked_at()
            except StageError as error:
                if self._servers.lasting:
                    raise ModelCallError("engine", str(error)) from None
                raise
            try:
                return await client.generate(messages, sampling)
            except ModelCallError as error:
                failure = error
            if failure.kind not in BROKEN or not await server.gone(at.start):
                raise failure

    async def aclose(self) -> None:
        """Let the server go; it ends when another needs its room, or with the run. May be called twice."""
        (server, self._server), (found, self._client) = (self._server, None), (self._client, None)
        if server is not None:
            self._servers.left(server)
        if found is not None:
            await found[1].aclose()

    async def _asked_at(self) -> tuple[Address, OpenAIChatModel, Server]:
        if self._server is None:
            self._server = self._servers.taken(self._program, self._wanted, self._label)
        server = self._server
        at = await server.address(self._wanted.adapter)
        if self._client is None or self._client[0] != at:
            before, self._client = self._client, (at, self._new_client(at))
            if before is not None:
                await before[1].aclose()
        return at, self._client[1], server

    def _new_client(self, at: Address) -> OpenAIChatModel:
        if self._extra is None:
            self._extra = self._program.extra(self._wanted)
        return OpenAIChatModel(
            base_url=at.url,
            model=at.model,
            api_key=at.key,
            concurrency=self._wanted.at_once,
            timeout_s=ANSWER_S,
            max_attempts=2,
            backoff_s=0.2,
            extra=self._extra,
            name=self.name,
        )


def window_of(options: EngineOptions, own: int | None) -> int:
    """A server's window in tokens: what the recipe says, and at most the model's ``own`` (None: not known)."""
    return min(options.max_model_len or MOST_WINDOW, own or sys.maxsize)


class _Ending(ManagedChatModel):
    """One whose servers end with it."""

    async def aclose(self) -> None:
        await super().aclose()
        await self._servers.end_all()


class Managed:
    """A :class:`cowest.protocols.Engine` that is a server which cowest starts."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def check(self, where: str, config: LocalModelConfig) -> None:
        """Raises ConfigError or MissingExtraError where it cannot serve the model, or is not installed."""
        self.program.check(where, config)

    def open(self, ref: ModelRef, *, device: str, dtype: str, batch_size: int) -> ChatModel:
        """A model with a server of its own, which ends with it."""
        config = LocalModelConfig(
            kind="local", model=ref.base, device=device, dtype=dtype, batch_size=batch_size, engine=self.program.name
        )  # fmt: skip
        return self.serve(config, ref)

    def serve(
        self,
        config: LocalModelConfig,
        ref: ModelRef,
        servers: Servers | None = None,
        label: str = "model",
        window: int | None = None,
    ) -> ManagedChatModel:
        """A model on these weights; nothing is started before it is asked. Without ``servers`` its own end with it.

        ``window`` (tokens) is the model's, where that is known: the server's is at most that.
        """
        wanted = Wanted(
            base=self.program.base(config, ref),
            adapter=ref.adapter,
            python=python_of(config),
            device=config.device,
            dtype=config.dtype,
            at_once=config.batch_size,
            window=window_of(config.engine_options, window),
            options=config.engine_options,
        )
        if servers is None:
            return _Ending(self.program, wanted, Servers(Path("engines"), QuietReporter()), label)
        return ManagedChatModel(self.program, wanted, servers, label)


@asynccontextmanager
async def managed(
    engine: str,
    model: str,
    *,
    adapter: str | None = None,
    python: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 64,
    options: EngineOptions | None = None,
    logs: Path = Path("engines"),
    reporter: Reporter | None = None,
    window: int | None = None,
) -> AsyncIterator[ManagedChatModel]:
    """A managed engine (``vllm`` or ``llamacpp``) outside a run: up and answering when this is entered, ended when it is left.

    ``model``: a folder or hub name (vllm), a GGUF file (llamacpp). ``python``: the engine's; ``logs``: the folder for its log.
    Raises ConfigError or MissingExtraError (nothing was started), StageError (it did not start).
    """
    options = options or EngineOptions()
    config = LocalModelConfig(
        kind="local", model=model, adapter=adapter, engine=engine, engine_python=python, device=device, dtype=dtype,
        batch_size=batch_size, engine_options=options,
    )  # fmt: skip
    found = Managed(PROGRAMS[engine])
    found.check("model", config)
    servers = Servers(logs, reporter or QuietReporter())
    opened = found.serve(config, ModelRef(base=model, adapter=adapter), servers, engine, window)
    try:
        await opened.start()
        yield opened
    finally:
        await opened.aclose()
        await asyncio.shield(servers.end_all())
