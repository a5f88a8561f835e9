"""``cowest serve``: the options, and what is printed at the start."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional, TypeAlias

import typer

from cowest.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from cowest.server.settings import Settings

# typer reads these annotations, and knows Optional only
Target: TypeAlias = Annotated[
    Path, typer.Argument(metavar="RUN_OR_RECIPE", help="A finished run, or a recipe.", show_default=False)
]
Host: TypeAlias = Annotated[str, typer.Option(help="Address to listen on; one that others reach needs --api-key-env.")]
Port: TypeAlias = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks a free one.")]
ApiKeyEnv: TypeAlias = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Variable (or line of a .env file) with the key that clients must send; several with commas."),
]
StrongDown: TypeAlias = Annotated[
    Literal["weak", "error"],
    typer.Option(help="When the strong model is down: the draft as the answer, or an error."),
]
DraftDeadline: TypeAlias = Annotated[
    float, typer.Option(help="Seconds for the draft; then the strong model goes alone.")
]
Deadline: TypeAlias = Annotated[float, typer.Option(help="Seconds for a whole answer, or until its stream begins.")]
Queue: TypeAlias = Annotated[
    int, typer.Option(min=0, help="Requests that may wait beyond strong.concurrency; then 429.")
]
Rate: TypeAlias = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(help="Most requests a minute for each key."),
]
MaxBody: TypeAlias = Annotated[float, typer.Option(help="Largest body of a request, in MiB.")]
MaxMessages: TypeAlias = Annotated[int, typer.Option(min=1, help="Most messages of a request.")]
MaxTokens: TypeAlias = Annotated[int, typer.Option(min=1, help="Most output tokens that may be asked for.")]
AnswerTokens: TypeAlias = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        min=1,
        help="Output tokens where the client names no limit; unset: evaluate.answer.max_tokens where the recipe sets it, else "
        "the model's own limit.",
        show_default=False,
    ),
]
RouteName: TypeAlias = Annotated[
    str, typer.Option("--route", help="Who answers under a collaboration's name: both, strong, weak, or a plug-in's.")
]
Systems: TypeAlias = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="Serve these systems only, such as collab_aligned,strong; may name rows of `cowest table`, such as bm25."
    ),
]
Guarded: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--guard", help="Answer as `cowest guard RUN` has certified: weak alone, strong alone or both, by the query."
    ),
]
Examples: TypeAlias = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        min=0,
        help="Offer so many test questions on the page (default: 4 of a lab task, else none).",
        show_default=False,
    ),
]
Cors: TypeAlias = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(metavar="ORIGIN", help="Let pages of this origin call the endpoint from a browser."),
]
Collect: TypeAlias = Annotated[
    bool, typer.Option("--collect", help="Keep every exchange in the run's ledger file, and take feedback on it.")
]
Redact: TypeAlias = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(metavar="MODULE:FUNCTION", help="Every text goes through this before a model or the disk gets it."),
]
Drain: TypeAlias = Annotated[float, typer.Option(help="Seconds that requests under way get after SIGTERM.")]
JsonLog: TypeAlias = Annotated[bool, typer.Option("--json-log", help="Log lines as JSON objects.")]


@dataclass(frozen=True, slots=True)
class _Start:
    """What is served, where, and beside what."""

    target: Path
    host: str
    port: int
    api_key_env: str | None
    systems: list[str]
    answer_tokens: int | None
    route: str
    collect: bool
    redact: str | None
    drain_s: float
    examples: int | None


def serve(
    target: Target,
    host: Host = "127.0.0.1",
    port: Port = 8080,
    api_key_env: ApiKeyEnv = None,
    strong_down: StrongDown = "weak",
    draft_deadline_s: DraftDeadline = 10.0,
    deadline_s: Deadline = 120.0,
    queue: Queue = 256,
    rate: Rate = None,
    max_body_mb: MaxBody = 16.0,
    max_messages: MaxMessages = 1000,
    max_tokens: MaxTokens = 32_768,
    answer_tokens: AnswerTokens = None,
    route: RouteName = "both",
    systems: Systems = None,
    guard: Guarded = False,
    examples: Examples = None,
    cors: Cors = None,
    collect: Collect = False,
    redact: Redact = None,
    drain_s: Drain = 30.0,
    json_log: JsonLog = False,
) -> None:
    """Serve a run (or a recipe) as an OpenAI-compatible endpoint. Prints the base URL on stdout."""
    if find_spec("prometheus_client") is None:
        raise MissingExtraError("cowest serve needs prometheus_client: pip install 'cowest[serve]'")
    from cowest.server.runner import log_to_stderr
    from cowest.server.settings import Settings

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
    if answer_tokens is not None and answer_tokens > max_tokens:
        raise ConfigError(f"--answer-tokens {answer_tokens}: is more than --max-tokens ({max_tokens}) allows a client")
    named = [name.strip() for name in systems.split(",")] if systems else []
    if guard:
        named = list(dict.fromkeys(["guarded", *(named or ["weak", "strong", "cascade"])]))
    start = _Start(target, host, port, api_key_env, named, answer_tokens, route, collect, redact, drain_s, examples)
    log_to_stderr(json_log)
    asyncio.run(_serve(start, settings))


async def _serve(start: _Start, settings: Settings) -> None:
    """Open the models and serve until a signal. Raises ConfigError for what cannot be served as it is asked for."""
    from cowest.assembly.routes import ROUTES
    from cowest.server.app import Server
    from cowest.server.auth import Keys
    from cowest.server.collector import open_collector
    from cowest.server.metrics import Metrics
    from cowest.server.opening import open_served
    from cowest.server.redaction import Redactor, load_hook
    from cowest.server.runner import check_address, run_server

    keys = Keys(_keys(start.api_key_env))
    check_address(start.host, bool(keys))
    redactor = Redactor(load_hook(start.redact)) if start.redact else None
    _check_redaction(start)
    metrics, route = Metrics(), ROUTES.find(start.route, "--route")
    opened = open_served(
        start.target,
        settings,
        metrics.attempted,
        start.systems,
        tokens=start.answer_tokens,
        route=route,
        examples=start.examples,
    )
    metrics.guards(opened.guarding)
    try:
        with open_collector(opened.ledger, opened.run, metrics, redactor, start.collect) as collector:
            server = Server(
                opened.served, opened.settings, keys, opened.breakers, metrics, redactor=redactor, collector=collector
            )
            kept = opened.ledger if start.collect else None

            def ready(url: str) -> None:
                _greet(url, list(opened.served), bool(keys), kept)

            await run_server(server, start.host, start.port, start.drain_s, ready)
    finally:
        await opened.aclose()


def _keys(variable: str | None) -> list[str]:
    """The keys that clients may send. Raises ConfigError for a variable that is not set, and for a key in place of its name."""
    from cowest.models.keys import find_key
    from cowest.recipe.addresses import variable_problem

    if variable and (problem := variable_problem(variable)):
        raise ConfigError(f"--api-key-env: {problem}")
    found = find_key(variable) if variable else None
    if variable and not found:
        raise ConfigError(f"--api-key-env {variable}: not set, neither in the environment nor in a .env file here")
    return [key.strip() for key in (found or "").split(",") if key.strip()]


def _check_redaction(start: _Start) -> None:
    from cowest.systems.registry import find_systems

    beyond = [spec.name for spec in find_systems(start.systems, "--systems") if not spec.live]
    if start.redact and beyond:
        raise ConfigError(f"--redact: the hook would not see what {beyond[0]} writes and looks up within; leave it out")


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
