"""Schemas, tools and log-probabilities with a ChatModel: what OpenAI's JSON says of them, as what such a model is asked.

A model on this machine is told of schema and tools in its prompt and held to them by a grammar (:mod:`cowest.models.held`). Calls
of tools and their results are text for it, in the form of Hermes and Qwen.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from cowest.errors import MissingExtraError, ModelCallError
from cowest.models.held import call_grammar, json_grammar
from cowest.protocols import ChatModel, HoldingChatModel
from cowest.server.errors import ApiError
from cowest.server.request import Body, text_of
from cowest.server.surface import refused
from cowest.types import Held, Sampling

MOST_TOP: Final = 20
_CALL: Final = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an answer is to be beside a text; ``logprobs`` as in Sampling."""

    grammar: str | None = None
    calls: bool = False
    logprobs: int | None = None

    def of(self, sampling: Sampling) -> Sampling:
        """The same sampling with what is wanted."""
        sampling = sampling.model_copy(update={"logprobs": self.logprobs})
        return sampling if self.grammar is None else Held(**sampling.model_dump(), grammar=self.grammar)


def wanted(body: Body, model: ChatModel) -> tuple[Body, Wanted]:
    """The body without what is understood here, its turns in plain words, and what was wanted.

    Raises ApiError 400 for what the model cannot do, or what is wrong in it. The body for a model that is not in this process
    stays as it is, but for parts that are no text: what it cannot do is refused by name.
    """
    _check_parts(body)
    if not isinstance(model, HoldingChatModel):
        return body, Wanted()
    rest, logprobs = _logprobs(body)
    told, grammar, calls = _format(rest), None, False
    if told is not None:
        grammar = json_grammar(told)
    tools = _tools(rest)
    choice = rest.get("tool_choice")
    if tools and choice != "none":
        may_say = choice in (None, "auto")
        if grammar is not None and may_say:  # where a call is forced, the schema is of a text that is not written
            why = "cannot be held to beside tools by a model on this machine; ask for one of them, or force a call"
            raise refused("response_format", why)
        named = _named(choice, tools)
        many = rest.get("parallel_tool_calls") is not False
        arguments = {name: tool["parameters"] for name, tool in named.items()}
        grammar, calls = call_grammar(arguments, may_say, many), True
    for name in ("response_format", "tools", "tool_choice", "parallel_tool_calls"):
        rest.pop(name, None)
    if grammar is not None:
        _check(model, grammar, "tools" if calls else "response_format")
    words = _tools_told(tools, choice) if calls else "" if told is None else _schema_told(told)
    rest["messages"] = _spoken(rest.get("messages"), words)
    return rest, Wanted(grammar, calls, logprobs)


def _check_parts(body: Body) -> None:
    messages = body.get("messages")
    for i, message in enumerate(messages if isinstance(messages, list) else []):
        content = message.get("content") if isinstance(message, dict) else None
        for j, part in enumerate(content if isinstance(content, list) else []):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in ("text", "refusal"):
                why = "a model on this machine reads text alone; send text, or put a strong model behind an endpoint that takes it"
                raise refused(f"messages[{i}].content[{j}]", f"{str(kind)[:60]}: {why} (strong: {{kind: openai}})")


def _check(model: HoldingChatModel, grammar: str, param: str) -> None:
    try:
        model.can_hold(grammar)
    except MissingExtraError as error:
        raise refused(param, str(error)) from None
    except ModelCallError as error:
        raise ApiError(400, f"{param}: {error}", param=param, code=error.kind) from None


def _logprobs(body: Body) -> tuple[Body, int | None]:
    rest = dict(body)
    asked, top = rest.pop("logprobs", None), rest.pop("top_logprobs", None)
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or not 0 <= top <= MOST_TOP):
        raise ApiError(400, f"top_logprobs: must be an integer from 0 to {MOST_TOP}", param="top_logprobs")
    if top and not asked:
        raise ApiError(400, "top_logprobs: needs logprobs: true", param="top_logprobs")
    return rest, (top or 0) if asked else None


def _format(body: Body) -> Body | None:
    """The schema that is asked for; None for plain text."""
    form = body.get("response_format")
    kind = form.get("type") if isinstance(form, dict) else "text"
    if kind == "json_object":
        return {"type": "object"}
    if kind == "text" or not isinstance(form, dict):
        return None
    if kind != "json_schema":
        message = "response_format.type: must be text, json_object or json_schema"
        raise ApiError(400, message, param="response_format")
    named = form.get("json_schema")
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict):
        where = "response_format.json_schema.schema"
        raise ApiError(400, f"{where}: must be an object", param=where)
    return schema


def _tools(body: Body) -> dict[str, dict[str, Body]]:
    """The functions by their names, each with what is told of it and the schema of its arguments."""
    found = body.get("tools")
    tools: dict[str, dict[str, Body]] = {}
    for i, tool in enumerate(found if isinstance(found, list) else []):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str):
            raise ApiError(400, f"tools[{i}]: must be a function with a name", param=f"tools[{i}]")
        parameters = function.get("parameters")
        if parameters is not None and not isinstance(parameters, dict):
            raise ApiError(400, f"tools[{i}].function.parameters: must be a JSON schema", param=f"tools[{i}]")
        empty: Body = {"type": "object", "properties": {}, "additionalProperties": False}
        tools[name] = {"told": function, "parameters": parameters or empty}
    return tools


def _named(choice: JsonValue, tools: Mapping[str, dict[str, Body]]) -> Mapping[str, dict[str, Body]]:
    """Those of the tools that may be called."""
    if choice in (None, "auto", "required"):
        return tools
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or name not in tools:
        message = "tool_choice: must be auto, none, required, or one of the tools by its name"
        raise ApiError(400, message, param="tool_choice")
    return {name: tools[name]}


def _schema_told(schema: Body) -> str:
    return f"Answer with one JSON object and nothing else. Its JSON schema: {json.dumps(schema)}"


def _tools_told(tools: Mapping[str, dict[str, Body]], choice: JsonValue) -> str:
    """What the chat templates of Hermes and Qwen say of tools."""
    listed = "\n".join(json.dumps({"type": "function", "function": tool["told"]}) for tool in tools.values())
    may = "You may call one or more functions to assist with the user query."
    must = "Call one or more functions now."
    return (
        f"# Tools\n\n{may if choice in (None, 'auto') else must}\n\nYou are provided with function signatures within "
        f"<tools></tools> XML tags:\n<tools>\n{listed}\n</tools>\n\nFor each function call, return a json object with function "
        "name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )


def _spoken(found: JsonValue, words: str) -> list[JsonValue]:
    """The turns with calls and results as text, and ``words`` at the end of the system turn."""
    turns: list[Body] = []
    for message in found if isinstance(found, list) else []:
        if not isinstance(message, dict):
            continue
        role, text = message.get("role"), text_of(message)
        calls = message.get("tool_calls")
        if role == "assistant" and isinstance(calls, list):
            text = "\n".join([*([text] if text else []), *(_written(call) for call in calls if isinstance(call, dict))])
        if role == "tool":
            result = f"<tool_response>\n{text}\n</tool_response>"
            if turns and turns[-1].get("results"):
                turns[-1]["content"] = f"{turns[-1]['content']}\n{result}"
            else:
                turns.append({"role": "user", "content": result, "results": True})
            continue
        turns.append({"role": role, "content": text})
    if words and turns and turns[0]["role"] in ("system", "developer"):
        turns[0]["content"] = f"{turns[0]['content']}\n\n{words}"
    elif words:
        turns.insert(0, {"role": "system", "content": words})
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def _written(call: Body) -> str:
    function = call.get("function")
    function = function if isinstance(function, dict) else {}
    raw = function.get("arguments")
    try:
        arguments: JsonValue = json.loads(raw) if isinstance(raw, str) and raw.strip() else {}
    except (ValueError, RecursionError):
        arguments = raw
    return f"<tool_call>\n{json.dumps({'name': function.get('name'), 'arguments': arguments})}\n</tool_call>"


def called(completion: Body) -> Body:
    """A ``chat.completion`` with the calls in its texts as OpenAI's tool calls."""
    choices = completion.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        message = choice.get("message") if isinstance(choice, dict) else None
        text = message.get("content") if isinstance(message, dict) else None
        calls = _calls(text) if isinstance(text, str) else []
        if calls and isinstance(choice, dict):
            choice["message"] = {"role": "assistant", "content": None, "tool_calls": calls}
            choice["finish_reason"] = "tool_calls" if choice.get("finish_reason") == "stop" else choice["finish_reason"]
    return completion


def _calls(text: str) -> list[JsonValue]:
    calls: list[JsonValue] = []
    for raw in _CALL.findall(text):
        try:
            found: JsonValue = json.loads(raw)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            function: Body = {
                "name": found.get("name"),
                "arguments": json.dumps(found.get("arguments"), ensure_ascii=False),
            }
            calls.append({"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function})
    return calls
