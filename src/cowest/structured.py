"""A model's answer as a checked record: ask for JSON, read it leniently, validate it, ask once more.

Servers differ: some hold an answer to a JSON schema, some only to JSON, most to nothing. So the schema also stands in the
prompt, the text is repaired where it is nearly JSON, and pydantic decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final, TypeVar

from json_repair import repair_json
from pydantic import BaseModel, ValidationError

from cowest.errors import ModelCallError
from cowest.protocols import ChatModel
from cowest.types import Completion, Message, Sampling

R = TypeVar("R", bound=BaseModel)

_FENCED: Final = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)


async def ask_json(
    model: ChatModel, messages: Sequence[Message], record: type[R], sampling: Sampling
) -> tuple[R, Completion]:
    """The answer as a ``record``, and the completion that held it.

    An answer that is none is asked for once more, with what is wrong. Raises ModelCallError ``bad_json`` when that fails
    too, or what the model raises.
    """
    schema = record.model_json_schema()
    asked = sampling.model_copy(update={"json_schema": schema})
    form = Message(role="user", content=f"{messages[-1].content}\n\n{_instruction(schema)}")
    turns = [*messages[:-1], form]
    first = await model.generate(turns, asked)
    try:
        return parse_json(first.text, record), first
    except ValueError as problem:
        again = Message(role="user", content=f"That is not it: {problem}. {_instruction(schema)}")
    second = await model.generate([*turns, Message(role="assistant", content=first.text), again], asked)
    try:
        return parse_json(second.text, record), second
    except ValueError as problem:
        raise ModelCallError("bad_json", f"{model.name}: no such JSON object in two answers: {problem}") from None


def parse_json(text: str, record: type[R]) -> R:
    r"""The record in a text: plain JSON, fenced, with prose around it, or nearly JSON. Raises ValueError with what is wrong.

    >>> class Grade(BaseModel):
    ...     score: float
    >>> parse_json('Sure! ```json\n{"score": "7.5",}\n```', Grade).score
    7.5
    """
    fenced = _FENCED.findall(text)
    begin, end = text.find("{"), text.rfind("}")
    candidates = [text, *fenced, text[begin : end + 1] if 0 <= begin < end else "", text[begin:] if begin >= 0 else ""]
    problem = "there is no JSON object in the answer"
    for candidate in candidates:
        found = _loads(candidate)
        if not isinstance(found, dict):
            continue
        try:
            return record.model_validate(found)
        except ValidationError as error:
            problem = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors()[:3])
    raise ValueError(problem)


def _loads(text: str) -> object:
    if "{" not in text:
        return None
    try:
        return json.loads(text)
    except ValueError:
        repaired: object = repair_json(text, return_objects=True)
        return repaired


def _instruction(schema: object) -> str:
    return f"Answer with one JSON object and nothing else. Its JSON schema: {json.dumps(schema)}"
