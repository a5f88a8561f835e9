"""A model's answer as a checked record: ask for JSON, read it leniently, validate it, ask once more.

Servers differ: some hold an answer to a JSON schema, some only to JSON, most to nothing. So the schema also stands in the
prompt, the text is repaired where it is nearly JSON, and pydantic decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

from json_repair import repair_json
from pydantic import BaseModel, ValidationError

from cowest.errors import ModelCallError
from cowest.protocols import ChatModel
from cowest.types import Completion, Message, Sampling

R = TypeVar("R", bound=BaseModel)

_FENCED: Final = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
_DECODER: Final = json.JSONDecoder()
_MOST_OBJECTS: Final = 1000


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
        usage = first.usage + second.usage  # both were paid for
        return parse_json(second.text, record), second.model_copy(update={"usage": usage})
    except ValueError as problem:
        raise ModelCallError("bad_json", f"{model.name}: no such JSON object in two answers: {problem}") from None


def parse_json(text: str, record: type[R]) -> R:
    r"""The record in a text: plain JSON, fenced, with prose around it, or nearly JSON. Raises ValueError with what is wrong.

    >>> class Grade(BaseModel):
    ...     score: float
    >>> parse_json('Sure! ```json\n{"score": "7.5",}\n```', Grade).score
    7.5
    """
    problem = "there is no JSON object in the answer"
    for found in _objects(text):
        try:
            return record.model_validate(found)
        except ValidationError as error:
            problem = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors()[:3])
    raise ValueError(problem)


def _objects(text: str) -> Iterator[dict[str, object]]:
    """What may be the object, the likeliest first: whole ones, the last before those it may only think aloud; then mended ones."""
    whole: list[dict[str, object]] = []
    begin = text.find("{")
    try:
        while begin >= 0 and len(whole) < _MOST_OBJECTS:
            try:
                found, end = _DECODER.raw_decode(text, begin)
            except ValueError:
                begin = text.find("{", begin + 1)
                continue
            whole.append(found)
            begin = text.find("{", end)
        yield from reversed(whole)
        first, last = text.find("{"), text.rfind("}")
        inner = text[first : last + 1] if 0 <= first < last else ""
        for candidate in (text, *_FENCED.findall(text), inner, text[first:] if first >= 0 else ""):
            mended: object = repair_json(candidate, return_objects=True) if "{" in candidate else None
            if isinstance(mended, dict):
                yield mended
    except RecursionError:
        return  # brackets within brackets without end


def _instruction(schema: object) -> str:
    return f"Answer with one JSON object and nothing else. Its JSON schema: {json.dumps(schema)}"
