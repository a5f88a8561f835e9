"""The price table against the data of genai-prices: ``pip install -U genai-prices && python -m benchmarks.prices``.

Prints every model whose price differs, and exits with 1 where one does. The library is no dependency of cowest: it is how a
maintainer brings ``src/cowest/ledger/prices.yaml`` up to date. Prices that change with the hour are taken at the busiest one, those
of long prompts not at all.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime

from cowest.ledger.prices import Listed, Price, price_list

IDS = {
    "OpenAI": "openai",
    "Anthropic": "anthropic",
    "Google": "google",
    "DeepSeek": "deepseek",
    "Mistral": "mistral",
    "xAI": "x-ai",
}


def main() -> int:
    """Compare, and print what differs."""
    differing = 0
    for found in price_list().models.values():
        now = _theirs(found)
        if now is None:
            print(f"{found.model}: not known there")
        elif now != found.price:
            differing += 1
            print(
                f"{found.model}: {now.input:g} and {now.output:g}; here {found.price.input:g} and {found.price.output:g}"
            )
    print(f"{len(price_list().models)} models of {price_list().date}, {differing} differ")
    return int(differing > 0)


def _theirs(found: Listed) -> Price | None:
    from genai_prices import Usage, calc_price

    prices = []
    for hour in range(24):
        at = datetime.now(UTC).replace(hour=hour, minute=59)
        try:
            price = calc_price(
                Usage(input_tokens=1000, output_tokens=1000),
                model_ref=found.model,
                provider_id=IDS[found.provider],
                genai_request_timestamp=at,
            )
        except LookupError:
            return None
        prices.append(Price(round(float(price.input_price) * 1000, 6), round(float(price.output_price) * 1000, 6)))
    return max(prices, key=lambda p: p.input + p.output)


if __name__ == "__main__":
    sys.exit(main())
