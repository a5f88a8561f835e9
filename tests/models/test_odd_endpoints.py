"""Endpoints that write answers in their own way: what they mean is read, and what is broken stays broken."""

from __future__ import annotations

import asyncio
import json

import pytest
from pydantic import JsonValue
from tests.models.scripted_endpoint import ASK, Step, endpoint, reply, step

from cowest.errors import ModelCallError
from cowest.models.address import joined
from cowest.models.answer import finish_of
from cowest.models.dialect import Dialect, learn
from cowest.models.failures import EndpointError, check_status
from cowest.models.limiter import told_wait
from cowest.models.openai import OpenAIChatModel
from cowest.models.replies import read_reply
from cowest.models.transport import Transport
from cowest.types import Completion, Sampling

USAGE: dict[str, JsonValue] = {"prompt_tokens": 11, "completion_tokens": 3}
TEXT = "It is safe."
PIECES = ("It", " is", " safe.")
TOLD: dict[str, JsonValue] = {"id": "u", "choices": [], "usage": USAGE}


def chunk(
    text: JsonValue = None, finish: str | None = None, id: JsonValue = "c", index: JsonValue = 0, **delta: JsonValue
) -> dict[str, JsonValue]:
    said = delta if text is None else {"content": text, **delta}
    return {"id": id, "choices": [{"index": index, "delta": said, "finish_reason": finish}]}


def sse(*events: object, kind: str = "text/event-stream", done: str = "data: [DONE]\n\n") -> Step:
    text = "".join(e if isinstance(e, str) else f"data: {json.dumps(e)}\n\n" for e in events)
    return step(text + done, kind=kind)


async def ask(
    answer: Step, n: int = 1, sampling: Sampling = Sampling(max_tokens=16), **settings: object
) -> list[Completion]:
    given: dict[str, object] = {"api_key": None, "max_attempts": 1, "backoff_s": 0.0, "timeout_s": 5.0} | settings
    async with endpoint(answer) as server:
        model = OpenAIChatModel(base_url=server.url, model="big", samples_per_call=n, **given)  # type: ignore[arg-type]
        try:
            return await model.sample(ASK, sampling, n)
        finally:
            await model.aclose()


READ = {
    "an id for each chunk": (
        *(chunk(p, id=f"c-{i}") for i, p in enumerate(PIECES)),
        chunk(None, "stop", id="c-9"),
        TOLD,
    ),
    "ids that are no text": (*(chunk(p, id=i) for i, p in enumerate(PIECES)), chunk(None, "stop", id=None), TOLD),
    "an index for each chunk": (
        *(chunk(p, index=i, role="assistant") for i, p in enumerate(PIECES)),
        chunk("", "stop", index=3, role="assistant"),
        TOLD,
    ),
    "indices backwards, the end at 0": (
        *(chunk(p, index=7 - i) for i, p in enumerate(PIECES)),
        chunk(None, "stop"),
        TOLD,
    ),
    "an index of 1": (*(chunk(p, index=1) for p in PIECES), chunk(None, "stop", index=1), TOLD),
    "no index": (*(chunk(p, index=None) for p in PIECES), chunk(None, "stop", index=None), TOLD),
    "both count, the end twice": (
        *(chunk(p, index=i, id=f"c-{i}") for i, p in enumerate(PIECES)),
        chunk(None, "stop", index=3, id="c-3"),
        {**chunk(None, "stop", index=4, id="c-4"), "usage": USAGE},
    ),
    "parts": (*(chunk([{"type": "text", "text": p}]) for p in PIECES), chunk([], "stop"), TOLD),
    "one part, no list": (*(chunk({"type": "text", "text": p}) for p in PIECES), chunk(None, "stop"), TOLD),
    "parts of thinking first": (
        chunk([{"type": "thinking", "thinking": [{"type": "text", "text": "No?"}]}]),
        chunk([{"type": "reasoning", "text": "No."}, {"type": "text", "text": "It is"}]),
        chunk(" safe.", "stop"),
        TOLD,
    ),
    "characters": (*(chunk(c) for c in TEXT), chunk(None, "stop"), TOLD),
    "syllables": (*(chunk(c) for c in ("It", " i", "s", " sa", "fe", ".")), chunk(None, "stop"), TOLD),
    "glued in one event": (
        "data: " + "".join(json.dumps(chunk(p)) for p in PIECES) + "\n\n",
        chunk(None, "stop"),
        TOLD,
    ),
    "no empty lines between": (
        "".join(f"data: {json.dumps(chunk(p))}\n" for p in PIECES) + "\n",
        chunk(None, "stop"),
        TOLD,
    ),
    "message in place of delta": (
        {"id": "c", "choices": [{"index": 0, "message": {"content": TEXT}, "finish_reason": "stop"}]},
        TOLD,
    ),
    "the message again at the end": (
        *(chunk(p) for p in PIECES),
        {"choices": [{"index": 0, "message": {"content": TEXT}, "finish_reason": "stop"}]},
        TOLD,
    ),
    "error of null": (*({**chunk(p), "error": None} for p in PIECES), chunk(None, "stop"), TOLD),
    "named events, comments": (
        ": hi\n\n",
        *(f"event: chunk\ndata: {json.dumps(chunk(p))}\n\n" for p in PIECES),
        chunk(None, "stop"),
        TOLD,
    ),
    "usage as decimals": (
        *(chunk(p) for p in PIECES),
        {**chunk(None, "stop"), "usage": {"prompt_tokens": 11.0, "completion_tokens": 3.0}},
    ),
}


@pytest.mark.parametrize("kind", ["text/event-stream", "text/plain", "application/json"])
@pytest.mark.parametrize("asked", [True, False], ids=["asked for", "unasked"])
@pytest.mark.parametrize("name", READ)
async def test_a_stream_is_read_however_it_is_written(name: str, asked: bool, kind: str) -> None:
    (got,) = await ask(sse(*READ[name], kind=kind), stream=asked)
    assert got.text == TEXT and got.finish_reason == "stop"
    assert (got.usage.input_tokens, got.usage.output_tokens, got.usage.estimated_calls) == (11, 3, 0)


BROKEN = {
    "two answers by id": (chunk("It", id="a"), chunk("No", id="b"), chunk(" is", id="a"), chunk(None, "stop", id="a")),
    "two answers by index": (chunk("It"), chunk("No", index=1), chunk(" is"), chunk(None, "stop")),
    "two whole answers": (chunk("It", "stop"), chunk("No", "stop", index=1)),
    "two ends": (chunk("It"), chunk("No", index=1), chunk(None, "stop"), chunk(None, "stop", index=1)),
    "two in a chunk": (
        {"choices": [chunk("It")["choices"][0], chunk("No", index=1)["choices"][0]]},  # type: ignore[index]
        chunk(None, "stop"),
    ),
    "an error inside": (chunk("It"), {"error": {"message": "overloaded"}}),
    "an error by its event's name": (chunk("It"), 'event: error\ndata: {"message": "overloaded"}\n\n'),
    "an error by its object": (chunk("It"), {"object": "error", "message": "overloaded"}),
    "glued with a half": ("data: " + json.dumps(chunk("It")) + '{"choices": [\n\n', chunk(None, "stop")),
    "no end": (chunk("It"), chunk(" is")),
    "a piece twice": (*(chunk(p) for p in PIECES), chunk(PIECES[-1]), chunk(None, "stop"), TOLD),
    "parts after the end": (chunk("It", "stop"), chunk([{"type": "text", "text": "x"}])),
}


@pytest.mark.parametrize("asked", [True, False], ids=["asked for", "unasked"])
@pytest.mark.parametrize("name", BROKEN)
async def test_a_real_error_in_a_stream_stays_one(name: str, asked: bool) -> None:
    with pytest.raises(ModelCallError) as caught:
        await ask(sse(*BROKEN[name]), stream=asked)
    assert caught.value.kind in ("bad_response", "server_error")
    assert all(a.maybe_paid or a.usage.calls for a in caught.value.attempts)


async def test_a_stream_that_breaks_off_unasked_is_no_answer() -> None:
    with pytest.raises(ModelCallError) as caught:
        await ask(sse(chunk("It"), done=""))
    assert caught.value.kind == "bad_response" and "ended before" in str(caught.value)


async def test_samples_in_one_stream_are_told_apart_by_index_whatever_their_ids() -> None:
    mixed = (chunk("a", id="x"), chunk("b", index=1, id="y"), chunk("A", id="x2"), chunk("B", index=1, id="y2"))
    ends = (chunk(None, "length", index=1), chunk(None, "stop"))
    got = await ask(sse(*mixed, *ends), n=2, stream=True)
    assert [(c.text, c.finish_reason) for c in got] == [("aA", "stop"), ("bB", "length")]
    for index in (2, -1):
        with pytest.raises(ModelCallError, match=f"choice {index} of 2"):
            await ask(sse(*mixed, chunk("c", index=index), *ends), n=2, stream=True)
    with pytest.raises(ModelCallError, match="mixes two answers"):
        await ask(sse(chunk("a", id="x"), chunk("z", id="y"), chunk("A", id="x"), *ends), n=2, stream=True)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "It is"}, {"type": "text", "text": " safe."}], TEXT),
        ([{"type": "thinking", "thinking": "No?"}, {"type": "output_text", "text": TEXT}], TEXT),
        ([{"type": "redacted_thinking", "data": "x"}, {"text": TEXT}], TEXT),
        ({"type": "text", "text": TEXT}, TEXT),
        (["It is", " safe."], TEXT),
    ],
)
async def test_content_in_parts_is_text(content: JsonValue, text: str) -> None:
    body = {"choices": [{"message": {"content": content}, "finish_reason": "stop"}], "usage": USAGE}
    (got,) = await ask(step(body))
    assert got.text == text


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ([{"type": "thinking", "thinking": "No?"}], "empty"),
        ([{"type": "refusal", "refusal": "I will not."}], "refusal"),
        ([{"type": "image_url", "image_url": "x"}], "bad_response"),
        (7, "bad_response"),
        ([], "bad_response"),
    ],
)
async def test_parts_without_text_are_no_answer(content: JsonValue, kind: str) -> None:
    with pytest.raises(ModelCallError) as caught:
        await ask(step({"choices": [{"message": {"content": content}, "finish_reason": "stop"}], "usage": USAGE}))
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("said", "finish"),
    [
        ("length", "length"),
        ("max_tokens", "length"),
        ("MAX_TOKENS", "length"),
        ("max_output_tokens", "length"),
        ("model_length", "length"),
        ("stop", "stop"),
        ("STOP", "stop"),
        ("eos", "stop"),
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("tool_calls", "tool_calls"),
        ("SAFETY", "content_filter"),
        ("Something Else", "Something Else"),
        (None, "unknown"),
        (3, "unknown"),
    ],
)
def test_reasons_in_one_language(said: object, finish: str) -> None:
    assert finish_of(said) == finish


@pytest.mark.parametrize(
    ("usage", "reason", "answers", "finish"),
    [
        ({"completion_tokens": 16}, "stop", 1, "length"),
        ({"completion_tokens": 16}, None, 1, "length"),
        ({"completion_tokens": 16}, "tool_calls", 1, "tool_calls"),
        ({"completion_tokens": 15}, "stop", 1, "stop"),
        ({"completion_tokens": 17}, "stop", 1, "stop"),
        ({"completion_tokens": 16}, "stop", 2, "stop"),
        ({"completion_tokens": 32}, "stop", 2, "length"),
        ({"completion_tokens": 20, "completion_tokens_details": {"reasoning_tokens": 4}}, "stop", 1, "length"),
        ({"completion_tokens": None}, "stop", 1, "stop"),
    ],
)
def test_an_answer_of_exactly_the_limit_was_cut(
    usage: dict[str, JsonValue], reason: str | None, answers: int, finish: str
) -> None:
    choices = [{"index": i, "message": {"content": "x" * 64}, "finish_reason": reason} for i in range(answers)]
    body = json.dumps({"choices": choices, "usage": {"prompt_tokens": 3, **usage}}).encode()
    assert {c.finish_reason for c in read_reply(body, 0, 16).choices} == {finish}
    assert {c.finish_reason for c in read_reply(body).choices} == {finish_of(reason)}, (
        "without a limit there is none to reach"
    )


@pytest.mark.parametrize("stream", [True, False])
async def test_a_limit_of_the_extra_fields_is_the_one_that_counts(stream: bool) -> None:
    answer = sse(*(chunk(p) for p in PIECES), chunk(None, "stop"), TOLD) if stream else step(reply(TEXT))
    for extra, finish in (({}, "stop"), ({"max_tokens": 3}, "length"), ({"max_completion_tokens": 3}, "length")):
        (got,) = await ask(answer, stream=stream, extra=extra)
        assert got.finish_reason == finish


async def test_thinking_at_the_limit_says_what_to_raise() -> None:
    body = {
        "choices": [{"message": {"content": ""}, "finish_reason": "stop"}],
        "usage": {**USAGE, "completion_tokens": 16},
    }
    with pytest.raises(ModelCallError, match="raise max_tokens"):
        await ask(step(body))


@pytest.mark.parametrize(
    ("base", "path", "url"),
    [
        ("http://h/v1", "chat/completions", "http://h/v1/chat/completions"),
        ("http://h/d?api-version=1", "chat/completions", "http://h/d/chat/completions?api-version=1"),
        ("http://h/v1/?api-version=1&x=%2F", "batches?limit=2", "http://h/v1/batches?limit=2&api-version=1&x=%2F"),
    ],
)
def test_a_query_of_the_base_url_stays_at_the_end(base: str, path: str, url: str) -> None:
    assert joined(base, path) == url
    assert str(Transport(base, {})._url(path)) == url


async def test_an_api_version_is_sent() -> None:
    async with endpoint(step(reply(TEXT))) as server:
        model = OpenAIChatModel(base_url=f"{server.url}/?api-version=2024-06-01", model="m", api_key=None)
        assert (await model.generate(ASK, Sampling())).text == TEXT
        await model.aclose()
    assert "/v1/chat/completions?api-version=2024-06-01" in repr(server.paths)


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("Limit 20. Please try again in 120ms. See the docs.", 0.12),
        ("Please try again in 1m12.5s.", 72.5),
        ("Please retry in 13.4s.", 13.4),
        ("Please retry after 26 seconds.", 26.0),
        ("Try again in 1 minute and 5 seconds", 65.0),
        ("please wait 2 minutes before the next request", 120.0),
        ('[{"error": {"details": [{"retryDelay": "13s"}]}}]', 13.0),
        ('{"error": {"message": "slow down", "metadata": {"retry_after": 5.5}}}', 5.5),
        ('{"retry_after_ms": 250}', 0.25),
        ("Rate limit: 20 requests per 60 s.", None),
        ("You sent 4096 tokens; retry with at most 3", None),
        ("retry up to 3 times", None),
        ("", None),
    ],
)
def test_a_wait_that_is_told_in_words_only(told: str, seconds: float | None) -> None:
    assert told_wait(told) == seconds
    with pytest.raises(EndpointError) as caught:
        check_status(429, told.encode())
    assert caught.value.retry_after_s == seconds and caught.value.retry
    with pytest.raises(EndpointError) as headed:
        check_status(429, told.encode(), {"Retry-After": "9"})
    assert headed.value.retry_after_s == 9.0, "the header has the last word"
    with pytest.raises(EndpointError) as final:
        check_status(400, told.encode())
    assert final.value.retry_after_s is None


async def test_a_told_wait_holds_for_every_call_of_the_model() -> None:
    busy = step({"error": {"message": "Please try again in 250ms."}}, 429)
    times: list[float] = []

    def timed(then: Step) -> Step:
        async def note(request: object) -> object:
            times.append(asyncio.get_running_loop().time())
            return await then(request)  # type: ignore[arg-type]

        return note  # type: ignore[return-value]

    async with endpoint(timed(busy), timed(step(reply(TEXT)))) as server:
        model = OpenAIChatModel(base_url=server.url, model="m", api_key=None, concurrency=1, backoff_s=0.0)
        got = await asyncio.gather(*(model.generate(ASK, Sampling()) for _ in range(3)))
        await model.aclose()
    assert [g.text for g in got] == [TEXT] * 3 and len(times) == 4
    assert times[1] - times[0] >= 0.24


@pytest.mark.parametrize(
    ("message", "seed", "sent"),
    [
        ("Invalid value at 'generation_config.seed' (TYPE_INT32), 1099511627783", 2**40 + 7, [2**40 + 7, 7]),
        ("seed must be less than or equal to 2147483647", 2**33 + 5, [2**33 + 5, 5]),
        ("seed: value out of range", 2**31, [2**31, 0]),
        ('Unknown name "seed": Cannot find field.', 2**40, [2**40, None]),
        ('Unknown name "seed": Cannot find field.', 7, [7, None]),
    ],
)
async def test_a_seed_that_is_too_wide_is_sent_narrower_and_not_dropped(
    message: str, seed: int, sent: list[int | None]
) -> None:
    async with endpoint(step([{"error": {"code": 400, "message": message}}], 400), step(reply(TEXT))) as server:
        model = OpenAIChatModel(base_url=server.url, model="m", api_key=None, max_attempts=1)
        for _ in range(2):
            got = await model.generate(ASK, Sampling(temperature=0.7, seed=seed))
        await model.aclose()
    assert got.text == TEXT and [body.get("seed") for body in server.bodies] == [*sent, sent[-1]]


def test_a_narrow_seed_that_is_refused_teaches_nothing_of_its_width() -> None:
    assert learn(Dialect(), {"seed": 3}, "seed must be at most 2", None) is None
