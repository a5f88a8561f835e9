"""What is old: the age of the price table, prices announced to change, and models that their provider has ended or will."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from cowest.assembly.opened import sources_of
from cowest.assembly.sources.endpoint import EndpointSource
from cowest.ledger.prices import Listed, Price, end_of, listed, price_list
from cowest.recipe.config import RunConfig, load_config, with_settings
from cowest.recipe.models import OpenAIModelConfig

OLD_DAYS: Final = 90
"""Providers change prices and announce ends several times a quarter."""


class PriceLine(BaseModel):
    """A model: USD for a million tokens (None: unknown), and until when. ``where``: the recipes' sections that name it."""

    model_config = ConfigDict(frozen=True)

    model: str
    provider: str | None
    input: float | None
    output: float | None
    until: date | None = None
    ends: date | None = None
    instead: str | None = None
    where: list[str] = []


class PriceCheck(BaseModel):
    """What the table of the day ``known`` says on ``today``. ``old`` is to be mended now, ``soon`` is to be known."""

    model_config = ConfigDict(frozen=True)

    known: date
    today: date
    models: list[PriceLine]
    old: list[str]
    soon: list[str]


def check_prices(recipes: Sequence[Path], today: date) -> PriceCheck:
    """The whole table, or the endpoints' models of these recipes, of the points of their grids and of their variants.

    Raises ConfigError for a recipe that is not valid.
    """
    table = price_list()
    old, soon, lines = [], [], []
    if (age := (today - table.date).days) > OLD_DAYS:
        old.append(
            f"the table of prices is {age} days old ({table.date}): see the providers' pages, give `price`, or update cowest"
        )
    for line, late, early in _named(recipes, today) if recipes else _all(today):
        lines.append(line)
        old += late
        soon += early
    return PriceCheck(known=table.date, today=today, models=lines, old=old, soon=soon)


Found = tuple[PriceLine, list[str], list[str]]
"""A model, what is old about it, and what there is to know."""


def _all(today: date) -> Iterator[Found]:
    """That a model has ended is no fault of a table, which is for old bills, too."""
    for found in price_list().models.values():
        late, early = _changes(found, today)
        ending = [found.end(today)] if found.ends else []
        yield _line(found.model, found, found.price, found, found.until, []), late, early + ending


def _named(recipes: Sequence[Path], today: date) -> Iterator[Found]:
    where: dict[tuple[str, str, Price | None, bool], list[str]] = {}
    for path in dict.fromkeys(recipes):
        for place, source in _endpoints(load_config(path)):
            c = source.config
            where.setdefault((c.model, c.base_url, source.price, c.price is None), []).append(f"{path}: {place}")
    for (model, url, price, listing), places in where.items():
        found, ending = listed(model), end_of(model, url)
        late, early = _changes(found, today) if found is not None and listing else ([], [])
        if ending is not None:
            (late if ending.ended(today) else early).append(ending.end(today))
        if price is None:
            early.append(f"the price of {model} is unknown; give `price`")
        line = _line(model, found, price, ending, found.until if found is not None and listing else None, places)
        at = ", ".join(places)
        yield line, [f"{text} ({at})" for text in late], [f"{text} ({at})" for text in early]


def _endpoints(config: RunConfig) -> Iterator[tuple[str, EndpointSource]]:
    """The endpoints of a recipe, and those that a point of its grid or a variant puts in their place."""
    points = {"": config}
    for what, changes in (("grid", config.comparison.grid), ("variants", config.comparison.variants)):
        points |= {f"table.{what}.{label}: ": with_settings(config, dict(to)) for label, to in changes.items()}
    seen: list[tuple[str, OpenAIModelConfig]] = []  # a config holds dicts, so it has no hash
    for label, point in points.items():
        for place, source in sources_of(point):
            if isinstance(source, EndpointSource) and (place, source.config) not in seen:
                seen.append((place, source.config))
                yield f"{label}{place}", source


def _changes(found: Listed, today: date) -> tuple[list[str], list[str]]:
    """That its price was announced to change: as what is old, or as what there is to know."""
    if found.until is None:
        return [], []
    text = f"{found.provider} announced the price of {found.model} until {found.until} only"
    return ([text], []) if found.until < today else ([], [text])


def _line(
    model: str, found: Listed | None, price: Price | None, ending: Listed | None, until: date | None, where: list[str]
) -> PriceLine:
    return PriceLine(
        model=model,
        provider=found and found.provider,
        input=price and price.input,
        output=price and price.output,
        until=until,
        ends=ending and ending.ends,
        instead=ending and ending.instead,
        where=where,
    )
