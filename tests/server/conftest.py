"""A server on loopback and OpenAI's own client of it, where a file has no others of these names."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from openai import AsyncOpenAI
from tests.server.loopback import Client, Upstream, serving, strong


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with strong() as upstream:
        yield upstream


@pytest.fixture
async def served(upstream: Upstream) -> AsyncIterator[Client]:
    async with serving(upstream.url, max_attempts=1) as client:
        yield client


@pytest.fixture
async def client(served: Client) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0) as client:
        yield client
