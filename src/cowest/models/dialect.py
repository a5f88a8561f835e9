"""What an endpoint and its model want of a request: what is known by name, what the recipe says, what an error teaches.

OpenAI's reasoning models take ``max_completion_tokens`` in place of ``max_tokens`` and, unless they are told not to think,
neither sampling parameters nor log-probabilities; Anthropic's newer ones take no sampling parameters; some open models know
no system role; many servers lack one optional field or another, and say so with a 400. Such an answer costs nothing, so the
client learns from it: it drops or exchanges what was named, and tries again at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

TokenLimit = Literal["max_tokens", "max_completion_tokens"]
Structured = Literal["json_schema", "json_object", "prompt"]

_REASONING: Final = re.compile(
    r"(o[134](-mini|-pro|-preview|-mini-high)?|gpt-[5-9](\.\d+)?(-(mini|nano|pro|codex|sol|terra|luna|astra))*)"
    r"(-\d{4}-\d{2}-\d{2}|-latest)?"
)
_UNSAMPLED: Final = re.compile(r"claude-(opus-(4[-.][7-9]|[5-9])|(sonnet|haiku|fable)-[5-9])([-.]\d+)*(-latest)?")
"""Anthropic's migration guides: from Opus 4.7, Sonnet 5 and Haiku 5.5 on, requests with temperature or top_p are refused."""
_NO_SYSTEM: Final = re.compile(r"[a-z]*gemma.*|o1-(mini|preview).*")


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a request is written. ``fixed`` names what the recipe settled, which no error changes.

    ``wide_seed``: a seed may have 64 bits; else it is sent modulo 2**31, so that it stays reproducible.
    """

    token_limit: TokenLimit = "max_tokens"
    temperature: bool = True
    top_p: bool = True
    seed: bool = True
    wide_seed: bool = True
    system: bool = True
    structured: Structured = "json_schema"
    logprobs: bool = True
    several: bool = True
    stream_usage: bool = True
    tools: bool = True
    fixed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Quirks:
    """A recipe's word on what ``auto`` would decide. ``thinks`` is False where it sets ``reasoning_effort: none``."""

    token_limit: Literal["auto", "max_tokens", "max_completion_tokens"] = "auto"
    temperature: Literal["auto", "send", "omit"] = "auto"
    seed: Literal["auto", "send", "omit"] = "auto"
    system_prompt: Literal["auto", "keep", "merge"] = "auto"
    structured: Literal["auto", "json_schema", "json_object", "prompt"] = "auto"
    tools: Literal["auto", "send", "omit"] = "auto"
    thinks: bool = True


def dialect_of(model: str, quirks: Quirks = Quirks()) -> Dialect:
    """What is known of a model by its name, under what the recipe says."""
    name = model.rpartition("/")[2].partition(":")[0].lower()  # openai/o3-mini:free, gemma3:4b
    reasoning, systemless = bool(_REASONING.fullmatch(name)), bool(_NO_SYSTEM.fullmatch(name))
    q = quirks
    thinking = reasoning and q.thinks
    takes = not thinking and not _UNSAMPLED.fullmatch(name)
    sampled = takes if q.temperature == "auto" else q.temperature == "send"
    known = Dialect(
        token_limit="max_completion_tokens" if reasoning else "max_tokens",
        temperature=sampled,
        top_p=sampled,
        logprobs=not thinking,
        system=not systemless,
    )
    return replace(
        known,
        token_limit=known.token_limit if q.token_limit == "auto" else q.token_limit,
        seed=known.seed if q.seed == "auto" else q.seed == "send",
        system=known.system if q.system_prompt == "auto" else q.system_prompt == "keep",
        structured=known.structured if q.structured == "auto" else q.structured,
        tools=q.tools != "omit",
        fixed=frozenset(
            field
            for field, said in (
                ("token_limit", q.token_limit),
                ("temperature", q.temperature),
                ("top_p", q.temperature),
                ("seed", q.seed),
                ("system", q.system_prompt),
                ("structured", q.structured),
                ("tools", q.tools),
            )
            if said != "auto"
        ),
    )


_COMPLAINT: Final = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed|extra (inputs|fields)|invalid|"
    r"does ?n.t support|only|instead|cannot|must alternate|disabled|not available|deprecated",
    re.IGNORECASE,
)
_RANGE: Final = re.compile(
    r"maximum|minimum|between|range|(greater|less|more|fewer) than|at (most|least)|exceed|too (large|high|long|many|low|small)",
    re.IGNORECASE,
)
"""The field is known and its value is wrong: that is for the user to mend, and dropping it would hide it."""
_SIZE: Final = re.compile(r"int_?32|integer|overflow|out of|\bbits?\b|invalid value|must be", re.IGNORECASE)
"""The same, of a number that is too large for its type."""


def learn(dialect: Dialect, sent: Mapping[str, object], message: str, param: str | None) -> Dialect | None:
    """The dialect after a 400 or 422 that names something in the request; None when it teaches nothing.

    Only what was ``sent`` can be at fault, and only what the recipe left open is changed. No lesson is ever taken back, so
    that the lessons come to an end.
    """
    text = f"{param or ''} {message}".lower()

    def names(*fields: str) -> bool:
        return any(re.search(rf"(?<![a-z_]){re.escape(field)}(?![a-z_])", text) for field in fields)

    if "n" in sent and names("n") and re.search(r"\b1\b|support|unrecogni|unknown|extra", text):
        return replace(dialect, several=False)
    if dialect.wide_seed and _too_wide(sent) and names("seed") and (_RANGE.search(message) or _SIZE.search(message)):
        return replace(dialect, wide_seed=False)
    if about_tools(sent, text) and "tools" not in dialect.fixed and not _RANGE.search(message):
        return replace(dialect, tools=False)  # servers say it in many ways: "tools param requires --jinja flag"
    if not (param or _COMPLAINT.search(message)):
        return None
    known = not _RANGE.search(message)
    limit = dialect.token_limit
    lessons: list[tuple[bool, str, Dialect]] = [
        (known and limit in sent and names(limit), "token_limit", _other_limit(dialect)),
        (known and "top_p" in sent and names("top_p"), "top_p", replace(dialect, top_p=False)),
        (known and "temperature" in sent and names("temperature"), "temperature", replace(dialect, temperature=False)),
        (known and "seed" in sent and names("seed"), "seed", replace(dialect, seed=False)),
        (
            "response_format" in sent and names("response_format", "json_schema", "guided_json"),
            "structured",
            replace(dialect, structured=_weaker(dialect)),
        ),
        (
            known and "logprobs" in sent and names("logprobs", "top_logprobs"),
            "logprobs",
            replace(dialect, logprobs=False),
        ),
        (
            "stream_options" in sent and names("stream_options", "include_usage"),
            "stream_usage",
            replace(dialect, stream_usage=False),
        ),
        (_has_system(sent) and _about_system(text), "system", replace(dialect, system=False)),
    ]
    for fits, field, changed in lessons:
        if fits and field not in dialect.fixed and changed != dialect:
            return changed
    return None


def about_tools(sent: Mapping[str, object], message: str) -> bool:
    """Whether a complaint is about tool calls, and some were offered."""
    return "tools" in sent and bool(re.search(r"(?<![a-z])tools?(?![a-z])", message, re.IGNORECASE))


def _other_limit(dialect: Dialect) -> Dialect:
    """The other name of the limit, and never back: a server that complains about both means something else."""
    other: TokenLimit = "max_tokens" if dialect.token_limit == "max_completion_tokens" else "max_completion_tokens"
    return replace(dialect, token_limit=other, fixed=dialect.fixed | {"token_limit"})


def _weaker(dialect: Dialect) -> Structured:
    return "json_object" if dialect.structured == "json_schema" else "prompt"


def _too_wide(sent: Mapping[str, object]) -> bool:
    """Whether a seed was sent that 32 bits do not hold: a complaint about it may be about that only."""
    seed = sent.get("seed")
    return isinstance(seed, int) and not 0 <= seed < 2**31


def _has_system(sent: Mapping[str, object]) -> bool:
    messages = sent.get("messages")
    return isinstance(messages, list) and any(isinstance(m, dict) and m.get("role") == "system" for m in messages)


def _about_system(text: str) -> bool:
    return bool(
        re.search(
            r"system[^.]{0,12}(role|message|prompt|instruction)|role[^.]{0,20}system|must alternate|only user and", text
        )
    )
