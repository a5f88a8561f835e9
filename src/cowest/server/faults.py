"""What a model's failed call means: for the client, for the breaker, and for who stands in."""

from __future__ import annotations

from typing import Final

from cowest.errors import ModelCallError
from cowest.models.answer import CUT_OFF, THINKING_ONLY
from cowest.server.errors import ApiError, Unavailable

REQUEST_FAULTS: Final = frozenset({"too_long", "chat_template", "no_question", "http_400", "http_413", "http_422"})
"""Failures that say nothing of the model's health: this prompt cannot be answered by it."""
ANSWER_FAULTS: Final = frozenset({"empty", "refusal", "content_filter", "no_choices", CUT_OFF, THINKING_ONLY})
"""The model answered, and the answer is of no use."""
NO_TEXT: Final = frozenset({"draft_empty", "draft_refused"})
"""The weak model answered, and said nothing that could be shown."""
_DRAFT_FAULTS: Final = {
    "empty": "draft_empty",
    "no_choices": "draft_empty",
    CUT_OFF: "draft_empty",
    THINKING_ONLY: "draft_empty",
    "refusal": "draft_refused",
    "content_filter": "draft_refused",
    "too_long": "weak_prompt_too_long",
    "context_length_exceeded": "weak_prompt_too_long",
    "timeout": "weak_timeout",
    "breaker_open": "weak_breaker_open",
    "budget": "weak_budget",
} | dict.fromkeys(REQUEST_FAULTS - {"too_long"}, "weak_rejected")
_DRAFT_KINDS: Final = frozenset({*_DRAFT_FAULTS.values(), "weak_down"})


class DraftFailed(Unavailable):
    """The weak model gave no draft; ``kind`` says why, in the words of docs/serving.md. It says nothing of the strong model."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind, f"the weak model gave no draft ({kind})", down=None)


def draft_fault(kind: str) -> str:
    """Why there is no draft, from the kind of the weak model's failure; the result of this function stays what it is."""
    return kind if kind in _DRAFT_KINDS else _DRAFT_FAULTS.get(kind, "weak_down")


def meaning(error: ModelCallError) -> ApiError | Unavailable:
    """What a failed call means for the client and for the breaker."""
    if error.kind in _DRAFT_KINDS:
        return DraftFailed(error.kind)
    if error.kind in REQUEST_FAULTS:
        code = "context_length_exceeded" if error.kind == "too_long" else error.kind
        return ApiError(400, f"the model cannot take this request ({error.kind})", code=code)
    down = error.kind not in ANSWER_FAULTS
    return Unavailable(error.kind, f"the model gave no answer ({error.kind})", down=down)
