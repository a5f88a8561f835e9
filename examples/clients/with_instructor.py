"""Instructor, in its modes for tools, JSON schema, and the Responses API."""

from typing import Literal

import instructor
from cells import KEY, MODEL, QUESTION, URL, try_all
from openai import OpenAI
from pydantic import BaseModel

turns = [{"role": "user", "content": QUESTION}]


class Verdict(BaseModel):
    answer: Literal["yes", "no"]


def ask(mode, **more):
    client = instructor.from_openai(OpenAI(base_url=URL, api_key=KEY), mode=mode)
    return client.chat.completions.create(
        model=MODEL, messages=turns, response_model=Verdict, max_retries=0, **more
    ).answer


try_all(
    schema=lambda: ask(instructor.Mode.JSON_SCHEMA),
    tools=lambda: ask(instructor.Mode.TOOLS),
    responses_tools=lambda: ask(instructor.Mode.RESPONSES_TOOLS),
)
