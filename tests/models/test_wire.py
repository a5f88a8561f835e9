"""Request bodies and replies as pure functions: nothing that a server sends may crash the client or pose as an answer."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.models.scripted_endpoint import reply

from cowest.models.failures import EndpointError, check_status
from cowest.models.replies import parse_reply, read_reply
from cowest.models.wire import strict_schema
from cowest.scoring.judge import Grade
from cowest.types import Completion, Usage

USAGE = {"prompt_tokens": 10, "completion_tokens": 6}


def choice(text: str | None, index: int = 0, finish: str = "stop", **more: object) -> dict[str, object]:
    return {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": finish} | more


def error_of(payload: object) -> EndpointError:
    with pytest.raises(EndpointError) as caught:
        read_reply(json.dumps(payload).encode())
    return caught.value


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "message",
                    "content",
                    "usage",
                    "error",
                    "finish_reason",
                    "logprobs",
                    "index",
                    "text",
                    "token",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    anything | st.builds(lambda c: {"choices": [{"message": {"content": "x"}, "logprobs": c, "index": c}]}, anything)
)
def test_any_json_is_an_answer_with_text_or_an_endpoint_error(payload: object) -> None:
    try:
        got = parse_reply(json.dumps(payload).encode())
    except EndpointError as error:
        assert error.kind and str(error)
    else:
        assert got.text.strip()
        assert Completion.model_validate_json(got.model_dump_json()) == got, "the ledger can keep it"


@given(st.binary(max_size=40))
def test_any_bytes_are_no_crash(body: bytes) -> None:
    with pytest.raises(EndpointError):
        read_reply(body)


@pytest.mark.parametrize(
    "broken",
    [
        {"choices": [choice("Half of an ans", finish="error")], "usage": USAGE},
        {"choices": [choice("Half of an ans", finish="abort")], "usage": USAGE},
        {"choices": [choice("Half of an ans", error={"code": 502, "message": "upstream"})], "usage": USAGE},
        {"choices": [choice("An answer.")], "error": {"message": "overloaded"}, "usage": USAGE},
    ],
    ids=["OpenRouter's reason", "vLLM's reason", "error in the choice", "error beside the choices"],
)
def test_text_that_broke_off_in_a_failure_is_no_answer(broken: object) -> None:
    error = error_of(broken)
    assert error.kind == "server_error" and error.retry and error.usage.calls == 1


def test_an_error_without_usage_may_have_been_paid() -> None:
    error = error_of({"error": {"message": "model crashed"}})
    assert error.kind == "server_error" and error.maybe_paid and error.usage == Usage()


def test_good_samples_are_not_lost_for_a_bad_one() -> None:
    choices = [choice("b", 2), choice(None, 1), choice("a", 0), choice("x", 3, "content_filter")]
    got = read_reply(json.dumps({"choices": choices, "usage": USAGE}).encode())
    assert [c.text for c in got.choices] == ["a", "b"] and got.usage.output_tokens == 6
    assert error_of({"choices": [choice(None), choice("x", 1, "content_filter")], "usage": USAGE}).kind == "empty"


@pytest.mark.parametrize(
    ("logprob", "read"),
    [(-0.5, -0.5), (0, 0.0), (-math.inf, -9999.0), (-(10**400), -9999.0), (math.nan, None), (10**400, None), (2, None)],
)
def test_odd_logprobs_lose_no_answer(logprob: float, read: float | None) -> None:
    content = [{"token": "a", "logprob": logprob, "top_logprobs": [{"token": "a", "logprob": logprob}]}]
    body = {"choices": [choice("a", logprobs={"content": content})], "usage": USAGE}
    got = parse_reply(json.dumps(body).encode())
    assert got.text == "a"
    if read is None:
        assert got.logprobs is None
    else:
        assert got.logprobs is not None and got.logprobs[0].logprob == read and got.logprobs[0].top == (("a", read),)


def test_a_count_that_cannot_be_is_estimated() -> None:
    got = parse_reply(json.dumps(reply("fine", usage={"prompt_tokens": 10**30, "completion_tokens": 3})).encode(), 40)
    assert got.usage == Usage(calls=1, input_tokens=10, output_tokens=3, estimated_calls=1)


@pytest.mark.parametrize(
    ("error", "retried"),
    [
        ({"code": "insufficient_quota"}, False),
        ({"code": None, "type": "insufficient_quota"}, False),
        ({"code": "rate", "type": "insufficient_quota"}, False),
        ({"code": "billing_not_active"}, False),
        ({"code": "rate_limit_exceeded", "type": "tokens"}, True),
        ({"code": 429, "message": "You exceeded your current quota. Please retry in 13 s."}, True),  # Gemini's pace
    ],
)
def test_only_an_empty_account_makes_a_429_final(error: dict[str, object], retried: bool) -> None:
    for body in ({"error": error}, [{"error": error}]):
        with pytest.raises(EndpointError) as caught:
            check_status(429, json.dumps(body).encode())
        assert caught.value.retry is retried and caught.value.kind == "http_429"
        assert retried or "quota" in str(caught.value)


def test_a_schema_as_strict_mode_wants_it() -> None:
    got = strict_schema(Grade.model_json_schema())
    assert isinstance(got, dict)
    assert got["additionalProperties"] is False and got["required"] == ["coherence", "consistency", "explanation"]
    assert '"default"' not in json.dumps(got)
    nested = strict_schema({"$defs": {"A": {"properties": {"default": {"type": "string", "default": "x"}}}}})
    assert nested == {
        "$defs": {
            "A": {
                "properties": {"default": {"type": "string"}},
                "required": ["default"],
                "additionalProperties": False,
            }
        }
    }
