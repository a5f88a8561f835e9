"""The scripted model: rules, callables, failures and what it records."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cowest.errors import ModelCallError
from cowest.models.scripted import ScriptedChatModel, ScriptRule
from cowest.protocols import ChatModel
from cowest.types import Message, Sampling, Usage


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


RULES = [
    ScriptRule(contains="Draft:", reply="Refined. Answer: yes"),
    ScriptRule(contains="dose", reply="Answer: no"),
]


async def test_the_first_rule_that_matches_wins() -> None:
    model = ScriptedChatModel(RULES, default="Answer: maybe")
    assert isinstance(model, ChatModel) and model.name == "scripted"
    asked = ["what dose? Draft: 5", "what dose?", "else"]
    got = [(await model.generate(user(text), Sampling())).text for text in asked]
    assert got == ["Refined. Answer: yes", "Answer: no", "Answer: maybe"]


async def test_only_the_last_user_message_counts() -> None:
    model = ScriptedChatModel(RULES, default="other")
    turns = (
        *user("dose"),
        Message(role="assistant", content="dose"),
        *user("hello"),
        Message(role="assistant", content="dose"),
    )
    assert (await model.generate(turns, Sampling())).text == "other"
    assert (await model.generate((Message(role="system", content="dose"),), Sampling())).text == "other"


async def test_no_rule_and_no_default_is_an_error() -> None:
    with pytest.raises(ModelCallError, match="hello") as caught:
        await ScriptedChatModel(RULES).generate(user("hello"), Sampling())
    assert caught.value.kind == "no_rule"


async def test_a_callable_sees_messages_and_sampling() -> None:
    def script(messages: Sequence[Message], sampling: Sampling) -> str:
        if sampling.seed == 13:
            raise ModelCallError("http_500", "scripted outage")
        return f"{messages[-1].content} with seed {sampling.seed}"

    model = ScriptedChatModel(script, name="echo")
    got = await model.generate(user("one two"), Sampling(seed=3))
    assert got.text == "one two with seed 3" and model.name == "echo"
    assert got.usage == Usage(calls=1, input_tokens=2, output_tokens=5)
    with pytest.raises(ModelCallError, match="scripted outage"):
        await model.generate(user("x"), Sampling(seed=13))
    assert [(r.messages, r.sampling.seed) for r in model.requests] == [(user("one two"), 3), (user("x"), 13)]


async def test_fail_scripts_an_outage_by_call() -> None:
    model = ScriptedChatModel(RULES, default="ok", fail=[None, ModelCallError("timeout", "too slow")])
    assert (await model.generate(user("a"), Sampling())).text == "ok"
    with pytest.raises(ModelCallError, match="too slow"):
        await model.generate(user("b"), Sampling())
    assert (await model.generate(user("c"), Sampling())).text == "ok"
    assert len(model.requests) == 3


async def test_a_blank_reply_is_never_returned() -> None:
    with pytest.raises(ModelCallError) as caught:
        await ScriptedChatModel(lambda messages, sampling: " \n").generate(user("a"), Sampling())
    assert caught.value.kind == "empty"
