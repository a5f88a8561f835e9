"""What tokens cost: a small dated table of list prices, overridden by a recipe's ``price``. An unknown price is None, never 0."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

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


@cache
def _table() -> tuple[str, dict[str, Price]]:
    data = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))
    return str(data["date"]), {name: Price(*map(float, pair)) for name, pair in data["models"].items()}


def prices_date() -> str:
    """The day for which the table's prices are known (YYYY-MM-DD)."""
    return _table()[0]


def price_of(model: str, override: PriceConfig | None = None) -> Price | None:
    """The recipe's price, else the table's for this model or for the family of a dated snapshot; None where there is none.

    ``provider/model`` is looked up as ``model``. No other guess is made: gpt-4o-mini is not gpt-4o.
    """
    if override is not None:
        return Price(override.input, override.output)
    known, name = _table()[1], model.rpartition("/")[2].lower()
    return known.get(name) or known.get(_SNAPSHOT.sub("", name))
