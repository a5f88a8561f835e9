"""Server-sent events from any pieces, and the servers whose streams look odd and are whole."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowest.models import chunks as module
from cowest.models.chunks import bounded, read_chunks
from cowest.models.events import EventReader
from cowest.models.failures import EndpointError
from cowest.models.replies import Reply
from cowest.models.secrets import Secrets
from cowest.models.stream import Assembler

USAGE = {"prompt_tokens": 11, "completion_tokens": 3}


def chunk(finish: str | None = None, index: int = 0, **delta: object) -> str:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({'id': 'c1', 'choices': [choice]})}\n\n"


async def read(text: str, n: int = 1) -> Reply:
    async def pieces() -> AsyncIterator[bytes]:
        yield text.encode()

    return (await Assembler().all(read_chunks(pieces(), n, Secrets()))).reply(40)


def events(*pieces: bytes) -> list[tuple[str, str | None]]:
    reader = EventReader()
    found = [e for piece in pieces for e in reader.feed(piece)]
    return [(e.data, e.id) for e in [*found, *reader.finish()]]


WIRE = "\ufeff: keep-alive\n\nid: 7\ndata: Grüße\ndata:  two\n\nretry: 5\nevent: x\ndata:\n\ndata: cut off".encode()
EVENTS = [("Grüße\n two", "7"), ("", None), ("cut off", None)]


@given(st.sets(st.integers(1, 200)), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_events_are_the_same_however_the_bytes_are_cut(cuts: set[int], ending: bytes) -> None:
    wire = WIRE.replace(b"\n", ending)
    edges = [0, *sorted(c for c in cuts if c < len(wire)), len(wire)]
    assert events(*(wire[a:b] for a, b in pairwise(edges))) == EVENTS


@pytest.mark.parametrize(
    "odd",
    [
        chunk(role="assistant", content="It ")
        + chunk(role="assistant", content="is.")
        + chunk("stop", role="assistant"),
        chunk(content="It ") + chunk(content="is.") + chunk("stop", role="assistant", content=""),
        chunk(content="It ") + chunk("stop", content="is.") + chunk(role="assistant", content=""),
        chunk(role="assistant", reasoning_content="Hm. No.") + chunk(content="It is.") + chunk("stop"),
        f"id: {'9' * 5000}\n" + chunk(content="It ") + f"id: {'9' * 5000}\n" + chunk("stop", content="is."),
        "id: abc\n" + chunk(content="It ") + "id: abc\n" + chunk("stop", content="is."),
        "data: 5\n\ndata: []\n\n" + chunk("stop", content="It is."),
    ],
    ids=["role always", "role at the end", "role after the end", "reasoning", "huge id", "constant id", "no objects"],
)
async def test_streams_that_are_odd_but_whole(odd: str) -> None:
    assert (await read(odd + "data: [DONE]\n\n")).choices[0].text == "It is."


async def test_a_bare_role_in_the_middle_is_a_second_beginning() -> None:
    with pytest.raises(EndpointError, match="begins again"):
        await read(chunk(content="It ") + chunk(role="assistant", content="") + chunk("stop", content="is."))


async def test_choices_grow_side_by_side_and_no_other_may_appear() -> None:
    both = chunk(content="a") + chunk(index=1, content="b") + chunk("stop", index=1) + chunk("stop")
    assert [c.text for c in (await read(both, n=2)).choices] == ["a", "b"]
    for index in (1, -1):
        with pytest.raises(EndpointError, match="of 1"):
            await read(chunk("stop", content="a") + chunk("stop", index=index, content="b"))


async def test_a_stream_with_a_doubled_piece_was_paid_for() -> None:
    usage = f"data: {json.dumps({'choices': [], 'usage': USAGE})}\n\n"
    with pytest.raises(EndpointError, match="4 pieces for 3 tokens") as caught:
        await read(chunk(content="as") * 4 + chunk("stop") + usage)
    assert caught.value.usage.output_tokens == 3 and caught.value.usage.calls == 1


async def test_a_stream_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BODY", 100)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 30

    with pytest.raises(EndpointError) as caught:
        async for _ in bounded(endless()):
            pass
    assert caught.value.kind == "too_large" and caught.value.maybe_paid
