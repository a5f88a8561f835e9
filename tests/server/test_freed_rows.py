"""A caller that leaves frees its row of the local model's batch."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from threading import Event

import pytest
import torch
from tests.helpers import save_tiny_model

from cowest.errors import ModelCallError
from cowest.models.batching import Decoded, Decoder, Request
from cowest.models.local import LocalChatModel, load_model
from cowest.models.sampler import Row
from cowest.types import Completion, Message, ModelRef, Sampling

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def test_a_row_that_nobody_waits_for_leaves_the_batch(folder: str) -> None:
    model = load_model(ModelRef(base=folder), device=torch.device("cpu"), dtype=None)
    decoder = Decoder(model, eos_ids=[-1], pad_id=0)  # no text ends by itself
    rows = [Row((5, 6, 7), 40), Row((8, 9), 40), Row((5, 6, 7), 40)]
    whole = decoder.decode(rows)
    asked, heard, found = [0], list[int](), dict[int, Decoded]()

    def gone() -> bool:
        asked[0] += 1
        return asked[0] > 1 + 10  # once before it joins, once before each token

    def request(i: int) -> Request:
        mine = {"gone": gone, "hear": heard.__iadd__} if i == 1 else {}
        return Request(rows[i], lambda done: found.update({i: done}), pytest.fail, **mine)  # type: ignore[arg-type]

    decoder.run(deque(request(i) for i in range(3)), Event())
    assert found == {0: whole[0], 2: whole[2]}
    assert heard == [t for n in range(1, 11) for t in whole[1].tokens[:n]]
    assert asked == [12]  # after that it is no longer in the batch


async def test_a_cancelled_call_ends_its_decoding(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LocalChatModel(ModelRef(base=folder), device="cpu")
    steps, step = 0, model._decoder._reader.step

    def slowly(tokens: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        time.sleep(0.02)
        return step(tokens)

    monkeypatch.setattr(model._decoder._reader, "step", slowly)
    monkeypatch.setattr(model._decoder, "_eos", frozenset())
    call = asyncio.create_task(model.generate([Message(role="user", content="Why?")], Sampling(max_tokens=400)))
    while steps < 3:
        await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert model._worker is not None
    await asyncio.wait_for(model._worker, 30)
    assert steps < 100  # 400 would have been made for the one that left
    await model.aclose()


async def test_a_streamed_text_comes_as_it_is_written_and_is_the_whole_one(folder: str) -> None:
    model = LocalChatModel(ModelRef(base=folder), device="cpu")
    asked, sampling = [Message(role="user", content="Why?")], Sampling(temperature=1.0, max_tokens=30, seed=5)
    whole = await model.generate(asked, sampling)
    parts = [part async for part in model.stream(asked, sampling)]
    done = parts.pop()
    assert isinstance(done, Completion) and done.text == whole.text and done.usage == whole.usage
    texts = [part for part in parts if isinstance(part, str)]
    assert "".join(texts) == whole.text and len(texts) == len(parts) > 3
    with pytest.raises(ModelCallError, match="window"):
        await anext(model.stream(asked, Sampling(max_tokens=10**6)))
    await model.aclose()


async def test_a_reader_that_leaves_a_stream_ends_its_decoding(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LocalChatModel(ModelRef(base=folder), device="cpu")
    steps, step = 0, model._decoder._reader.step

    def slowly(tokens: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        time.sleep(0.01)
        return step(tokens)

    monkeypatch.setattr(model._decoder._reader, "step", slowly)
    monkeypatch.setattr(model._decoder, "_eos", frozenset())
    pieces = model.stream([Message(role="user", content="Why?")], Sampling(max_tokens=400))
    assert await anext(pieces)
    await pieces.aclose()
    assert model._worker is not None
    await asyncio.wait_for(model._worker, 30)
    assert steps < 100
    await model.aclose()
