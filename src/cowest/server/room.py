"""How long an answer may be where the client leaves it open, and whether a prompt fits the strong model's window at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cowest.models.tokens import MESSAGE_TOKENS, approximate_tokens
from cowest.models.window import Window
from cowest.recipe.config import EvaluateConfig, RunConfig
from cowest.server.errors import ApiError
from cowest.server.request import TOKEN_LIMITS, Body, text_of

APPROXIMATE: Final = 2
"""By how much an approximate count may be wrong: only a prompt beyond this many windows is refused on its word."""


def too_long(asked: int, room: int) -> ApiError:
    """The refusal of a request of which the window leaves ``room`` tokens for an answer of ``asked``."""
    message = f"messages: the model's window leaves {max(0, room)} tokens for the answer, and {asked} are asked for"
    return ApiError(400, message, param="messages", code="context_length_exceeded")


@dataclass(frozen=True, slots=True)
class Room:
    """The window of a model behind an endpoint, where the recipe names it; ``answer`` tokens where the client names none.

    Only texts are counted. What that lets through, the endpoint itself refuses.
    """

    count: Callable[[str], int]
    tokens: int
    answer: int

    def check(self, body: Body) -> None:
        """Raise ApiError 400 for a request that cannot fit."""
        messages = body.get("messages")
        texts = [text_of(m) for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
        prompt = sum(self.count(text) + MESSAGE_TOKENS for text in texts)
        if self.count is approximate_tokens:
            prompt //= APPROXIMATE
        asked = next((n for name in TOKEN_LIMITS if isinstance(n := body.get(name), int)), self.answer)
        if prompt + asked > self.tokens:
            raise too_long(asked, self.tokens - prompt)


def room_of(window: Window | None, answer: int | None) -> Room | None:
    """The room in a whole ``window`` (with nothing taken off for the answer); None where it is not known."""
    return None if window is None else Room(window.count, window.tokens, answer or 1)


def answer_tokens(config: RunConfig, said: int | None, written_out: bool) -> int | None:
    """Tokens of an answer whose length the client leaves open; None: the model's own limit.

    ``said`` (the command's option) comes first, then the recipe's ``evaluate.answer.max_tokens``. Its default of 512 is no
    setting; a run's copy of the recipe is ``written_out``, defaults and all, so that there 512 counts as not set.
    """
    if said is not None:
        return said
    evaluate, found = config.evaluate, config.evaluate.answer.max_tokens
    named = "evaluate" in config.model_fields_set and "answer" in evaluate.model_fields_set
    named = named and "max_tokens" in evaluate.answer.model_fields_set and not written_out
    return found if named or found != EvaluateConfig().answer.max_tokens else None
