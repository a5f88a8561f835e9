"""LiteLLM."""

from typing import Literal

import litellm
from cells import KEY, MODEL, QUESTION, TOKENS, URL, try_all
from pydantic import BaseModel

turns = [{"role": "user", "content": QUESTION}]
where = {"model": f"openai/{MODEL}", "api_base": URL, "api_key": KEY}
answers = {"answer": {"enum": ["yes", "no"]}}
parameters = {"type": "object", "properties": answers, "required": ["answer"], "additionalProperties": False}


class Verdict(BaseModel):
    answer: Literal["yes", "no"]


def tools():
    tool = {"type": "function", "function": {"name": "judge", "parameters": parameters}}
    done = litellm.completion(**where, messages=turns, tools=[tool], tool_choice="required")
    return done.choices[0].message.tool_calls[0].function.arguments


def responses_stream():
    events = litellm.responses(**where, input=QUESTION, max_output_tokens=TOKENS, stream=True)
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def completions():
    done = litellm.text_completion(
        **where | {"model": f"text-completion-openai/{MODEL}"}, prompt=QUESTION, max_tokens=TOKENS
    )
    return done.choices[0].text


try_all(
    chat=lambda: litellm.completion(**where, messages=turns, max_tokens=TOKENS).choices[0].message.content,
    stream=lambda: "".join(
        part.choices[0].delta.content or ""
        for part in litellm.completion(**where, messages=turns, max_tokens=TOKENS, stream=True)
    ),
    schema=lambda: Verdict.model_validate_json(
        litellm.completion(**where, messages=turns, response_format=Verdict).choices[0].message.content
    ),
    tools=tools,
    responses=lambda: litellm.responses(**where, input=QUESTION, max_output_tokens=TOKENS).output[0].content[0].text,
    responses_stream=responses_stream,
    completions=completions,
)
