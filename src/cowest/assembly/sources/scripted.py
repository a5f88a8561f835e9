"""A model that follows a script."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import JsonValue

from cowest.assembly.sources.protocol import no_batch
from cowest.ledger.ledger import Ledger
from cowest.ledger.prices import Price
from cowest.models.window import Window
from cowest.protocols import Budget, ChatModel
from cowest.recipe.models import ScriptedModelConfig
from cowest.recipe.outcome import settings_of
from cowest.run.freshness import Depends
from cowest.types import ModelRef


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
        raise no_batch(self.name)
