"""What models want of a request: known by name, said in the recipe, or learned from an error."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from tests.models.scripted_endpoint import Endpoint, Step, endpoint, reply, step

from cowest.assembly.sources.endpoint import EndpointSource
from cowest.errors import ModelCallError
from cowest.models.dialect import Dialect, Quirks, dialect_of, learn
from cowest.models.openai import OpenAIChatModel
from cowest.models.turns import merged
from cowest.models.wire import request_body
from cowest.recipe.models import OpenAIModelConfig
from cowest.types import Completion, Message, Sampling

ASK = (Message(role="system", content="Be brief."), Message(role="user", content="Why?"))
WARM = Sampling(temperature=0.7, top_p=0.9, max_tokens=50, seed=3)


@pytest.mark.parametrize(
    ("model", "reasoning"),
    [
        ("o1", True),
        ("o3", True),
        ("o4-mini", True),
        ("o3-mini-2025-01-31", True),
        ("gpt-5", True),
        ("gpt-5-mini", True),
        ("gpt-5.1", True),
        ("openai/gpt-5-nano", True),
        ("openai/o3-mini:free", True),
        ("gpt-5-codex", True),
        ("gpt-5.4-nano", True),
        ("gpt-5.6-luna", True),
        ("gpt-6.1-sol", True),
        ("openai/gpt-6-luna-2026-09-22", True),
        ("gpt-4o", False),
        ("gpt-4.1-mini", False),
        ("o-mini", False),
        ("phi-o1", False),
        ("gpt-5-chat-latest", False),
        ("meta-llama/Llama-3.1-8B-Instruct", False),
    ],
)
def test_reasoning_models_are_known_by_name(model: str, reasoning: bool) -> None:
    body = request_body(model, ASK, WARM.model_copy(update={"logprobs": 2}), dialect_of(model))
    assert ("max_completion_tokens" in body) is reasoning and ("max_tokens" in body) is not reasoning
    assert ("temperature" in body) is not reasoning and ("top_p" in body) is not reasoning
    assert ("logprobs" in body) is not reasoning


def test_a_reasoning_model_that_is_told_not_to_think_takes_what_others_take() -> None:
    sampling = WARM.model_copy(update={"logprobs": 2})
    body = request_body("gpt-6-sol", ASK, sampling, dialect_of("gpt-6-sol", Quirks(thinks=False)))
    assert body["max_completion_tokens"] == 50 and body["temperature"] == 0.7 and body["logprobs"] is True
    omitted = dialect_of("gpt-6-sol", Quirks(thinks=False, temperature="omit"))
    assert "temperature" not in request_body("gpt-6-sol", ASK, sampling, omitted)


@pytest.mark.parametrize(
    ("model", "sampled"),
    [
        ("claude-haiku-5-5", False),
        ("anthropic/claude-opus-4.7", False),
        ("claude-sonnet-5-20260630", False),
        ("claude-fable-5-2", False),
        ("claude-haiku-4-5", True),
        ("claude-sonnet-4-6", True),
        ("claude-opus-4-6", True),
    ],
)
def test_models_that_refuse_sampling_parameters_are_known_by_name(model: str, sampled: bool) -> None:
    body = request_body(model, ASK, WARM, dialect_of(model))
    assert body["max_tokens"] == 50 and ("temperature" in body) is sampled and ("top_p" in body) is sampled


@pytest.mark.parametrize(
    ("model", "system"),
    [
        ("google/gemma-2-9b-it", False),
        ("gemma3:4b", False),
        ("medgemma-4b-it", False),
        ("o1-mini", False),
        ("o1", True),
    ],
)
def test_models_without_a_system_role_are_known_by_name(model: str, system: bool) -> None:
    assert dialect_of(model).system is system


def test_the_recipe_has_the_last_word() -> None:
    said = Quirks(token_limit="max_tokens", temperature="send", seed="omit", system_prompt="merge", structured="prompt")
    sampling = WARM.model_copy(update={"json_schema": {"type": "object"}})
    body = request_body("o3", ASK, sampling, dialect_of("o3", said), {"reasoning_effort": "low"})
    assert body == {
        "model": "o3",
        "messages": [{"role": "user", "content": "Be brief.\n\nWhy?"}],
        "max_tokens": 50,
        "temperature": 0.7,
        "top_p": 0.9,
        "reasoning_effort": "low",
    }


def test_a_seed_is_of_no_use_to_greedy_decoding() -> None:
    assert "seed" not in request_body("m", ASK, Sampling(temperature=0.0, seed=3))
    assert request_body("m", ASK, WARM)["seed"] == 3


def test_system_turns_go_before_the_first_user_turn() -> None:
    turns = [Message(role="assistant", content="Hi."), *ASK, Message(role="system", content="Really.")]
    assert [(m.role, m.content) for m in merged(turns)] == [
        ("assistant", "Hi."),
        ("user", "Be brief.\n\nReally.\n\nWhy?"),
    ]
    assert merged([ASK[0]])[0].role == "user"
    assert list(merged([ASK[1]])) == [ASK[1]]


def test_structured_output_forms() -> None:
    schema = Sampling(json_schema={"type": "object"})
    strict = request_body("m", ASK, schema)["response_format"]
    named = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    assert strict == {"type": "json_schema", "json_schema": named}
    loose = request_body("m", ASK, schema, Dialect(structured="json_object"))
    assert loose["response_format"] == {"type": "json_object"}
    assert "response_format" not in request_body("m", ASK, schema, Dialect(structured="prompt"))


class Picky:
    """An endpoint that rejects requests until they are as it wants them."""

    def __init__(self, *rules: tuple[str, str]) -> None:
        self.rules = rules

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        for field, message in self.rules:
            has_system = any(m["role"] == "system" for m in body["messages"])
            if (field == "system" and has_system) or field in body:
                error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
                return web.json_response({"error": error}, status=400)
        return web.json_response(reply(usage={"prompt_tokens": 5, "completion_tokens": 1}))


async def _ask(picky: Step, sampling: Sampling = WARM, **settings: object) -> tuple[Completion, Endpoint]:
    async with endpoint(picky) as server:
        model = OpenAIChatModel(base_url=server.url, model="any", api_key=None, max_attempts=1, **settings)  # type: ignore[arg-type]
        try:
            await model.generate(ASK, sampling)
            again = await model.generate(ASK, sampling)
        finally:
            await model.aclose()
    return again, server


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("max_tokens", "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
        ("max_tokens", "Unrecognized request argument supplied: max_tokens"),
        ("system", "Only user and assistant roles are supported!"),
        ("temperature", "Unsupported value: 'temperature' does not support 0.7 with this model. Only the default is."),
        ("temperature", "`temperature` is deprecated for this model."),
        ("top_p", "Unsupported parameter: 'top_p' is not supported with this model."),
        ("seed", "Unrecognized request argument supplied: seed"),
        ("logprobs", "This model does not support logprobs."),
        ("system", "System role not supported"),
        ("system", "Conversation roles must alternate user/assistant/user/assistant/..."),
        ("stream_options", "extra fields not permitted: stream_options"),
    ],
)
async def test_an_error_that_names_a_field_is_learned_from_once(field: str, message: str) -> None:
    sampling = WARM.model_copy(update={"logprobs": 1})
    got, server = await _ask(Picky((field, message)), sampling, stream=field == "stream_options")
    assert got.text == "fine"
    assert len(server.bodies) == 3, "one lesson, and the second call has learned it"
    assert [a.outcome for a in got.attempts] == ["ok"]


@pytest.mark.parametrize(("effort", "sampled"), [("none", True), ("low", False), (None, False)])
async def test_an_endpoint_is_asked_as_the_recipe_s_effort_has_it(effort: str | None, sampled: bool) -> None:
    async with endpoint(step(reply())) as server:
        config = OpenAIModelConfig(
            kind="openai",
            model="gpt-6-sol",
            base_url=server.url,
            api_key_env=None,
            extra={} if effort is None else {"reasoning_effort": effort},
        )
        model = EndpointSource(config).open()
        await model.generate(ASK, WARM.model_copy(update={"logprobs": 1}))
        await model.aclose()
    assert ("temperature" in server.bodies[0]) is sampled and ("logprobs" in server.bodies[0]) is sampled
    assert server.bodies[0].get("reasoning_effort") == effort and "max_completion_tokens" in server.bodies[0]


def test_function_tools_that_want_another_address_are_not_offered_again() -> None:
    said = (
        "Function tools with reasoning_effort are not supported for gpt-6-luna in /v1/chat/completions. To use function tools, "
        "use /v1/responses or set reasoning_effort to 'none'."
    )
    learned = learn(dialect_of("gpt-6-luna"), {"tools": [], "reasoning_effort": "low"}, said, "reasoning_effort")
    assert learned is not None and not learned.tools


async def test_several_lessons_in_a_row() -> None:
    rules = (
        ("max_tokens", "'max_tokens' is not supported, use 'max_completion_tokens' instead"),
        ("temperature", "'temperature' is not supported"),
        ("seed", "unknown field seed"),
    )
    got, server = await _ask(Picky(*rules))
    assert got.text == "fine" and len(server.bodies) == 5
    assert "max_completion_tokens" in server.bodies[-1] and "temperature" not in server.bodies[-1]


async def test_what_the_recipe_settled_is_not_unlearned() -> None:
    with pytest.raises(ModelCallError) as caught:
        await _ask(Picky(("seed", "unknown field seed")), quirks=Quirks(seed="send"))
    assert caught.value.kind == "http_400" and "unknown field seed" in str(caught.value)


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 8192 tokens.",
        "Invalid model: any",
        "Invalid 'messages'",
        "",
        "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 3 instead.",
        "Invalid value for 'max_tokens': it is too large. This model supports at most 4096.",
    ],
)
async def test_an_error_about_something_else_teaches_nothing(message: str) -> None:
    async with endpoint(step({"error": {"message": message}}, 400)) as server:
        model = OpenAIChatModel(base_url=server.url, model="any", api_key=None)
        with pytest.raises(ModelCallError, match="HTTP 400"):
            await model.generate(ASK, WARM)
        await model.aclose()
    assert len(server.bodies) == 1


async def test_a_server_that_rejects_both_names_of_the_limit_is_not_asked_for_ever() -> None:
    message = "'max_tokens' and 'max_completion_tokens' are not supported"
    async with endpoint(step({"error": {"message": message, "param": "max_tokens"}}, 400)) as server:
        model = OpenAIChatModel(base_url=server.url, model="any", api_key=None)
        async with asyncio.timeout(20):
            with pytest.raises(ModelCallError, match="HTTP 400"):
                await model.generate(ASK, WARM)
        await model.aclose()
    assert len(server.bodies) == 2


async def test_calls_that_are_rejected_together_learn_together() -> None:
    picky = Picky(
        ("max_tokens", "use 'max_completion_tokens', 'max_tokens' is unsupported"),
        ("temperature", "unknown: temperature"),
    )

    async def slowly(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.03)  # all are under way before the first is answered
        return await picky(request)

    async with endpoint(slowly) as server:
        model = OpenAIChatModel(base_url=server.url, model="any", api_key=None, max_attempts=1)
        got = await asyncio.gather(*(model.generate(ASK, WARM) for _ in range(8)))
        await model.aclose()
    assert [g.text for g in got] == ["fine"] * 8 and len(server.bodies) == 24


def test_of_two_fields_that_exclude_each_other_top_p_goes() -> None:
    sent = request_body("m", ASK, WARM)
    learned = learn(Dialect(), sent, "`temperature` and `top_p` cannot both be specified for this model.", None)
    assert learned is not None and learned.temperature and not learned.top_p
    assert learn(Dialect(fixed=frozenset({"top_p"})), sent, "top_p is not supported", None) is None


def test_only_what_was_sent_can_be_at_fault() -> None:
    sent = request_body("m", ASK, Sampling())
    assert learn(Dialect(), sent, "seed is not supported", None) is None
    assert learn(Dialect(), sent, "temperature is not supported", None) is not None


# Several samples


async def test_n_samples_in_one_request_share_the_prompt() -> None:
    async def several(request: web.Request) -> web.StreamResponse:
        n = (await request.json()).get("n", 1)
        choices = [
            {"index": i, "message": {"content": "ab" * (i + 1)}, "finish_reason": "stop"} for i in reversed(range(n))
        ]
        return web.json_response({"choices": choices, "usage": {"prompt_tokens": 10, "completion_tokens": 7}})

    async with endpoint(several) as server:
        model = OpenAIChatModel(base_url=server.url, model="m", api_key=None, samples_per_call=3)
        got = await model.generate_many(ASK, WARM, 5)
        await model.aclose()
    assert [g.text for g in got] == ["ab", "abab", "ababab", "ab", "abab"]
    assert [body.get("n") for body in server.bodies] == [3, 2]
    assert [body["seed"] for body in server.bodies] == [3, 6], "a series does not repeat its beginning"
    assert sum(g.usage.calls for g in got) == 2
    assert sum(g.usage.input_tokens for g in got) == 20 and sum(g.usage.output_tokens for g in got) == 14


async def test_a_server_without_n_is_asked_one_by_one() -> None:
    picky = Picky(("n", "Only n = 1 is supported, 'n' must be 1: unsupported"))
    async with endpoint(picky) as server:
        model = OpenAIChatModel(base_url=server.url, model="m", api_key=None, samples_per_call=4, max_attempts=1)
        got = await model.generate_many(ASK, WARM, 4)
        await model.aclose()
    assert len(got) == 4 and [body.get("n") for body in server.bodies][-3:] == [None] * 3


async def test_logprobs_come_back() -> None:
    content = [{"token": "fi", "logprob": -0.5, "top_logprobs": [{"token": "fi", "logprob": -0.5}]}]
    body = {"choices": [{"message": {"content": "fi"}, "finish_reason": "stop", "logprobs": {"content": content}}]}
    async with endpoint(step(body)) as server:
        model = OpenAIChatModel(base_url=server.url, model="m", api_key=None)
        got = await model.generate(ASK, Sampling(logprobs=1))
        await model.aclose()
    assert server.bodies[0]["logprobs"] is True and server.bodies[0]["top_logprobs"] == 1
    assert got.logprobs is not None
    assert (got.logprobs[0].token, got.logprobs[0].logprob) == ("fi", -0.5)
    assert got.logprobs[0].top == (("fi", -0.5),)
