"""Whether a recipe can be run here: its packages and models, and whether its endpoints answer. Nothing is paid unless asked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from cowest.assembly.here import check_here
from cowest.assembly.opened import ledger_path, sources_of
from cowest.assembly.prepare import check_installed
from cowest.assembly.sources import Source
from cowest.assembly.sources.endpoint import EndpointSource
from cowest.doctor.findings import Finding, State
from cowest.errors import CowestError
from cowest.ledger.ledger import Ledger, Limits, purpose
from cowest.models.address import address_of, secrets_of
from cowest.models.ledgered import LedgeredChatModel
from cowest.models.transport import HttpReply, Timeouts, Transport, TransportError
from cowest.recipe.config import RunConfig
from cowest.types import Message, Sampling, Usage

TIMEOUTS: Final = Timeouts(total=10.0, connect=5.0, stall=10.0)
QUESTION: Final = (Message(role="user", content="Reply with the word: ready"),)
SAMPLING: Final = Sampling(temperature=0.0, max_tokens=64)
MOST: Final = Usage(input_tokens=40, output_tokens=SAMPLING.max_tokens)
"""What the test call can cost at most: a chat template adds some tokens to the question's."""


def _finding(name: str, state: State, said: str, todo: str | None = None) -> Finding:
    return Finding(section="recipe", name=name, state=state, said=said, todo=todo)


def local(config: RunConfig) -> Iterator[Finding]:
    """The packages, models, files and keys that the recipe needs on this machine."""
    try:
        check_installed(config)
    except CowestError as error:
        yield _finding("packages", "broken", str(error))
        yield _finding("models", "note", "can be told when the packages are there")
    else:
        yield _finding("packages", "ok", "all that a run needs")
        try:
            check_here(config)
        except CowestError as error:
            yield _finding("models", "broken", str(error))
        else:
            yield _finding("models", "ok", "on this machine, behind endpoints, or fetched when they are wanted")
    for where, source in sources_of(config):
        try:
            source.check(where)
        except CowestError as error:
            yield _finding(where, "broken", str(error))


async def reached(config: RunConfig) -> list[Finding]:
    """Ask each endpoint of the recipe for its list of models, once, all at the same time: that costs nothing anywhere."""
    return list(await asyncio.gather(*(_reach(where, source) for where, source in _endpoints(config))))


def _endpoints(config: RunConfig) -> list[tuple[str, EndpointSource]]:
    """Those with what they need to be asked, each model of an address once; ``local`` has told of the others."""
    found: dict[tuple[str, str], tuple[str, EndpointSource]] = {}
    for where, source in sources_of(config):
        if isinstance(source, EndpointSource) and _ready(where, source):
            found.setdefault((source.config.base_url, source.name), (where, source))
    return list(found.values())


def _ready(where: str, source: Source) -> bool:
    try:
        source.check(where)
    except CowestError:
        return False
    return True


async def _reach(where: str, source: EndpointSource) -> Finding:
    address = address_of(source.config.base_url, secrets_of(source.config, source.folder, where))
    try:
        transport = Transport(address.url, address.headers, TIMEOUTS, source.config.ca_file)
    except CowestError as error:
        return _finding(where, "broken", str(error))
    try:
        return _meaning(where, source, address.shown, await transport.request("GET", "models"))
    except TransportError as error:
        return _finding(where, "broken", f"{address.shown}: {error}", _mend(where, error))
    finally:
        await transport.aclose()


def _mend(where: str, error: TransportError) -> str:
    if error.kind == "tls":
        return f"give {where}.ca_file, or the address with http:// where the server speaks no TLS"
    return f"start the server, or correct {where}.base_url"


def _meaning(where: str, source: EndpointSource, shown: str, reply: HttpReply) -> Finding:
    if reply.status in (401, 403):
        key = source.config.api_key_env
        todo = (
            f"check the key in {key}" if key else f"this server wants a key: name its variable in {where}.api_key_env"
        )
        return _finding(where, "broken", f"{shown} refuses with status {reply.status}", todo)
    if reply.status >= 500:
        return _finding(
            where, "broken", f"{shown} answers with status {reply.status}", "try again; see the server's log"
        )
    names = _names(reply) if reply.status == 200 else None
    if names is None:
        return _finding(where, "note", f"{shown} answers, and lists no models (status {reply.status})")
    if source.name not in names:
        said = f"{shown} lists {len(names)} models, and none is called {source.name}"
        return _finding(where, "warning", said, f"correct {where}.model, if the server does not take other names")
    return _finding(where, "ok", f"{shown} answers and has {source.name}")


def _names(reply: HttpReply) -> set[str] | None:
    try:
        listed = json.loads(reply.body)["data"]
        return {str(model["id"]) for model in listed}
    except (ValueError, TypeError, LookupError, RecursionError):  # no list of models, whatever it is
        return None


async def called(config: RunConfig, out: Path, tell: Callable[[str], None]) -> list[Finding]:
    """One short call to each model that is paid for, through the run's ledger and budget; ``tell`` gets the price before."""
    if not (endpoints := _endpoints(config)):
        return [_finding("call", "note", "no endpoint of this recipe can be asked")]
    found = []
    for where, source in endpoints:
        price = source.price
        cost = "its price is not known" if price is None else f"at most {price.cost(MOST):.6f} USD"
        tell(f"{where}: asking {source.name} one question of a few words ({cost})")
        found.append(await _call(where, source, config, out))
    return found


async def _call(where: str, source: EndpointSource, config: RunConfig, out: Path) -> Finding:
    path = ledger_path(config, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    limits = Limits(usd=config.budget_usd, calls=config.budget_calls, tokens=config.budget_tokens)
    ledger = Ledger(path, config.name, limits)
    try:
        model = LedgeredChatModel(
            source.open(budget=ledger.budget(source.price)),
            ledger,
            model=source.name,
            cache="off",
            price=source.price,
            extra=source.extra,
        )
        told = purpose.set("doctor")
        try:
            answer = await model.generate(QUESTION, SAMPLING)
        finally:
            purpose.reset(told)
            await model.aclose()
    except CowestError as error:
        return _finding(f"{where}: call", "broken", str(error))
    finally:
        ledger.close()
    usage = answer.usage
    paid = "" if source.price is None else f", {source.price.cost(usage):.6f} USD"
    said = f"answered in {answer.latency_s:.1f} s: {usage.input_tokens} + {usage.output_tokens} tokens{paid}; in {path}"
    if not answer.text.strip():
        return _finding(
            f"{where}: call", "note", f"{said}; its {usage.output_tokens} tokens held no text (it thinks longer)"
        )
    return _finding(f"{where}: call", "ok", said)
