"""Pydantic AI."""

import asyncio
from typing import Literal

from cells import KEY, MODEL, QUESTION, TOKENS, URL, try_all
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=URL, api_key=KEY)
chat, responses = OpenAIChatModel(MODEL, provider=provider), OpenAIResponsesModel(MODEL, provider=provider)
short = {"max_tokens": TOKENS}


class Verdict(BaseModel):
    answer: Literal["yes", "no"]


async def streamed(model):
    async with Agent(model, model_settings=short).run_stream(QUESTION) as result:
        return "".join([piece async for piece in result.stream_text(delta=True)])


def ran(model, output, **settings):
    return Agent(model, output_type=output, model_settings=settings or None).run_sync(QUESTION).output


try_all(
    chat=lambda: ran(chat, str, **short),
    stream=lambda: asyncio.run(streamed(chat)),
    schema=lambda: ran(chat, NativeOutput(Verdict)),
    tools=lambda: ran(chat, Verdict),
    responses=lambda: ran(responses, str, **short),
    responses_stream=lambda: asyncio.run(streamed(responses)),
    responses_schema=lambda: ran(responses, NativeOutput(Verdict)),
    responses_tools=lambda: ran(responses, Verdict),
)
