"""What tokens cost: a small dated table of list prices, overridden by a recipe's ``price``. An unknown price is None, never 0.

The table also has the days on which providers end their models, as they have announced them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import yaml

from cowest.recipe.models import PriceConfig
from cowest.types import Usage

_TABLE: Final = Path(__file__).parent / "prices.yaml"
_SNAPSHOT: Final = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|latest)$")


@dataclass(frozen=True, slots=True)
class Price:
    """USD for a million prompt tokens and for a million generated ones."""

    input: float
    output: float

    def cost(self, usage: Usage) -> float:
        """What this many tokens cost, in USD."""
        return (usage.input_tokens * self.input + usage.output_tokens * self.output) / 1e6

    def discounted(self, share: float) -> Price:
        """The price with ``share`` (0 to 1) taken off."""
        return Price(self.input * (1 - share), self.output * (1 - share))


FREE: Final = Price(0.0, 0.0)
"""Of a model that runs here."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A model in the table. ``until`` is the last day of its price, ``ends`` the day on which its provider ends it."""

    model: str
    provider: str
    price: Price
    until: date | None = None
    ends: date | None = None
    instead: str | None = None

    def ended(self, today: date) -> bool:
        """Whether its provider no longer answers for it."""
        return self.ends is not None and self.ends <= today

    def end(self, today: date) -> str:
        """That it ends, in words; empty where no day is known."""
        if self.ends is None:
            return ""
        instead = f" and names {self.instead} in its place" if self.instead else ""
        return f"{self.provider} {'ended' if self.ended(today) else 'ends'} {self.model} on {self.ends}{instead}"


@dataclass(frozen=True, slots=True)
class PriceList:
    """The table: what was known on ``date``, the models by name, and each provider's page and hosts."""

    date: date
    models: Mapping[str, Listed]
    pages: Mapping[str, str]
    hosts: Mapping[str, Sequence[str]]


@cache
def price_list() -> PriceList:
    """The table that ships with cowest."""
    data = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))
    providers = data["providers"]
    models = [
        Listed(model, name, Price(*map(float, row["price"])), row.get("until"), row.get("ends"), row.get("instead"))
        for name, provider in providers.items()
        for model, row in provider["models"].items()
    ]
    return PriceList(
        data["date"],
        {listed.model: listed for listed in models},
        {name: provider["page"] for name, provider in providers.items()},
        {name: provider["hosts"] for name, provider in providers.items()},
    )


def listed(model: str) -> Listed | None:
    """The table's line for this model, or for the family of a dated snapshot.

    ``provider/model`` is looked up as ``model``. No other guess is made: gpt-4o-mini is not gpt-4o.
    """
    known, name = price_list().models, model.rpartition("/")[2].lower()
    return known.get(name) or known.get(_SNAPSHOT.sub("", name))


def end_of(model: str, base_url: str) -> Listed | None:
    """The table's line for a model that its own provider, at ``base_url``, has ended or will; None for any other.

    Others who sell the model have days of their own, and so has a ``${NAME}`` in the address.
    """
    found = listed(model)
    if found is None or found.ends is None or urlsplit(base_url).hostname not in price_list().hosts[found.provider]:
        return None
    return found


def price_of(model: str, override: PriceConfig | None = None) -> Price | None:
    """The recipe's price, else the table's (see ``listed``); None where there is none."""
    if override is not None:
        return Price(override.input, override.output)
    found = listed(model)
    return None if found is None else found.price
