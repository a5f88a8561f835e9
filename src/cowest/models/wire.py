"""The JSON of OpenAI's chat completions, as it is asked. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import JsonValue

from cowest.models.dialect import Dialect
from cowest.models.tools import tool_fields, tool_turns
from cowest.models.turns import merged
from cowest.types import Message, Sampling, Tooled

_PLAIN: Final = Dialect()


def request_body(
    model: str,
    messages: Sequence[Message],
    sampling: Sampling,
    dialect: Dialect = _PLAIN,
    extra: Mapping[str, JsonValue] | None = None,
    n: int = 1,
) -> dict[str, JsonValue]:
    """The JSON of one request. What is at its default, or what the dialect lacks, is left out; ``extra`` has the last word.

    A seed is left out where decoding is greedy.
    """
    turns = messages if dialect.system else merged(messages)
    tooled = sampling if isinstance(sampling, Tooled) and dialect.tools else None
    body: dict[str, JsonValue] = {
        "model": model,
        "messages": [{"role": m.role, "content": m.content} for m in turns]
        if tooled is None
        else tool_turns(turns, tooled.tool),
        dialect.token_limit: sampling.max_tokens,
    }
    if dialect.temperature:
        body["temperature"] = sampling.temperature
    if dialect.top_p and sampling.top_p != 1:
        body["top_p"] = sampling.top_p
    if dialect.seed and sampling.seed is not None and sampling.temperature > 0:
        body["seed"] = sampling.seed if dialect.wide_seed else sampling.seed % 2**31
    if dialect.logprobs and sampling.logprobs is not None:
        body["logprobs"] = True
        if sampling.logprobs:
            body["top_logprobs"] = sampling.logprobs
    if sampling.json_schema is not None and dialect.structured != "prompt":
        named: JsonValue = {"name": "answer", "schema": strict_schema(sampling.json_schema), "strict": True}
        schema: JsonValue = {"type": "json_schema", "json_schema": named}
        body["response_format"] = schema if dialect.structured == "json_schema" else {"type": "json_object"}
    if tooled is not None:
        body |= tool_fields(tooled.tool, tooled.may_call)
    if n > 1:
        body["n"] = n
    return body | dict(extra or {})


def strict_schema(schema: JsonValue) -> JsonValue:
    """A JSON schema as OpenAI's strict mode wants it: every property is required, no other is allowed, nothing has a default."""
    if isinstance(schema, list):
        return [strict_schema(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return {key: strict_schema(part) for key, part in schema.items() if key != "default"}
    rest = {key: strict_schema(part) for key, part in schema.items() if key not in ("properties", "default")}
    return {
        **rest,
        "properties": {name: strict_schema(part) for name, part in properties.items()},
        "required": list(properties),
        "additionalProperties": False,
    }
