"""OpenAI's package for Python."""

from typing import Literal

from cells import KEY, MODEL, QUESTION, TOKENS, URL, try_all
from openai import OpenAI
from pydantic import BaseModel

client = OpenAI(base_url=URL, api_key=KEY)
turns = [{"role": "user", "content": QUESTION}]


class Verdict(BaseModel):
    answer: Literal["yes", "no"]


answers = {"answer": {"enum": ["yes", "no"]}}
parameters = {"type": "object", "properties": answers, "required": ["answer"], "additionalProperties": False}


def chat():
    return client.chat.completions.create(model=MODEL, messages=turns, max_tokens=TOKENS).choices[0].message.content


def stream():
    chunks = client.chat.completions.create(model=MODEL, messages=turns, max_tokens=TOKENS, stream=True)
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def schema():
    return client.chat.completions.parse(model=MODEL, messages=turns, response_format=Verdict).choices[0].message.parsed


def tools():
    tool = {"type": "function", "function": {"name": "judge", "parameters": parameters}}
    done = client.chat.completions.create(model=MODEL, messages=turns, tools=[tool], tool_choice="required")
    call = done.choices[0].message.tool_calls[0]
    after = [*turns, done.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "noted"}]
    more = {"tools": [tool], "tool_choice": "none", "max_tokens": TOKENS}
    return client.chat.completions.create(model=MODEL, messages=after, **more).choices[0].message.content


def logprobs():
    done = client.chat.completions.create(model=MODEL, messages=turns, max_tokens=4, logprobs=True, top_logprobs=2)
    return done.choices[0].logprobs.content[0].top_logprobs


def responses():
    first = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=TOKENS)
    more = [*turns, *first.output, {"role": "user", "content": "Are you sure?"}]
    return client.responses.create(model=MODEL, input=more, max_output_tokens=TOKENS).output_text


def responses_stream():
    with client.responses.stream(model=MODEL, input=QUESTION, max_output_tokens=TOKENS) as events:
        return events.get_final_response().output_text


def responses_schema():
    return client.responses.parse(model=MODEL, input=QUESTION, text_format=Verdict).output_parsed


def responses_tools():
    tool = {"type": "function", "name": "judge", "parameters": parameters, "strict": True}
    done = client.responses.create(model=MODEL, input=QUESTION, tools=[tool], tool_choice="required")
    return done.output[0].arguments


def completions():
    return client.completions.create(model=MODEL, prompt=QUESTION, max_tokens=TOKENS).choices[0].text


try_all(
    chat=chat,
    stream=stream,
    schema=schema,
    tools=tools,
    logprobs=logprobs,
    responses=responses,
    responses_stream=responses_stream,
    responses_schema=responses_schema,
    responses_tools=responses_tools,
    completions=completions,
)
