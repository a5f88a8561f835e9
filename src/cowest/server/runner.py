"""Listening, and leaving in good order: SIGTERM drains, a second signal ends at once."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from aiohttp import web

from cowest.errors import ConfigError
from cowest.server.app import Server
from cowest.server.auth import is_loopback
from cowest.server.connection import connections

BACKLOG: Final = 1024


def check_address(host: str, has_key: bool) -> None:
    """Raise ConfigError for an address that others can reach, where no key keeps them out."""
    if not has_key and not is_loopback(host):
        raise ConfigError(
            f"--host {host}: others can reach this address, and there is no API key. Run `export COWEST_API_KEY=...` and add "
            "--api-key-env COWEST_API_KEY, or leave --host at 127.0.0.1."
        )


@asynccontextmanager
async def listening(server: Server, host: str, port: int) -> AsyncIterator[str]:
    """Serve within the block, which gets the base URL (up to /v1). Raises ConfigError where the address cannot be had."""
    check_address(host, bool(server.keys))
    runner = web.AppRunner(
        server.application(), access_log=None, handle_signals=False, handler_cancellation=True, shutdown_timeout=1.0
    )
    await runner.setup()
    try:
        assert runner.server is not None
        make, loop = connections(runner.server), asyncio.get_running_loop()
        try:
            listener = await loop.create_server(make, host, port, backlog=BACKLOG)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"cannot listen on {host}:{port} ({error}); choose another --host or --port") from None
        shown = f"[{host}]" if ":" in host else host
        try:
            yield f"http://{shown}:{listener.sockets[0].getsockname()[1]}/v1"
        finally:
            listener.close()
    finally:
        await runner.cleanup()


async def drain(server: Server, most_s: float) -> bool:
    """Take nothing new and wait until nothing is under way, up to ``most_s`` seconds; whether all of it finished."""
    server.draining = True
    until = time.monotonic() + most_s
    while server.admission.inside and time.monotonic() < until:
        await asyncio.sleep(0.05)
    return not server.admission.inside


async def run_server(server: Server, host: str, port: int, drain_s: float, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain; ``ready`` gets the base URL once it answers."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    async with listening(server, host, port) as url:
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(NotImplementedError):  # Windows has no such handlers, and ends at once
                loop.add_signal_handler(number, stop.set)
        ready(url)
        await stop.wait()
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(NotImplementedError):
                loop.remove_signal_handler(number)  # the next one ends the process
        if not await drain(server, drain_s):
            logging.getLogger("cowest.server").warning("requests were cut off after %g s of draining", drain_s)


class LineFormatter(logging.Formatter):
    """One line a record: ``key=value`` pairs, or a JSON object. Holds what the server says of a request, never its texts."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields = {"at": round(record.created, 3), "level": record.levelname.lower(), "event": record.getMessage()}
        fields |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            fields["error"] = whence(record.exc_info[1])
        if self._as_json:
            return json.dumps(fields)
        return " ".join(f"{key}={value}" for key, value in fields.items() if value is not None)


def whence(error: BaseException) -> str:
    """An exception and its causes by name and place. Their messages stay out: they can quote what a client or a model wrote."""
    told: list[str] = []
    current: BaseException | None = error
    while current is not None and len(told) < 5:
        frames = traceback.extract_tb(current.__traceback__)[-4:]
        places = " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
        told.append(f"{type(current).__name__} at {places}")
        current = current.__cause__ or current.__context__
    return "; from ".join(told)


def log_to_stderr(as_json: bool) -> None:
    """The server's log lines go to stderr, with them those of the libraries that would else print an exception whole."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(as_json))
    for name in ("cowest", "aiohttp", "asyncio"):
        log = logging.getLogger(name)
        log.setLevel(logging.INFO)
        log.addHandler(handler)
        log.propagate = False
