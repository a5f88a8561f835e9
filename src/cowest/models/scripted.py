"""A deterministic model that follows a script: for tests, and for trying a recipe without any model.

Example of a script in rules: ``{"contains": "Draft:", "reply": "The draft is right. Answer: yes"}``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import Field

from cowest.errors import ModelCallError
from cowest.types import Completion, Message, Record, Sampling, Usage

Script = Callable[[Sequence[Message], Sampling], str]
"""Answers a conversation; may raise :class:`ModelCallError` to script a failure."""


class ScriptRule(Record):
    """``reply`` is given, word for word, where the last user message has ``contains`` in it."""

    contains: str = Field(min_length=1)
    reply: str = Field(min_length=1)


class ScriptedRequest(Record):
    """One request that a scripted model saw."""

    messages: tuple[Message, ...]
    sampling: Sampling


class ScriptedChatModel:
    """A :class:`cowest.protocols.ChatModel` that follows a callable or the first rule that matches.

    ``default`` answers where no rule matches; without one that is a :class:`ModelCallError` ``no_rule``. ``fail``
    scripts an outage: its n-th entry is raised by the n-th call, None lets the call through, as does the end of the
    list. ``requests`` holds all requests in order, failed ones too. Usage counts words as tokens; latency is 0.
    """

    def __init__(
        self,
        replies: Script | Sequence[ScriptRule],
        *,
        default: str | None = None,
        name: str = "scripted",
        fail: Sequence[ModelCallError | None] = (),
    ) -> None:
        self._script: Script = replies if callable(replies) else _follow_rules(tuple(replies), default)
        self._name = name
        self._fail = tuple(fail)
        self.requests: list[ScriptedRequest] = []

    @property
    def name(self) -> str:
        """The name given."""
        return self._name

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Follow the script. Raises :class:`ModelCallError` as scripted, ``no_rule``, or ``empty`` (a blank reply)."""
        turn = len(self.requests)
        self.requests.append(ScriptedRequest(messages=tuple(messages), sampling=sampling))
        failure = self._fail[turn] if turn < len(self._fail) else None
        if failure is not None:
            raise failure
        text = self._script(messages, sampling)
        if not text.strip():
            raise ModelCallError("empty", f"{self._name}: the script's reply is blank")
        usage = Usage(
            calls=1,
            input_tokens=sum(len(m.content.split()) for m in messages),
            output_tokens=len(text.split()),
        )
        return Completion(text=text, usage=usage)

    async def aclose(self) -> None:
        """Nothing to release."""


def _follow_rules(rules: tuple[ScriptRule, ...], default: str | None) -> Script:
    def script(messages: Sequence[Message], sampling: Sampling) -> str:
        asked = next((m.content for m in reversed(messages) if m.role == "user"), "")
        reply = next((rule.reply for rule in rules if rule.contains in asked), default)
        if reply is None:
            raise ModelCallError("no_rule", f"no rule of the script matches {asked[:80]!r}, and it has no default")
        return reply

    return script
