"""What is known of a model before it is opened, and what several kinds of it share."""

from __future__ import annotations

from typing import Protocol

from pydantic import JsonValue

from cowest.errors import ConfigError
from cowest.ledger.ledger import Ledger
from cowest.ledger.prices import Price
from cowest.models.tokens import token_counter
from cowest.models.window import Window
from cowest.protocols import Budget, ChatModel
from cowest.run.freshness import Depends
from cowest.types import ModelRef


class Source(Protocol):
    """What is known of a model before it is opened.

    ``trainable``: its weights are here. ``paid``: its calls go through the ledger, the budget and the estimate. ``concurrency``:
    most calls under way. ``many``: most samples that one call can give. ``tokenizer``: the folder or hub name of its tokenizer.
    ``reads_given``: it may be able to say how likely a text is that it is given (:class:`cowest.types.Given`); its first answer
    shows it. ``price``: None where it is not known; ``batch_price`` is that of the provider's batch API. ``per_minute``: most
    requests, and most tokens, a minute (None: no limit is kept). ``extra`` are more fields of its requests.
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
    def reads_given(self) -> bool: ...

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

    def notes(self) -> list[str]:
        """What there is to say of it before it is opened."""
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


def no_batch(name: str) -> ConfigError:
    """The error of a model that has no batch API."""
    return ConfigError(f"feedback.mode: batch is for an endpoint (kind: openai) with a batch API, which {name} has not")


def room_in(name: str, tokens: int | None, tokenizer: str | None, answer_tokens: int) -> Window | None:
    """The room for a prompt in a window of ``tokens``: what the answer leaves. Raises ConfigError where that is nothing."""
    if tokens is None:
        return None
    if tokens <= answer_tokens:
        raise ConfigError(f"{name}: max_tokens {answer_tokens} leaves no room in a window of {tokens} tokens")
    return Window(token_counter(tokenizer)[0], tokens - answer_tokens)
