"""A model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pydantic import JsonValue

from cowest.assembly.sources.protocol import room_in
from cowest.ledger.ledger import Ledger
from cowest.ledger.prices import Price, end_of, price_list, price_of
from cowest.models.address import address_of, secrets_of
from cowest.models.dialect import Quirks
from cowest.models.window import Window
from cowest.protocols import Budget, ChatModel
from cowest.recipe.models import OpenAIModelConfig
from cowest.recipe.outcome import settings_of
from cowest.run.freshness import Depends
from cowest.types import ModelRef


@dataclass(frozen=True, slots=True)
class EndpointSource:
    """A model behind an OpenAI-compatible endpoint; ``folder`` may hold a .env file with its key."""

    config: OpenAIModelConfig
    folder: Path = Path()
    trainable: bool = False
    paid: bool = True
    reads_given: bool = False

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

    def notes(self) -> list[str]:
        """That its provider has ended it, or will."""
        found = end_of(self.config.model, self.config.base_url)
        return [f"{found.end(date.today())} (known on {price_list().date})"] if found else []

    def window(self, answer_tokens: int) -> Window | None:
        """As the recipe has it."""
        return room_in(self.config.model, self.config.window, self.config.tokenizer, answer_tokens)

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


def _quirks(config: OpenAIModelConfig) -> Quirks:
    c = config
    return Quirks(
        c.token_limit,
        c.temperature,
        c.seed,
        c.system_prompt,
        c.structured,
        c.tools,
        thinks=c.extra.get("reasoning_effort") != "none",
    )
