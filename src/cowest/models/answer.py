"""From what a model sent to what counts as its answer: thinking split off, and whether the text was cut off at max_tokens.

Every caller that reads a model's text goes through :func:`visible`, whatever kind of model it is. The ledger keeps what was
sent, since that was paid for.
"""

from __future__ import annotations

from typing import Final

from cowest.errors import ModelCallError
from cowest.models.thinking import split_thinking
from cowest.models.untrusted import valid_unicode
from cowest.types import Completion, TokenLogprob

CUT: Final = "length"
"""The finish reason of a text that was cut off at max_tokens."""
CUT_OFF: Final = "cut_off"
"""The kind of failure where that happened before anything was visible."""
THINKING_ONLY: Final = "thinking_only"
"""The kind of failure where a model ended its text without a visible part."""
_REASONS: Final = {
    **dict.fromkeys(
        ("length", "max_tokens", "max_output_tokens", "max_completion_tokens", "max_length", "model_length"), "length"
    ),
    **dict.fromkeys(
        (
            "token_limit",
            "max_new_tokens",
            "context_length",
            "context_window",
            "incomplete",
            "model_context_window_exceeded",
        ),
        "length",
    ),
    **dict.fromkeys(("stop", "eos", "eos_token", "end", "end_turn", "stop_sequence", "finish", "completed"), "stop"),
    **dict.fromkeys(("content_filter", "safety", "content_filtered"), "content_filter"),
}
"""What providers say, in OpenAI's words."""


class HiddenAnswerError(ModelCallError):
    """A model wrote nothing but hidden thinking: kind ``cut_off`` or ``thinking_only``. ``done`` is what it sent."""

    def __init__(self, done: Completion, name: str) -> None:
        self.done, self._sent, self._name = done.model_copy(update={"thinking": _hidden(done)}), done, name
        kind = CUT_OFF if is_cut(done) else THINKING_ONLY
        why = "was still thinking at max_tokens" if kind == CUT_OFF else "ended within its thinking"
        hint = "; raise max_tokens" if kind == CUT_OFF else ""
        super().__init__(kind, f"{name}: the model {why} and wrote no answer{hint}", done.attempts)

    def __reduce__(self) -> tuple[type[HiddenAnswerError], tuple[Completion, str]]:  # type: ignore[override]
        return type(self), (self._sent, self._name)


def is_cut(done: Completion) -> bool:
    """Whether the text was cut off at max_tokens, in any provider's words for it."""
    return finish_of(done.finish_reason) == CUT


def finish_of(reason: object, full: bool = False) -> str:
    """Why an answer ended, in OpenAI's words; ``unknown`` where none is given.

    ``length`` is whatever a provider calls its limit, and an answer that is ``full``: some servers say ``stop`` there.
    """
    said = valid_unicode(reason) if isinstance(reason, str) else "unknown"
    finish = _REASONS.get(said.lower(), said)
    return "length" if full and finish in ("stop", "unknown") else finish


def visible(done: Completion, name: str) -> Completion:
    """The same answer with its thinking beside the text instead of in it. Raises HiddenAnswerError where no text is left."""
    parts = split_thinking(done.text)
    if parts.visible is None:
        raise HiddenAnswerError(done, name)
    if parts.visible == done.text:
        return done
    logprobs = done.logprobs and _of_end(done.logprobs, parts.visible)
    return done.model_copy(update={"text": parts.visible, "thinking": _hidden(done), "logprobs": logprobs})


def _hidden(done: Completion) -> str | None:
    both = [piece for piece in (done.thinking, split_thinking(done.text).thinking) if piece]
    return "\n\n".join(both) or None


def _of_end(tokens: tuple[TokenLogprob, ...], text: str) -> tuple[TokenLogprob, ...] | None:
    """The tokens that spell ``text``, which comes last; None where they do not."""
    begin = "".join(t.token for t in tokens).rfind(text)
    if begin < 0:
        return None
    kept, at = [], 0
    for token in tokens:
        at += len(token.token)
        if at > begin:
            kept.append(token)
    return tuple(kept)
