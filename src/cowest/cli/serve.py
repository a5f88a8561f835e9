"""``cowest serve``: the options, and what is printed at the start."""

from __future__ import annotations

import asyncio
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, Optional, get_args

import typer

from cowest.errors import ConfigError, MissingExtraError


def serve(
    target: Annotated[
        Path, typer.Argument(metavar="RUN_OR_RECIPE", help="A finished run, or a recipe.", show_default=False)
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; one that others reach needs --api-key-env.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")] = 8080,
    api_key_env: Annotated[
        Optional[str],  # noqa: UP045 - typer reads these annotations
        typer.Option(
            help="Variable (or line of a .env file) with the key that clients must send; several with commas."
        ),
    ] = None,
    strong_down: Annotated[
        Literal["weak", "error"],
        typer.Option(help="When the strong model is down: the draft as the answer, or an error."),
    ] = "weak",
    draft_deadline_s: Annotated[
        float, typer.Option(help="Seconds for the draft; then the strong model goes alone.")
    ] = 10.0,
    deadline_s: Annotated[float, typer.Option(help="Seconds for a whole answer, or until its stream begins.")] = 120.0,
    queue: Annotated[
        int, typer.Option(min=0, help="Requests that may wait beyond strong.concurrency; then 429.")
    ] = 256,
    rate: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Most requests a minute for each key."),
    ] = None,
    max_body_mb: Annotated[float, typer.Option(help="Largest body of a request, in MiB.")] = 16.0,
    max_messages: Annotated[int, typer.Option(min=1, help="Most messages of a request.")] = 1000,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most output tokens that may be asked for.")] = 32_768,
    systems: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Serve these systems only, such as collab_aligned,strong; may name rows of `cowest table`, such as bm25."
        ),
    ] = None,
    cors: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="ORIGIN", help="Let pages of this origin call the endpoint from a browser."),
    ] = None,
    collect: Annotated[
        bool, typer.Option("--collect", help="Keep every exchange in the run's ledger file, and take feedback on it.")
    ] = False,
    redact: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="MODULE:FUNCTION", help="Every text goes through this before a model or the disk gets it."
        ),
    ] = None,
    drain_s: Annotated[float, typer.Option(help="Seconds that requests under way get after SIGTERM.")] = 30.0,
    json_log: Annotated[bool, typer.Option("--json-log", help="Log lines as JSON objects.")] = False,
) -> None:
    """Serve a run (or a recipe) as an OpenAI-compatible endpoint. Prints the base URL on stdout."""
    if find_spec("prometheus_client") is None:
        raise MissingExtraError("cowest serve needs prometheus_client: pip install 'cowest[serve]'")
    from cowest.models.keys import find_key
    from cowest.recipe.config import SystemName
    from cowest.server.app import Server
    from cowest.server.auth import Keys
    from cowest.server.collector import open_collector
    from cowest.server.metrics import Metrics
    from cowest.server.opening import open_served
    from cowest.server.redaction import Redactor, load_hook
    from cowest.server.runner import check_address, log_to_stderr, run_server
    from cowest.server.settings import Settings

    found = find_key(api_key_env) if api_key_env else None
    if api_key_env and not found:
        raise ConfigError(f"--api-key-env {api_key_env}: not set, neither in the environment nor in a .env file here")
    keys = Keys([key.strip() for key in (found or "").split(",") if key.strip()])
    check_address(host, bool(keys))
    settings = Settings(
        strong_down=strong_down,
        draft_deadline_s=draft_deadline_s,
        deadline_s=deadline_s,
        queue=queue,
        rate_per_minute=rate,
        max_body_bytes=int(max_body_mb * 2**20),
        max_messages=max_messages,
        max_output_tokens=max_tokens,
        cors_origin=cors,
    )
    redactor = Redactor(load_hook(redact)) if redact else None
    named = [name.strip() for name in systems.split(",")] if systems else []
    if redactor is not None and (beyond := sorted(set(named) - {*get_args(SystemName)})):
        raise ConfigError(f"--redact: the hook would not see what {beyond[0]} writes and looks up within; leave it out")
    log_to_stderr(json_log)
    metrics = Metrics()

    async def go() -> None:
        opened = open_served(target, settings, metrics.attempted, named)
        try:
            with open_collector(opened.ledger, opened.run, metrics, redactor, collect) as collector:
                server = Server(
                    opened.served,
                    opened.settings,
                    keys,
                    opened.breakers,
                    metrics,
                    redactor=redactor,
                    collector=collector,
                )
                kept = opened.ledger if collect else None
                await run_server(
                    server, host, port, drain_s, lambda url: _greet(url, list(opened.served), bool(keys), kept)
                )
        finally:
            await opened.aclose()

    asyncio.run(go())


def _greet(url: str, models: list[str], keyed: bool, kept: Path | None) -> None:
    print(url, flush=True)
    key = ' -H "Authorization: Bearer $COWEST_API_KEY"' if keyed else ""
    body = f'{{"model": "{models[0]}", "messages": [{{"role": "user", "content": "..."}}]}}'
    lines = [
        "models: " + ", ".join(models),
        f"try: curl {url}/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'",
        f"page: {url.removesuffix('/v1')}/",
        *([] if kept is None else [f"collecting: exchanges and feedback are kept in {kept}"]),
    ]
    print("\n".join(lines), file=sys.stderr, flush=True)
