"""LangChain's OpenAI integration."""

from typing import Literal

from cells import KEY, MODEL, QUESTION, TOKENS, URL, try_all
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

chat = ChatOpenAI(base_url=URL, api_key=KEY, model=MODEL, max_tokens=TOKENS)
free = ChatOpenAI(base_url=URL, api_key=KEY, model=MODEL)
responses = ChatOpenAI(base_url=URL, api_key=KEY, model=MODEL, use_responses_api=True)


class Verdict(BaseModel):
    """Give a verdict."""

    answer: Literal["yes", "no"]


def called(model):
    return model.bind_tools([Verdict], tool_choice="any").invoke(QUESTION).tool_calls[0]["args"]


try_all(
    chat=lambda: chat.invoke(QUESTION).content,
    stream=lambda: "".join(str(chunk.content) for chunk in chat.stream(QUESTION)),
    schema=lambda: free.with_structured_output(Verdict).invoke(QUESTION),
    tools=lambda: called(free),
    logprobs=lambda: chat.bind(logprobs=True, max_tokens=4).invoke(QUESTION).response_metadata["logprobs"]["content"],
    responses=lambda: responses.bind(max_output_tokens=TOKENS).invoke(QUESTION).text,
    responses_stream=lambda: "".join(chunk.text for chunk in responses.bind(max_output_tokens=TOKENS).stream(QUESTION)),
    responses_schema=lambda: responses.with_structured_output(Verdict).invoke(QUESTION),
    responses_tools=lambda: called(responses),
    completions=lambda: OpenAI(base_url=URL, api_key=KEY, model=MODEL, max_tokens=TOKENS).invoke(QUESTION),
)
