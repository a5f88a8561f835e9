"""An answer that is held to a grammar, token by token: what may come next is a mask over the vocabulary, made by llguidance.

llguidance (MIT, no dependencies, 3 MB) was taken over xgrammar (wants triton) and outlines-core (compiles a schema to an index over
the whole vocabulary first): it needs no preparation for a schema, and a mask takes microseconds on a CPU. Its grammars are a
variant of Lark: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from cowest.errors import MissingExtraError, ModelCallError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from transformers import PreTrainedTokenizerBase

_SPACING: Final[dict[str, JsonValue]] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As ``json.dumps`` writes: where blanks are free, a small model may write nothing else until its tokens are spent."""
CALL_OPEN: Final = "<tool_call>\n"
CALL_CLOSE: Final = "\n</tool_call>"
"""Around a call of a tool, as the chat templates of Hermes and Qwen have it."""


def json_grammar(schema: Mapping[str, JsonValue]) -> str:
    """The grammar of one JSON value of a schema."""
    return f"start: %json {_spaced(schema)}"


def call_grammar(tools: Mapping[str, Mapping[str, JsonValue]], may_say: bool, many: bool) -> str:
    """The grammar of one call or of ``many``, or where the model ``may_say`` something instead, of a text without calls.

    ``tools``: the JSON schema of each function's arguments, by its name.
    """
    shapes: list[JsonValue] = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": dict(parameters)},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name, parameters in tools.items()
    ]
    calls = "call (NEWLINE call)*" if many else "call"
    opened, closed = json.dumps(CALL_OPEN), json.dumps(CALL_CLOSE)
    return "\n".join(
        [
            f"start: {'TEXT | calls' if may_say else 'calls'}",
            f"calls: {calls}",
            f"call: {opened} %json {_spaced({'anyOf': shapes})} {closed}",
            'NEWLINE: "\\n"',
            *(["TEXT: /(.|\\n)+/ & ~/(.|\\n)*<tool_call>(.|\\n)*/"] if may_say else []),
        ]
    )


def _spaced(schema: Mapping[str, JsonValue]) -> str:
    return json.dumps({**schema, "x-guidance": _SPACING})


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar over one model's vocabulary; each row of a batch has a :class:`Matcher` of its own of it."""

    tokenizer: LLTokenizer
    text: str

    def matcher(self) -> Matcher:
        """At the beginning."""
        return Matcher(self.tokenizer, self.text)

    def accepts(self, tokens: Sequence[int]) -> bool:
        """Whether these tokens (without what ends a text) are a whole text of the grammar."""
        matcher = _matcher(self.tokenizer, self.text)
        return matcher.try_consume_tokens([*tokens]) == len(tokens) and matcher.is_accepting()


class Matcher:
    """Where a row is in its grammar."""

    def __init__(self, tokenizer: LLTokenizer, text: str) -> None:
        self._matcher, self._ends = _matcher(tokenizer, text), tokenizer.eos_tokens

    def forbidden(self, size: int) -> npt.NDArray[np.bool_]:
        """Which of ``size`` tokens may not come next. Where the grammar has gone too far to be followed: all that do not end."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[:size].astype(np.bool_)
        if self._matcher.is_error() or not allowed.any():
            allowed = np.zeros(size, dtype=np.bool_)
            allowed[self._ends] = True
        elif allowed.size < size:
            allowed = np.concatenate([allowed, np.zeros(size - allowed.size, dtype=np.bool_)])
        return ~allowed

    def take(self, token: int) -> None:
        """The row has gone on by this token."""
        self._matcher.consume_token(token)


def _matcher(tokenizer: LLTokenizer, text: str) -> LLMatcher:
    from llguidance import LLMatcher

    return LLMatcher(tokenizer, LLMatcher.grammar_from_lark(text), log_level=0)


def masks_for(tokenizer: PreTrainedTokenizerBase, size: int, ends: Sequence[int]) -> LLTokenizer:
    """What grammars of a model need of its vocabulary, of ``size`` logits; takes up to a second.

    Raises MissingExtraError without llguidance, and ModelCallError ``no_grammar`` for a tokenizer that it cannot read.
    """
    try:
        from llguidance.hf import from_tokenizer
    except ImportError:
        raise MissingExtraError(
            "answers of a schema, and calls of tools, need llguidance: pip install 'cowest[structured]'"
        ) from None
    try:
        return from_tokenizer(cast(Any, tokenizer), n_vocab=size, eos_token=[*ends])
    except ValueError as error:
        raise ModelCallError(
            "no_grammar", f"llguidance cannot read this model's tokenizer: {str(error)[:200]}"
        ) from None


def grammar_of(tokenizer: LLTokenizer, text: str) -> Grammar:
    """Raises ModelCallError ``bad_schema`` with what is wrong, or not supported, in the schema."""
    from llguidance import LLMatcher

    problem = LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(text), tokenizer)
    if problem:
        first = problem.strip().splitlines()[0].partition(": ")
        raise ModelCallError("bad_schema", (first[2] or first[0])[:300])
    return Grammar(tokenizer, text)
