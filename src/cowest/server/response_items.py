"""The items of ``/v1/responses`` (messages, calls of functions and their outputs) as messages of chat completions, and tools."""

from __future__ import annotations

from typing import Final

from pydantic import JsonValue

from cowest.server.errors import ApiError
from cowest.server.request import Body
from cowest.server.surface import refused

_ROLES: Final = ("user", "assistant", "system", "developer")


def messages_of(found: JsonValue, instructions: JsonValue) -> list[JsonValue]:
    """The conversation of a request. Raises ApiError 400, which names the item."""
    if instructions is not None and not isinstance(instructions, str):
        raise ApiError(400, "instructions: must be a string", param="instructions")
    messages: list[Body] = [] if not instructions else [{"role": "system", "content": instructions}]
    if isinstance(found, str):
        return [*messages, {"role": "user", "content": found}]
    if not isinstance(found, list) or not found:
        raise ApiError(400, "input: must be a string or a list of at least one item", param="input")
    for i, item in enumerate(found):
        where = f"input[{i}]"
        if not isinstance(item, dict):
            raise ApiError(400, f"{where}: must be an object", param=where)
        _add(messages, item, where)
    return [*messages]


def _add(messages: list[Body], item: Body, where: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        messages.append(_message(item, where))
    elif kind == "function_call":
        _add_call(messages, item, where)
    elif kind == "function_call_output":
        output = item.get("output")
        told = output if isinstance(output, str) else _content(output, f"{where}.output", "tool")
        messages.append({"role": "tool", "tool_call_id": _text(item, "call_id", where), "content": told})
    elif kind == "reasoning":
        return  # what a model thought in an earlier turn: chat completions take none of it back
    elif kind == "item_reference":
        raise refused(where, "nothing is stored here, so that an item cannot be referred to; send the item itself")
    else:
        raise refused(
            where, f"items of type {str(kind)[:60]!r} are not supported; messages, function calls and their outputs are"
        )


def _message(item: Body, where: str) -> Body:
    role = item.get("role")
    if role not in _ROLES:
        raise ApiError(400, f"{where}.role: must be one of {', '.join(_ROLES)}", param=f"{where}.role")
    content = item.get("content")
    said = content if isinstance(content, str) else _content(content, f"{where}.content", str(role))
    return {"role": role, "content": said}


def _content(found: JsonValue, where: str, role: str) -> JsonValue:
    """Parts as chat completions have them; those of one text alone are that text, which every endpoint takes."""
    if not isinstance(found, list):
        raise ApiError(400, f"{where}: must be a string or a list of parts", param=where)
    parts = [_part(part, f"{where}[{i}]") for i, part in enumerate(found)]
    texts = [part.get("text") for part in parts if part.get("type") == "text"]
    if len(texts) == len(parts) and (len(texts) <= 1 or role != "user"):
        return "".join(text for text in texts if isinstance(text, str))
    return [*parts]


def _part(part: JsonValue, where: str) -> Body:
    if not isinstance(part, dict):
        raise ApiError(400, f"{where}: must be an object", param=where)
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": _text(part, "text", where)}
    if kind == "refusal":
        return {"type": "text", "text": _text(part, "refusal", where)}
    if kind in ("input_image", "input_file") and part.get("file_id"):
        raise refused(f"{where}.file_id", "no files are stored here; send the data itself")
    if kind == "input_image":
        detail = {} if part.get("detail") is None else {"detail": part["detail"]}
        return {"type": "image_url", "image_url": {"url": _text(part, "image_url", where), **detail}}
    if kind == "input_file":
        if part.get("file_url"):
            raise refused(f"{where}.file_url", "files are not fetched here; send file_data")
        name = {} if part.get("filename") is None else {"filename": part["filename"]}
        return {"type": "file", "file": {"file_data": _text(part, "file_data", where), **name}}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": part.get("input_audio")}
    raise refused(
        where,
        f"parts of type {str(kind)[:60]!r} are not supported; input_text, input_image, input_file and input_audio are",
    )


def _add_call(messages: list[Body], item: Body, where: str) -> None:
    """A call joins the assistant's message before it, as chat completions have one message for a turn."""
    function: Body = {"name": _text(item, "name", where), "arguments": _text(item, "arguments", where)}
    call: JsonValue = {"id": _text(item, "call_id", where), "type": "function", "function": function}
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    had = messages[-1].get("tool_calls")
    messages[-1]["tool_calls"] = [*(had if isinstance(had, list) else []), call]


def _text(item: Body, name: str, where: str) -> str:
    found = item.get(name)
    if not isinstance(found, str):
        raise ApiError(400, f"{where}.{name}: must be a string", param=f"{where}.{name}")
    return found


def tools_of(found: JsonValue) -> list[JsonValue]:
    """Function tools as chat completions have them. Raises ApiError 400 for tools that a provider would run."""
    if not isinstance(found, list):
        raise ApiError(400, "tools: must be a list of objects", param="tools")
    tools: list[JsonValue] = []
    for i, tool in enumerate(found):
        where = f"tools[{i}]"
        if not isinstance(tool, dict):
            raise ApiError(400, f"{where}: must be an object", param=where)
        if tool.get("type") != "function":
            raise refused(where, f"{str(tool.get('type'))[:60]!r} is run by no one here; function tools are supported")
        function: Body = {"name": _text(tool, "name", where)}
        kept = ("description", "parameters", "strict")
        function |= {name: tool[name] for name in kept if tool.get(name) is not None}
        tools.append({"type": "function", "function": function})
    return tools


def choice_of(found: JsonValue) -> JsonValue:
    """``tool_choice`` as chat completions have it. Raises ApiError 400."""
    if found is None or isinstance(found, str):
        return found
    if isinstance(found, dict) and found.get("type") == "function":
        return {"type": "function", "function": {"name": _text(found, "name", "tool_choice")}}
    raise refused("tool_choice", "takes auto, none, required, or a function's name")


def format_of(found: JsonValue) -> Body:
    """The fields of chat completions for ``text``: its format, and its verbosity. Raises ApiError 400."""
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ApiError(400, "text: must be an object", param="text")
    fields: Body = {} if found.get("verbosity") is None else {"verbosity": found["verbosity"]}
    form = found.get("format")
    if form is None:
        return fields
    kind = form.get("type") if isinstance(form, dict) else None
    if not isinstance(form, dict) or kind not in ("text", "json_object", "json_schema"):
        raise ApiError(400, "text.format.type: must be text, json_object or json_schema", param="text.format")
    if kind != "json_schema":
        return fields | ({} if kind == "text" else {"response_format": {"type": kind}})
    if not isinstance(form.get("schema"), dict):
        raise ApiError(400, "text.format.schema: must be an object", param="text.format.schema")
    kept = ("name", "schema", "strict", "description")
    schema: Body = {"name": "answer"}
    schema |= {name: form[name] for name in kept if form.get(name) is not None}
    return fields | {"response_format": {"type": kind, "json_schema": schema}}
