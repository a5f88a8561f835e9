"""What an endpoint and its model want of a request: what is known by name, what the recipe says, what an error teaches.

OpenAI's reasoning models take ``max_completion_tokens`` in place of ``max_tokens`` and no sampling parameters; some open
models know no system role; many servers lack one optional field or another, and say so with a 400. Such an answer costs
nothing, so the client learns from it: it drops or exchanges what was named, and tries again at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

TokenLimit = Literal["max_tokens", "max_completion_tokens"]
Structured = Literal["json_schema", "json_object", "prompt"]

_REASONING: Final = re.compile(
    r"(o[134](-mini|-pro|-preview)?|gpt-5(\.\d)?(-mini|-nano|-pro)?)(-\d{4}-\d{2}-\d{2}|-latest)?"
)
_NO_SYSTEM: Final = re.compile(r"(codegemma|gemma-?[12]?-.*|gemma|o1-mini.*|o1-preview.*)")


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a request is written. ``fixed`` names what the recipe settled, which no error changes."""

    token_limit: TokenLimit = "max_tokens"
    temperature: bool = True
    seed: bool = True
    system: bool = True
    structured: Structured = "json_schema"
    logprobs: bool = True
    several: bool = True
    stream_usage: bool = True
    fixed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Quirks:
    """A recipe's word on what ``auto`` would decide."""

    token_limit: Literal["auto", "max_tokens", "max_completion_tokens"] = "auto"
    temperature: Literal["auto", "send", "omit"] = "auto"
    seed: Literal["auto", "send", "omit"] = "auto"
    system_prompt: Literal["auto", "keep", "merge"] = "auto"
    structured: Literal["auto", "json_schema", "json_object", "prompt"] = "auto"


def dialect_of(model: str, quirks: Quirks = Quirks()) -> Dialect:
    """What is known of a model by its name, under what the recipe says."""
    name = model.rpartition("/")[2].lower()
    reasoning, systemless = bool(_REASONING.fullmatch(name)), bool(_NO_SYSTEM.fullmatch(name))
    q = quirks
    known = Dialect(
        token_limit="max_completion_tokens" if reasoning else "max_tokens",
        temperature=not reasoning,
        logprobs=not reasoning,
        system=not systemless,
    )
    return replace(
        known,
        token_limit=known.token_limit if q.token_limit == "auto" else q.token_limit,
        temperature=known.temperature if q.temperature == "auto" else q.temperature == "send",
        seed=known.seed if q.seed == "auto" else q.seed == "send",
        system=known.system if q.system_prompt == "auto" else q.system_prompt == "keep",
        structured=known.structured if q.structured == "auto" else q.structured,
        fixed=frozenset(
            field
            for field, said in (
                ("token_limit", q.token_limit),
                ("temperature", q.temperature),
                ("seed", q.seed),
                ("system", q.system_prompt),
                ("structured", q.structured),
            )
            if said != "auto"
        ),
    )


_COMPLAINT: Final = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed|extra (inputs|fields)|invalid|"
    r"does ?n.t support|only the default|instead|cannot be|must alternate|disabled|not available",
    re.IGNORECASE,
)


def learn(dialect: Dialect, sent: Mapping[str, object], message: str, param: str | None) -> Dialect | None:
    """The dialect after a 400 or 422 that names something in the request; None when it teaches nothing.

    Only what was ``sent`` can be at fault, and only what the recipe left open is changed.
    """
    if not param and not _COMPLAINT.search(message):
        return None
    text = f"{param or ''} {message}".lower()

    def names(*fields: str) -> bool:
        return any(re.search(rf"(?<![a-z_]){re.escape(field)}(?![a-z_])", text) for field in fields)

    lessons: list[tuple[bool, str, dict[str, object]]] = [
        (
            "max_tokens" in sent and names("max_tokens") and names("max_completion_tokens"),
            "token_limit",
            {"token_limit": "max_completion_tokens"},
        ),
        (
            "max_completion_tokens" in sent and names("max_completion_tokens"),
            "token_limit",
            {"token_limit": "max_tokens"},
        ),
        ("temperature" in sent and names("temperature", "top_p"), "temperature", {"temperature": False}),
        ("seed" in sent and names("seed"), "seed", {"seed": False}),
        (
            "response_format" in sent and names("response_format", "json_schema", "guided_json"),
            "structured",
            {"structured": _weaker(dialect)},
        ),
        ("logprobs" in sent and names("logprobs", "top_logprobs"), "logprobs", {"logprobs": False}),
        (
            "stream_options" in sent and names("stream_options", "include_usage"),
            "stream_usage",
            {"stream_usage": False},
        ),
        ("n" in sent and names("n"), "several", {"several": False}),
        (_has_system(sent) and _about_system(text), "system", {"system": False}),
    ]
    for fits, field, change in lessons:
        if fits and field not in dialect.fixed:
            return replace(dialect, **change)  # type: ignore[arg-type]
    return None


def _weaker(dialect: Dialect) -> Structured:
    return "json_object" if dialect.structured == "json_schema" else "prompt"


def _has_system(sent: Mapping[str, object]) -> bool:
    messages = sent.get("messages")
    return isinstance(messages, list) and any(isinstance(m, dict) and m.get("role") == "system" for m in messages)


def _about_system(text: str) -> bool:
    return bool(
        re.search(r"system[^.]{0,12}(role|message|prompt|instruction)|role[^.]{0,20}system|must alternate", text)
    )
