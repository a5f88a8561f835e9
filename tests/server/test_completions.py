"""``/v1/completions`` through OpenAI's own client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types import Completion
from tests.server.loopback import DEFAULTS, DRAFT, Client, Upstream, chunk, reply, serving
from tests.server.test_openai_sdk import streams

from cowest.ledger.exchanges import read_exchanges
from cowest.server.settings import Settings


async def test_plain(client: AsyncOpenAI, upstream: Upstream) -> None:
    done = await client.completions.create(model="pair", prompt="May I?", max_tokens=9, stop="\n", best_of=1)
    Completion.model_validate(done.model_dump(), strict=True)
    assert done.choices[0].text == "No, it is not." and done.id.startswith("cmpl-")
    asked = upstream.bodies[0]
    assert DRAFT in asked["messages"][0]["content"] and asked["max_tokens"] == 9 and asked["stop"] == "\n"
    assert not {"prompt", "best_of"} & asked.keys()


async def test_several_prompts_are_several_requests(upstream: Upstream, tmp_path: Path) -> None:
    async with serving(upstream.url, ledger=tmp_path / "l.sqlite") as served:
        async with AsyncOpenAI(base_url=served.url, api_key="none") as client:
            done = await client.completions.create(model="pair", prompt=["May I?", "Must I?"])
            one = await client.completions.create(model="pair", prompt="May I?")
        assert done.usage is not None and one.usage is not None and served.server.admission.inside == 0
        assert (
            done.usage.completion_tokens == 2 * one.usage.completion_tokens > 2 * 7
        )  # both models' tokens, of both prompts
        judged = await served.judge({"id": f"{done.id}-1", "helpful": True})
        assert judged.status == 200
        assert await served.metric('cowest_requests_total{model="pair",status="200"}') == 3
    assert len(list(read_exchanges(tmp_path / "l.sqlite", "pair"))) == 3


async def test_each_prompt_counts_for_the_rate_and_one_failure_is_all(upstream: Upstream) -> None:
    async with (
        serving(upstream.url, settings=Settings(rate_per_minute=6), max_attempts=1) as served,
        AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.RateLimitError):
            await client.completions.create(model="pair", prompt=["a", "b"])
    assert not upstream.bodies
    upstream.plan = [400]
    async with serving(upstream.url, max_attempts=1) as served:
        async with AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0) as client:
            with pytest.raises(openai.BadRequestError):
                await client.completions.create(model="pair", prompt=["a", "b"])
        assert served.server.admission.inside == 0


async def test_stream(client: AsyncOpenAI, upstream: Upstream) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}
    first, rest = chunk({"role": "assistant", "content": ""}), [chunk({"content": "No"}), chunk({"content": "!"})]
    upstream.plan = [streams(first, *rest, chunk({}, "length"), chunk({}, choices=[], usage=usage))]
    options: Any = {"include_usage": True}
    stream = await client.completions.create(model="pair", prompt="Hm?", stream=True, stream_options=options)
    found = [part async for part in stream]
    assert "".join(c.text for part in found for c in part.choices) == "No!"
    assert found[-2].choices[0].finish_reason == "length" and found[-1].usage is not None and not found[-1].choices
    assert {part.object for part in found} == {"text_completion"} and len({part.id for part in found}) == 1


async def test_logprobs(client: AsyncOpenAI, upstream: Upstream) -> None:
    top = {"token": "No", "logprob": -0.1, "bytes": None}
    content = [{**top, "top_logprobs": [top]}, {"token": "!", "logprob": -2.0, "bytes": None, "top_logprobs": []}]
    choice = {"index": 0, "message": {"content": "No!"}, "finish_reason": "stop", "logprobs": {"content": content}}
    upstream.plan = [reply(choices=[choice])]
    scores = (await client.completions.create(model="pair", prompt="Hm?", logprobs=1)).choices[0].logprobs
    assert scores is not None and (scores.tokens, scores.token_logprobs) == (["No", "!"], [-0.1, -2.0])
    assert scores.text_offset == [0, 2] and scores.top_logprobs == [{"No": -0.1}, {}]
    assert upstream.bodies[0]["logprobs"] is True and upstream.bodies[0]["top_logprobs"] == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"prompt": [1, 2, 3]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a"] * (DEFAULTS.max_n + 1)}, "prompt"),
        ({"prompt": ["a", "b"], "stream": True}, "stream"),
    ],
)
async def test_what_cannot_be_is_refused_in_words(
    client: AsyncOpenAI, upstream: Upstream, fields: Any, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.completions.create(**{"model": "pair", "prompt": "Hm?"} | fields)
    assert refused.value.param == param and not upstream.bodies


async def test_a_path_that_is_not_there_names_those_that_are(served: Client) -> None:
    got = await served.get("/chat/completions")
    told = got.json["error"]
    assert got.status == 404 and told["type"] == "invalid_request_error"
    assert "POST /v1/responses" in told["message"] and "GET /v1/models/{id}" in told["message"]
    wrong = await served.get("/v1/completions")
    assert wrong.status == 405 and wrong.json["error"]["message"] == "this path takes POST, not GET"
    unknown = await served.ask(model="gpt-4")
    assert unknown.status == 404 and "pair, pair.weak, pair.strong" in unknown.json["error"]["message"]
