"""A model that a script hands over as a Python object."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import JsonValue

from cowest.assembly.sources.protocol import no_batch
from cowest.errors import ConfigError
from cowest.ledger.ledger import Ledger
from cowest.ledger.prices import Price
from cowest.models.window import Window
from cowest.protocols import Budget, ChatModel
from cowest.recipe.models import ObjectModelConfig
from cowest.run.freshness import Depends
from cowest.types import ModelRef


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
        raise no_batch(self.name)
