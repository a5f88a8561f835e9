"""A model as a recipe or a script describes it: all that can be known and done before it is opened, whatever kind it is.

The one place that knows every kind of model. Elsewhere a source's capabilities are asked for (``trainable``, ``paid``, ``window``),
and never its kind.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue

from cowest.assembly.engines import ENGINES
from cowest.assembly.places import model_path
from cowest.errors import ConfigError, ModelNotFoundError
from cowest.ledger.ledger import Ledger
from cowest.ledger.prices import Price, price_of
from cowest.models.address import address_of, secrets_of
from cowest.models.dialect import Quirks
from cowest.models.tokens import token_counter
from cowest.models.window import Window
from cowest.protocols import Budget, ChatModel
from cowest.recipe.models import (
    LocalModelConfig,
    ModelConfig,
    ObjectModelConfig,
    OpenAIModelConfig,
    ScriptedModelConfig,
)
from cowest.recipe.outcome import settings_of
from cowest.run.freshness import UNKNOWN, Depends, content
from cowest.run.identity import hash_model
from cowest.types import ModelRef


class Source(Protocol):
    """What is known of a model before it is opened.

    ``trainable``: its weights are here. ``paid``: its calls go through the ledger, the budget and the estimate. ``concurrency``:
    most calls under way. ``many``: most samples that one call can give. ``tokenizer``: the folder or hub name of its tokenizer.
    ``price``: None where it is not known; ``batch_price`` is that of the provider's batch API. ``per_minute``: most requests, and
    most tokens, a minute (None: no limit is kept). ``extra`` are more fields of its requests.
    """

    @property
    def name(self) -> str: ...

    @property
    def trainable(self) -> bool: ...

    @property
    def paid(self) -> bool: ...

    @property
    def concurrency(self) -> int: ...

    @property
    def many(self) -> int: ...

    @property
    def tokenizer(self) -> str | None: ...

    @property
    def price(self) -> Price | None: ...

    @property
    def batch_price(self) -> Price | None: ...

    @property
    def batch_requests(self) -> int | None:
        """Most requests that one batch takes; None where there is no batch API."""
        ...

    @property
    def per_minute(self) -> tuple[float | None, float | None]: ...

    @property
    def extra(self) -> dict[str, JsonValue]: ...

    def identity(self, prefix: str) -> Depends:
        """What its answers follow from: not its address, concurrency, price or device."""
        ...

    def check(self, where: str) -> None:
        """Look for its files or its key. Raises ConfigError or ModelNotFoundError; ``where`` is its section of the recipe."""
        ...

    def window(self, answer_tokens: int) -> Window | None:
        """The room for a prompt: the model's window less that for its answer; None where the window is not known."""
        ...

    def base(self) -> ModelRef:
        """Its weights as they are before any training here, or the name that it is served by."""
        ...

    def open(self, ref: ModelRef | None = None, budget: Budget | None = None) -> ChatModel:
        """The live model; with ``ref``: other weights of it. ``budget`` is asked before each attempt that costs something."""
        ...

    def open_batch(self, ledger: Ledger) -> ChatModel:
        """The model through its provider's batch API. Raises ConfigError where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class LocalSource:
    """Weights on this machine, which an engine lets answer."""

    config: LocalModelConfig
    trainable: bool = True
    paid: bool = False
    many: int = 1
    price: Price | None = None
    batch_price: Price | None = None
    batch_requests: int | None = None
    per_minute: tuple[float | None, float | None] = (None, None)
    extra: dict[str, JsonValue] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's name, or the last part of a hub name."""
        return Path(self.config.model).name

    @property
    def concurrency(self) -> int:
        """As many as are generated together."""
        return self.config.batch_size

    @property
    def tokenizer(self) -> str | None:
        """Beside the weights."""
        return model_path(self.config.model)

    def identity(self, prefix: str) -> Depends:
        """Settings, and the contents of the weights where they are here."""
        parts = {f"{prefix}.model": self.config.model, f"{prefix}.adapter": self.config.adapter}
        found = settings_of(prefix, self.config, leave_out=("model", "adapter"))
        return found | Depends({key: None if name is None else _weights(name) for key, name in parts.items()})

    def check(self, where: str) -> None:
        """Its folder must be there, and its engine."""
        model_path(self.config.model)
        ENGINES.find(self.config.engine, f"{where}.engine")

    def window(self, answer_tokens: int) -> Window | None:
        """From its config.json. A hub name's is not known here: its model says so itself when a prompt is too long."""
        folder = model_path(self.config.model)
        return _window(self.config.model, _positions(folder), folder, answer_tokens)

    def base(self) -> ModelRef:
        """The weights that the recipe names."""
        return ModelRef(base=model_path(self.config.model), adapter=self.config.adapter)

    def open(self, ref: ModelRef | None = None, budget: Budget | None = None) -> ChatModel:
        """Through the engine that the recipe names. Raises MissingExtraError or ModelNotFoundError."""
        found, c = ref or self.base(), self.config
        placed = found.model_copy(update={"base": model_path(found.base)})
        engine = ENGINES.find(c.engine, "engine")
        return engine.open(placed, device=c.device, dtype=c.dtype, batch_size=c.batch_size)

    def open_batch(self, ledger: Ledger) -> ChatModel:
        """There is no such API."""
        raise _no_batch(self.name)


@dataclass(frozen=True, slots=True)
class EndpointSource:
    """A model behind an OpenAI-compatible endpoint; ``folder`` may hold a .env file with its key."""

    config: OpenAIModelConfig
    folder: Path = Path()
    trainable: bool = False
    paid: bool = True

    @property
    def name(self) -> str:
        """What the endpoint calls it."""
        return self.config.model

    @property
    def concurrency(self) -> int:
        """Most requests under way."""
        return self.config.concurrency

    @property
    def many(self) -> int:
        """Most samples bought in one request."""
        return self.config.samples_per_call

    @property
    def tokenizer(self) -> str | None:
        """As the recipe has it."""
        return self.config.tokenizer

    @property
    def price(self) -> Price | None:
        """The recipe's, else the table's."""
        return price_of(self.config.model, self.config.price)

    @property
    def batch_price(self) -> Price | None:
        """Less the provider's discount."""
        return self.price and self.price.discounted(self.config.batch.discount)

    @property
    def batch_requests(self) -> int | None:
        """As the recipe has it."""
        return self.config.batch.max_requests

    @property
    def per_minute(self) -> tuple[float | None, float | None]:
        """The rate limits."""
        return self.config.requests_per_minute, self.config.tokens_per_minute

    @property
    def extra(self) -> dict[str, JsonValue]:
        """As the recipe has it."""
        return self.config.extra

    def identity(self, prefix: str) -> Depends:
        """Its name and the extra fields of its requests."""
        return settings_of(prefix, self.config)

    def check(self, where: str) -> None:
        """Its key and its other variables must be there, and its address must be one."""
        secrets_of(self.config, self.folder, where)

    def window(self, answer_tokens: int) -> Window | None:
        """As the recipe has it."""
        return _window(self.config.model, self.config.window, self.config.tokenizer, answer_tokens)

    def base(self) -> ModelRef:
        """Its name."""
        return ModelRef(base=self.config.model)

    def open(self, ref: ModelRef | None = None, budget: Budget | None = None) -> ChatModel:
        """A client of the endpoint. Raises ConfigError where its key is missing."""
        from cowest.models.openai import OpenAIChatModel

        c = self.config
        return OpenAIChatModel(
            base_url=c.base_url,
            model=c.model,
            api_key=secrets_of(c, self.folder).key,
            folder=self.folder,
            concurrency=c.concurrency,
            requests_per_minute=c.requests_per_minute,
            tokens_per_minute=c.tokens_per_minute,
            timeout_s=c.timeout_s,
            connect_timeout_s=c.connect_timeout_s,
            stall_timeout_s=c.stall_timeout_s,
            max_attempts=c.max_attempts,
            stream=c.stream,
            quirks=_quirks(c),
            samples_per_call=c.samples_per_call,
            extra=c.extra,
            ca_file=c.ca_file,
            budget=budget,
        )

    def open_batch(self, ledger: Ledger) -> ChatModel:
        """The same through the provider's batch API, which enters its answers itself."""
        from cowest.models.batch import BatchChatModel
        from cowest.models.dialect import dialect_of
        from cowest.models.transport import Timeouts, Transport

        c, secrets = self.config, secrets_of(self.config, self.folder)
        address = address_of(c.base_url, secrets)
        timeouts = Timeouts(c.timeout_s, c.connect_timeout_s, c.stall_timeout_s)
        return BatchChatModel(
            Transport(address.url, address.headers, timeouts, c.ca_file),
            ledger,
            model=c.model,
            dialect=dialect_of(c.model, _quirks(c)),
            extra=c.extra,
            price=self.batch_price,
            secrets=secrets,
            max_requests=c.batch.max_requests,
            poll_s=c.batch.poll_s,
        )


@dataclass(frozen=True, slots=True)
class ScriptedSource:
    """A deterministic model for tests and for trying a recipe."""

    config: ScriptedModelConfig
    name: str = "scripted"
    trainable: bool = False
    paid: bool = False
    concurrency: int = 64
    many: int = 1
    tokenizer: str | None = None
    price: Price | None = None
    batch_price: Price | None = None
    batch_requests: int | None = None
    per_minute: tuple[float | None, float | None] = (None, None)
    extra: dict[str, JsonValue] = field(default_factory=dict)

    def identity(self, prefix: str) -> Depends:
        """Its rules."""
        return settings_of(prefix, self.config)

    def check(self, where: str) -> None:
        """There is nothing to look for."""

    def window(self, answer_tokens: int) -> Window | None:
        """It takes any prompt."""
        return None

    def base(self) -> ModelRef:
        """It has no weights."""
        return ModelRef(base=self.name)

    def open(self, ref: ModelRef | None = None, budget: Budget | None = None) -> ChatModel:
        """The model itself."""
        from cowest.models.scripted import ScriptedChatModel, ScriptRule

        rules = [ScriptRule(contains=r.contains, reply=r.reply) for r in self.config.rules]
        return ScriptedChatModel(rules, default=self.config.default)

    def open_batch(self, ledger: Ledger) -> ChatModel:
        """There is no such API."""
        raise _no_batch(self.name)


class _Lasting:
    """A Python object of the caller's: it is not cowest's to close."""

    def __init__(self, model: ChatModel) -> None:
        self.name, self.generate = model.name, model.generate

    async def aclose(self) -> None:
        """Leave it open."""


@dataclass(frozen=True, slots=True)
class ObjectSource:
    """A :class:`cowest.protocols.ChatModel` that a script has handed over; it is known by its name. None: it was not given."""

    config: ObjectModelConfig
    model: ChatModel | None = None
    trainable: bool = False
    paid: bool = False
    concurrency: int = 64
    many: int = 1
    tokenizer: str | None = None
    price: Price | None = None
    batch_price: Price | None = None
    batch_requests: int | None = None
    per_minute: tuple[float | None, float | None] = (None, None)
    extra: dict[str, JsonValue] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the object calls itself."""
        return self.config.name

    def identity(self, prefix: str) -> Depends:
        """Its name."""
        return Depends({f"{prefix}.model": self.name})

    def check(self, where: str) -> None:
        """It must have been handed over."""
        if self.model is None:
            raise ConfigError(
                f"{where}: {self.name!r} was a Python object; hand it over again: "
                f"cowest.api.run(recipe, {where.rpartition('.')[2]}=...)"
            )

    def window(self, answer_tokens: int) -> Window | None:
        """It is not known."""
        return None

    def base(self) -> ModelRef:
        """Its name."""
        return ModelRef(base=self.name)

    def open(self, ref: ModelRef | None = None, budget: Budget | None = None) -> ChatModel:
        """The object; who made it closes it."""
        self.check("model")
        assert self.model is not None
        return _Lasting(self.model)

    def open_batch(self, ledger: Ledger) -> ChatModel:
        """There is no such API."""
        raise _no_batch(self.name)


def _no_batch(name: str) -> ConfigError:
    return ConfigError(f"feedback.mode: batch is for an endpoint (kind: openai) with a batch API, which {name} has not")


def source_of(config: ModelConfig, folder: Path = Path(), given: ChatModel | None = None) -> Source:
    """The source of a section of the recipe; ``given`` is the object that it names, where it names one."""
    if isinstance(config, LocalModelConfig):
        return LocalSource(config)
    if isinstance(config, OpenAIModelConfig):
        return EndpointSource(config, folder)
    if isinstance(config, ObjectModelConfig):
        return ObjectSource(config, given)
    return ScriptedSource(config)


def build_model(config: ModelConfig, folder: Path = Path(), budget: Budget | None = None) -> ChatModel:
    """A model of any kind. Raises ConfigError, ModelNotFoundError or MissingExtraError when it cannot be had."""
    return source_of(config, folder).open(budget=budget)


def _quirks(config: OpenAIModelConfig) -> Quirks:
    return Quirks(config.token_limit, config.temperature, config.seed, config.system_prompt, config.structured)


def _weights(name: str) -> JsonValue:
    try:
        place = model_path(name)
    except ModelNotFoundError:
        return UNKNOWN  # a finished run is read where its models are not
    return content(hash_model(place), Path(name).name)


def _window(name: str, tokens: int | None, tokenizer: str | None, answer_tokens: int) -> Window | None:
    if tokens is None:
        return None
    if tokens <= answer_tokens:
        raise ConfigError(f"{name}: max_tokens {answer_tokens} leaves no room in a window of {tokens} tokens")
    return Window(token_counter(tokenizer)[0], tokens - answer_tokens)


def _positions(folder: str) -> int | None:
    file = Path(folder) / "config.json"
    if not file.exists():
        return None
    described = json.loads(file.read_text(encoding="utf-8"))
    inner = described.get("text_config", described)
    found = inner.get("max_position_embeddings")
    return found if isinstance(found, int) else None
