"""OpenAI's Agents SDK, over the Responses API and over chat completions."""

import asyncio
from typing import Literal

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from cells import KEY, MODEL, QUESTION, TOKENS, URL, try_all
from openai import AsyncOpenAI
from pydantic import BaseModel

set_tracing_disabled(True)
short = ModelSettings(max_tokens=TOKENS)
forced = ModelSettings(tool_choice="required", max_tokens=80)


class Verdict(BaseModel):
    answer: Literal["yes", "no"]


def run(kind, streams=False, **agent):
    async def one():
        client = AsyncOpenAI(base_url=URL, api_key=KEY)  # in the event loop that it is used in
        made = Agent(name="doctor", instructions="Be brief.", model=kind(model=MODEL, openai_client=client), **agent)
        if not streams:
            return (await Runner.run(made, QUESTION)).final_output
        result = Runner.run_streamed(made, QUESTION)
        async for _ in result.stream_events():
            pass
        return result.final_output

    return asyncio.run(one())


def tools(kind):
    called = []

    @function_tool
    def judge(answer: Literal["yes", "no"]) -> str:
        """Give a verdict."""
        called.append(answer)
        return "noted"

    # A small model's words after the call may run into max_tokens, which this SDK takes for a failure: the call is what is tried.
    run(kind, tools=[judge], model_settings=forced, tool_use_behavior="stop_on_first_tool")
    return called


chat, responses = OpenAIChatCompletionsModel, OpenAIResponsesModel
try_all(
    chat=lambda: run(chat, model_settings=short),
    stream=lambda: run(chat, streams=True, model_settings=short),
    schema=lambda: run(chat, output_type=Verdict),
    tools=lambda: tools(chat),
    responses=lambda: run(responses, model_settings=short),
    responses_stream=lambda: run(responses, streams=True, model_settings=short),
    responses_schema=lambda: run(responses, output_type=Verdict),
    responses_tools=lambda: tools(responses),
)
