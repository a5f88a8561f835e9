"""The operator's redaction hook: every text goes through it before a model or the disk gets it, or the request is refused."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import Final, TypeVar

from pydantic import JsonValue

from cowest.errors import ConfigError
from cowest.server.errors import ApiError
from cowest.server.request import ChatRequest

logger = logging.getLogger("cowest.server")

Hook = Callable[[str], str]
T = TypeVar("T")
FAILED: Final = "redaction_failed"
_WORDS: Final = frozenset(
    {"system", "developer", "user", "assistant", "tool", "function", "text", "refusal", "json_object", "json_schema"}
    | {"object", "array", "string", "number", "integer", "boolean", "null", "auto", "none", "required"}
)
"""Words of the protocol itself. They are nobody's, and a hook that changed one would break the request."""
_CALL_IDS: Final = (("messages", "tool_call_id"), ("tool_calls", "id"))
"""Where the ids of tool calls stand, which the strong model gave: a call and its result are told by them."""
_CALL_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TEXT_PARTS: Final = ("text", "refusal")


def load_hook(name: str) -> Hook:
    """The function that ``module:function`` names; looked for here, too. Raises ConfigError where there is none."""
    if not re.fullmatch(r"[\w.]+:[\w.]+", name):
        raise ConfigError(f"--redact {name!r}: write it as module:function, a function from a text to a text")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        hook = EntryPoint(name="redact", value=name, group="cowest").load()
    except Exception as error:
        raise ConfigError(f"--redact {name}: cannot be loaded ({type(error).__name__}: {error})") from None
    if not callable(hook):
        raise ConfigError(f"--redact {name}: is not a function; give one from a text to a text")
    return checked(hook)


class RedactionFailed(Exception):
    """The hook raised, or gave no text. Holds the kind of the error only: its message may quote the text."""


def checked(hook: Callable[[str], object]) -> Hook:
    """The hook such that all that can go wrong with it is RedactionFailed."""

    def apply(text: str) -> str:
        try:
            done = hook(text)
            if not isinstance(done, str):
                raise TypeError("not a text")
            done.encode()
        except BaseException as error:  # also a SystemExit: whatever it is, the text must not go on
            raise RedactionFailed(type(error).__name__) from None
        return done

    return apply


class Redactor:
    """Applies the hook in one thread of its own: it may be slow, and need not be safe for several.

    A request for whose texts it takes longer than ``patience_s`` seconds is refused.
    """

    def __init__(self, hook: Hook, patience_s: float = 30.0) -> None:
        self._hook, self._patience_s = hook, patience_s
        self._thread = ThreadPoolExecutor(1, "cowest-redact")

    async def request(self, chat: ChatRequest) -> ChatRequest:
        """The request with every text redacted: messages, tools, names, unknown fields. Raises ApiError where that cannot be done.

        What is no text (an image, a sound, a file) is refused: the hook cannot look into it.
        """
        _check_parts(chat)
        hook = self._hook

        def work() -> tuple[JsonValue, str | None, list[str]]:
            body: dict[str, JsonValue] = {k: v if k == "model" else _walk(v, hook, k) for k, v in chat.body.items()}
            context = None if chat.extension.context is None else hook(chat.extension.context)
            return body, context, [hook(choice) for choice in chat.extension.choices]

        body, context, choices = await self._run(work)
        assert isinstance(body, dict)
        messages = body["messages"]
        assert isinstance(messages, list)
        return replace(
            chat,
            messages=[m for m in messages if isinstance(m, dict)],
            body=body,
            extension=chat.extension.model_copy(update={"context": context, "choices": choices}),
        )

    async def text(self, text: str) -> str:
        """One text. Raises ApiError."""
        return await self._run(lambda: self._hook(text))

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(self._patience_s):
                return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except RedactionFailed as error:
            logger.error("the redaction hook failed with %s; the request was refused", error)
        except TimeoutError:
            logger.error("the redaction hook took longer than %g s; the request was refused", self._patience_s)
        raise ApiError(500, "the redaction hook failed, so that nothing was sent on", type_="server_error", code=FAILED)


def _walk(value: JsonValue, hook: Hook, key: str, outer: str = "") -> JsonValue:
    """Every text in a JSON value through the hook; keys of objects stay. ``key`` and ``outer`` say where the value stands."""
    if isinstance(value, str):
        is_call_id = (outer, key) in _CALL_IDS and _CALL_ID.fullmatch(value)
        return value if is_call_id or value in _WORDS else hook(value)
    if isinstance(value, list):
        return [_walk(item, hook, key, outer) for item in value]
    if isinstance(value, Mapping):
        return {name: _walk(item, hook, name, key) for name, item in value.items()}
    return value


def _check_parts(chat: ChatRequest) -> None:
    for i, message in enumerate(chat.messages):
        content = message.get("content")
        for part in content if isinstance(content, list) else []:
            if not isinstance(part, dict) or part.get("type") not in _TEXT_PARTS:
                what = "only texts are taken here, as images, sounds and files cannot be redacted"
                raise ApiError(400, f"messages[{i}].content: {what}", param=f"messages[{i}].content")
        if message.get("audio") is not None:
            raise ApiError(400, f"messages[{i}].audio: cannot be redacted", param=f"messages[{i}].audio")
