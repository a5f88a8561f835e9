"""A tool that a model may call in place of answering: OpenAI's tool calls where the endpoint has them, a line of text elsewhere.

The line is what all else sees and keeps, the ledger too: ``ASK: Is it safe?``. A conversation with calls is one of plain turns, the
call the assistant's and its result the user's; here it is put into the form of an endpoint, and back. Function calling as in
OpenAI's chat completions; one tool, one text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from cowest.models.untrusted import field
from cowest.types import Message, Tool


def call_text(tool: Tool, said: str) -> str:
    """A call as text: one line."""
    return f"{tool.mark} {' '.join(said.split())}"


def find_call(tool: Tool, text: str) -> tuple[str, str] | None:
    """The first call in a text, as (what stands before it, what is said); None where there is none.

    A call is the rest of a line that begins with the mark. What follows the line is not read: some models go on and write the
    result themselves.
    """
    found = re.search(
        rf"^[ \t>*_`#-]*{re.escape(tool.mark)}[ \t*_`]*(\S.*?)[ \t*_`]*$", text, re.IGNORECASE | re.MULTILINE
    )
    return None if found is None else (text[: found.start()], found.group(1))


def tool_fields(tool: Tool, may_call: bool) -> dict[str, JsonValue]:
    """The fields of a request that offer the tool. One that may not be called any more is still there, as its calls are."""
    argument: JsonValue = {tool.argument: {"type": "string"}}
    parameters: JsonValue = {
        "type": "object",
        "properties": argument,
        "required": [tool.argument],
        "additionalProperties": False,
    }
    function: JsonValue = {"name": tool.name, "description": tool.about, "parameters": parameters}
    offered: list[JsonValue] = [{"type": "function", "function": function}]
    return {"tools": offered} if may_call else {"tools": offered, "tool_choice": "none"}


def tool_turns(messages: Sequence[Message], tool: Tool) -> list[JsonValue]:
    """The turns as an endpoint with tool calls wants them: an assistant's call as such, and the turn after it as its result."""
    turns, open_call = list[JsonValue](), ""
    for number, message in enumerate(messages):
        said = find_call(tool, message.content) if message.role == "assistant" else None
        if said is not None and not said[0].strip():
            open_call = f"call{number:05d}"  # nine letters and digits, as Mistral's API wants it
            arguments = json.dumps({tool.argument: said[1]}, ensure_ascii=False)
            function: JsonValue = {"name": tool.name, "arguments": arguments}
            call: JsonValue = {"id": open_call, "type": "function", "function": function}
            turns.append({"role": "assistant", "content": None, "tool_calls": [call]})
            continue
        if open_call and message.role == "user":
            turns.append({"role": "tool", "tool_call_id": open_call, "content": message.content})
        else:
            turns.append({"role": message.role, "content": message.content})
        open_call = ""
    return turns


def spoken(message: Mapping[str, JsonValue], tool: Tool) -> dict[str, JsonValue]:
    """An endpoint's message with the calls in it as a line of its text; several at once are one, in their order."""
    calls = message.get("tool_calls")
    said = [_said(field(call, "function"), tool) for call in calls] if isinstance(calls, list) else []
    line = " ".join(text for text in said if text.strip())
    if not line:
        return dict(message)
    before = message.get("content")
    text = before.rstrip() if isinstance(before, str) else ""
    return {**message, "content": f"{text}\n{call_text(tool, line)}".lstrip()}


def _said(function: object, tool: Tool) -> str:
    """The text of a call, whatever a model has made of its arguments."""
    raw = field(function, "arguments")
    try:
        found: object = json.loads(raw) if isinstance(raw, str) else raw
    except (ValueError, RecursionError):
        return raw if isinstance(raw, str) else ""
    if isinstance(found, str):
        return found
    texts = [v for v in found.values() if isinstance(v, str)] if isinstance(found, dict) else []
    named = field(found, tool.argument)
    return named if isinstance(named, str) else texts[0] if texts else ""
