"""A caller that leaves frees its row of the local model's batch."""

from __future__ import annotations

import asyncio
import time

import pytest
import torch
from tests.helpers import save_tiny_model

from cowest.errors import ModelCallError
from cowest.models.batching import Decoder, Row
from cowest.models.local import LocalChatModel, load_model
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
    asked: list[int] = []

    def gone(row: int) -> bool:
        asked.append(row)
        return row == 1 and asked.count(1) > 10

    freed = decoder.decode(rows, gone=gone)
    assert [len(d.tokens) for d in freed] == [40, 10, 40]
    assert freed[0] == whole[0] and freed[2] == whole[2] and freed[1].tokens == whole[1].tokens[:10]
    assert asked.count(1) == 11  # after that it is no longer in the batch


async def test_a_cancelled_call_ends_its_decoding(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LocalChatModel(ModelRef(base=folder), device="cpu")
    steps, forward = 0, model._decoder.forward

    def slowly(*args: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        time.sleep(0.02)
        return forward(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(model._decoder, "forward", slowly)
    monkeypatch.setattr(model._decoder, "_eos", torch.tensor([-1]))
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
    steps, forward = 0, model._decoder.forward

    def slowly(*args: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        time.sleep(0.01)
        return forward(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(model._decoder, "forward", slowly)
    monkeypatch.setattr(model._decoder, "_eos", torch.tensor([-1]))
    pieces = model.stream([Message(role="user", content="Why?")], Sampling(max_tokens=400))
    assert await anext(pieces)
    await pieces.aclose()
    assert model._worker is not None
    await asyncio.wait_for(model._worker, 30)
    assert steps < 100
    await model.aclose()
