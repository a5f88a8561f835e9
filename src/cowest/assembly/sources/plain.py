"""What the sources have in common that are neither weights nor endpoints: nothing is trained, paid for or known of a window."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import JsonValue

from cowest.assembly.sources.protocol import no_batch
from cowest.ledger.ledger import Ledger
from cowest.ledger.prices import Price
from cowest.models.window import Window
from cowest.protocols import ChatModel
from cowest.types import ModelRef


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainSource:
    """Base of such sources; ``name`` is what the model is called."""

    name: str
    trainable: bool = False
    paid: bool = False
    concurrency: int = 64
    many: int = 1
    reads_given: bool = True
    tokenizer: str | None = None
    price: Price | None = None
    batch_price: Price | None = None
    batch_requests: int | None = None
    per_minute: tuple[float | None, float | None] = (None, None)
    extra: dict[str, JsonValue] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """Nothing."""
        return []

    def window(self, answer_tokens: int) -> Window | None:
        """It is not known."""
        return None

    def base(self) -> ModelRef:
        """Its name: there are no weights."""
        return ModelRef(base=self.name)

    def open_batch(self, ledger: Ledger) -> ChatModel:
        """There is no such API."""
        raise no_batch(self.name)
