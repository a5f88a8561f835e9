"""A scorer that is asked the same thing many times."""

from __future__ import annotations

import asyncio

from cowest.protocols import Scorer
from cowest.types import Example, Score


class Once:
    """A scorer that judges equal answers to a query once: the strong model's own is compared with every draft's."""

    def __init__(self, inner: Scorer) -> None:
        self._inner, self._known = inner, dict[tuple[str, str | None], asyncio.Task[Score]]()

    async def score(self, example: Example, text: str | None) -> Score:
        """See Scorer."""
        key = (example.id, text)
        if key not in self._known:
            self._known[key] = asyncio.ensure_future(self._inner.score(example, text))
        return await self._known[key]
