"""A local model's stream through the server: pieces as they are written, one at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

import pytest
from tests.server.loopback import Upstream, serving, strong

from cowest.errors import ModelCallError
from cowest.types import Completion, Message, Sampling, Usage

WHOLE = Completion(text="No, never.", usage=Usage(calls=1, input_tokens=3, output_tokens=2))


class Speaker:
    """Says a piece for each permission; ``fails`` at the second."""

    name = "speaker"

    def __init__(self, fails: ModelCallError | None = None, at: int = 1) -> None:
        self.may, self.fails, self.at, self.closed = asyncio.Semaphore(0), fails, at, asyncio.Event()

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        return WHOLE

    async def stream(self, messages: Sequence[Message], sampling: Sampling) -> AsyncGenerator[str | Completion, None]:
        try:
            for i, piece in enumerate(("No", ", never.")):
                await self.may.acquire()
                if self.fails is not None and i == self.at:
                    raise self.fails
                yield piece
            yield WHOLE
        finally:
            self.closed.set()

    async def aclose(self) -> None: ...


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with strong() as upstream:
        yield upstream


async def test_pieces_come_as_they_are_written(upstream: Upstream) -> None:
    weak = Speaker()
    async with serving(upstream.url, weak) as client:
        body = {"model": "pair.weak", "stream": True, "messages": [{"role": "user", "content": "Hm?"}]}
        body["stream_options"] = {"include_usage": True}
        asking = asyncio.ensure_future(client.session.post(f"{client.url}/chat/completions", json=body))
        weak.may.release()
        got = await asking
        first = json.loads((await got.content.readuntil(b"\n\n"))[6:])
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": "No"}  # and the rest is not written yet
        weak.may.release()
        *rest, end, nothing = (await got.read()).decode().split("\n\n")
        chunks = [first, *(json.loads(part[6:]) for part in rest)]
    assert end == "data: [DONE]" and nothing == "" and len(chunks) == 4
    assert chunks[1]["choices"][0]["delta"] == {"content": ", never."}
    assert chunks[2]["choices"][0]["finish_reason"] == "stop" and chunks[3]["usage"]["completion_tokens"] == 2
    assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1


@pytest.mark.parametrize(("kind", "status"), [("too_long", 400), ("local_failure", 502)])
async def test_a_failure_before_the_first_piece_has_a_status(upstream: Upstream, kind: str, status: int) -> None:
    weak = Speaker(ModelCallError(kind, "no"), at=0)
    weak.may.release()
    async with serving(upstream.url, weak) as client:
        got = await client.ask(model="pair.weak", stream=True)
        assert got.status == status and got.json["error"]["message"]


async def test_a_failure_after_it_is_told_in_the_stream(upstream: Upstream) -> None:
    weak = Speaker(ModelCallError("local_failure", "no"))
    weak.may.release()
    weak.may.release()
    async with serving(upstream.url, weak) as client:
        got = await client.ask(model="pair.weak", stream=True)
        parts = got.raw.decode().strip().split("\n\n")
        assert len(parts) == 2 and json.loads(parts[1][6:])["error"]["code"] == "local_failure"


async def test_a_client_that_leaves_frees_the_model(upstream: Upstream) -> None:
    weak = Speaker()
    weak.may.release()
    async with serving(upstream.url, weak) as client:
        body = {"model": "pair.weak", "stream": True, "messages": [{"role": "user", "content": "Hm?"}]}
        got = await client.session.post(f"{client.url}/chat/completions", json=body)
        await got.content.readuntil(b"\n\n")
        got.close()
        await asyncio.wait_for(weak.closed.wait(), 10)


async def test_stop_and_several_answers_come_whole(upstream: Upstream) -> None:
    async with serving(upstream.url, Speaker()) as client:
        stopped = await client.ask(model="pair.weak", stream=True, stop=", never")
        assert stopped.chunks[0]["choices"][0]["delta"]["content"] == "No"
        several = await client.ask(model="pair.weak", stream=True, n=2)
        assert [c["choices"][0]["index"] for c in several.chunks] == [0, 0, 1, 1]
