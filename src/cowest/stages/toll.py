"""What a draft costs beside its words: the tokens that it adds to the strong model's prompt (``pairs.price_per_usd``)."""

from __future__ import annotations

from collections.abc import Callable

from cowest.assembly.context import Context
from cowest.models.tokens import token_counter


def prompt_price(context: Context) -> float | None:
    """USD for a million tokens of the strong model's prompt; None where ``pairs.price_per_usd`` is unset, and it says nothing."""
    batch = context.config.feedback.mode == "batch"
    price = context.strong.batch_price if batch else context.strong.price
    return price.input if price is not None and context.config.pairs.price_per_usd else None


def toll(context: Context) -> Callable[[str], float] | None:
    """By a draft's text, what is taken off its worth for what its tokens cost in the strong model's prompt; None for nothing."""
    price, per_usd = prompt_price(context), context.config.pairs.price_per_usd
    if price is None:
        return None
    count, _ = token_counter(context.strong.tokenizer)
    return lambda text: per_usd * price * count(text) / 1e6
