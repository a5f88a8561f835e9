"""Lines of a batch's output are read like any other answer: cut-offs named alike, secrets struck out."""

from __future__ import annotations

import base64
import json

import pytest
from pydantic import JsonValue

from cowest.ledger.records import Call
from cowest.models.batch_wire import read_answer
from cowest.models.secrets import Secrets
from cowest.types import Usage

KEY = "sk-test-0123456789abcdefSECRET"


def line(content: JsonValue, finish: str = "stop", tokens: int = 3) -> bytes:
    choice: JsonValue = {"index": 0, "message": {"content": content}, "finish_reason": finish}
    body: JsonValue = {"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": tokens}}
    return json.dumps({"custom_id": "k", "response": {"status_code": 200, "body": body}}).encode()


CALL = Call("k", "m", "{}", Usage(calls=1, input_tokens=20, output_tokens=16))
UNKNOWN = Call("k", "m", "{}", Usage())


@pytest.mark.parametrize("told", [KEY, base64.b64encode(f"Bearer {KEY}".encode()).decode(), KEY[3:20]])
def test_a_secret_is_struck_out(told: str) -> None:
    got = read_answer(line(f"It is {told} and so on"), CALL, Secrets(KEY))
    assert got.text.startswith("It is ") and got.text.endswith(" and so on")
    assert "***" in got.text and told not in got.text


@pytest.mark.parametrize(
    ("finish", "tokens", "call", "read"),
    [
        ("stop", 3, CALL, "stop"),
        ("stop", 16, CALL, "length"),
        ("max_tokens", 3, CALL, "length"),
        ("stop", 16, UNKNOWN, "stop"),
        ("end_turn", 0, UNKNOWN, "stop"),
    ],
)
def test_a_cut_off_is_named_as_elsewhere(finish: str, tokens: int, call: Call, read: str) -> None:
    assert read_answer(line([{"type": "text", "text": "Yes."}], finish, tokens), call, Secrets()).finish_reason == read
