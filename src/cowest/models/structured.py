"""A model's answer as a checked record: ask for JSON, read it leniently, validate it, ask once more.

Servers differ: some hold an answer to a JSON schema, some only to JSON, most to nothing. So the schema also stands in the
prompt, the text is repaired where it is nearly JSON, and pydantic decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final, TypeVar

from json_repair import repair_json
from pydantic import BaseModel, ValidationError

from cowest.errors import ModelCallError
from cowest.models.answer import visible
from cowest.models.thinking import split_thinking
from cowest.models.turns import TURN_TOKEN
from cowest.protocols import ChatModel
from cowest.types import Completion, Message, Request, Sampling

R = TypeVar("R", bound=BaseModel)

_FENCED: Final = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
_DECODER: Final = json.JSONDecoder()
_MOST_OBJECTS: Final = 1000
_TURN: Final = re.compile(TURN_TOKEN)
_CUT_NUMBER: Final = re.compile(r'[,{]\s*["\']?\w+["\']?\s*:\s*["\']?-?[\d.]*\s*\Z')
_GRADE: Final = re.compile(r"\s*(-?\d+(?:[.,]\d+)?)(?:\s*(?:/|out of|of)\s*10)?\s*", re.IGNORECASE)


def json_request(messages: Sequence[Message], record: type[BaseModel], sampling: Sampling) -> Request:
    """What :func:`ask_json` asks first: the messages with the record's schema, in the prompt and beside it."""
    schema = record.model_json_schema()
    form = Message(role="user", content=f"{messages[-1].content}\n\n{_instruction(schema)}")
    return Request(messages=(*messages[:-1], form), sampling=sampling.model_copy(update={"json_schema": schema}))


async def ask_json(
    model: ChatModel, messages: Sequence[Message], record: type[R], sampling: Sampling
) -> tuple[R, Completion]:
    """The answer as a ``record``, and the completion that held it.

    An answer that is none is asked for once more, with what is wrong. Raises ModelCallError ``bad_json`` when that fails
    too, or what the model raises.
    """
    request, schema = json_request(messages, record, sampling), record.model_json_schema()
    turns, asked = [*request.messages], request.sampling
    first = visible(await model.generate(turns, asked), model.name)
    try:
        return parse_json(first.text, record), first
    except ValueError as problem:
        again = Message(role="user", content=f"That is not it: {problem}. {_instruction(schema)}")
    turns += [Message(role="assistant", content=first.text), again]
    second = visible(await model.generate(turns, asked), model.name)
    try:
        usage = first.usage + second.usage  # both were paid for
        return parse_json(second.text, record), second.model_copy(update={"usage": usage})
    except ValueError as problem:
        raise ModelCallError("bad_json", f"{model.name}: no such JSON object in two answers: {problem}") from None


def parse_json(text: str, record: type[R]) -> R:
    r"""The record in a text: plain JSON, fenced, with prose around it, or nearly JSON. Raises ValueError with what is wrong.

    What stands in hidden thinking is not read. Of several objects the last that fits counts; "8/10" is a number.

    >>> class Grade(BaseModel):
    ...     score: float
    >>> parse_json('Sure! ```json\n{"score": "7.5",}\n```', Grade).score
    7.5
    """
    problem = "there is no JSON object in the answer"
    for found in _objects(_whole_numbers(split_thinking(text).visible or "")):
        try:
            return record.model_validate(found)
        except ValidationError as error:
            problem = _told(error)
            wrong = {str(e["loc"][0]) for e in error.errors() if e["loc"]}
        try:
            return record.model_validate(_mended_fields(found, wrong))
        except ValidationError as error:
            problem = _told(error)
    raise ValueError(problem)


def _whole_numbers(text: str) -> str:
    """The text up to the end of the model's turn, without a last field that is cut off at its number: 1 may have become 10."""
    begin = text.find("{")
    end = _TURN.search(text, begin) if begin >= 0 else None
    return _CUT_NUMBER.sub("", text[: end.start()] if end else text)


def _told(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors()[:3])


def _mended_fields(found: Mapping[str, object], wrong: Collection[str]) -> dict[str, object]:
    """The same with keys in lower case, and in the ``wrong`` fields numbers as people write them: "8/10", "8 out of 10", "7,5"."""
    read: dict[str, object] = {}
    for key, value in found.items():
        match = _GRADE.fullmatch(value) if isinstance(value, str) and key.lower() in wrong else None
        read[key.lower()] = float(match.group(1).replace(",", ".")) if match else value
    return read


def _objects(text: str) -> Iterator[dict[str, object]]:
    """What may be the object, the likeliest first: the last if it is nearly JSON, then whole ones, last first, then mended."""
    whole: list[dict[str, object]] = []
    begin, rest = text.find("{"), 0
    try:
        while begin >= 0 and len(whole) < _MOST_OBJECTS:
            try:
                found, end = _DECODER.raw_decode(text, begin)
            except ValueError:
                begin = text.find("{", begin + 1)
                continue
            whole += [inner for inner in found.values() if isinstance(inner, dict)]
            whole.append(found)
            rest, begin = end, text.find("{", end)
        if (
            whole and "{" in text[rest:] and text.rstrip("`\n ").endswith("}")
        ):  # not one that was cut off: its numbers may be
            yield from _mended(text[text.find("{", rest) :])
        yield from reversed(whole)
        first, last = text.find("{"), text.rfind("}")
        inner = text[first : last + 1] if 0 <= first < last else ""
        for candidate in (text, *_FENCED.findall(text), inner, text[first:] if first >= 0 else ""):
            yield from _mended(candidate)
    except RecursionError:
        return  # brackets within brackets without end


def _mended(text: str) -> Iterator[dict[str, object]]:
    mended: object = repair_json(text, return_objects=True) if "{" in text else None
    if isinstance(mended, dict):
        yield mended
    elif isinstance(mended, list):
        yield from (found for found in reversed(mended) if isinstance(found, dict))


def _instruction(schema: object) -> str:
    return f"Answer with one JSON object and nothing else. Its JSON schema: {json.dumps(schema)}"
