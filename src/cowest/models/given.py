"""A text that is given to a model to read as its own: which tokens it is, and which of them are to be scored."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from cowest.errors import ModelCallError
from cowest.models.chat import prompt_text, token_ids
from cowest.models.thinking import opens_thinking
from cowest.models.token_text import pieces
from cowest.types import Given, Message


def split_given(
    tokenizer: PreTrainedTokenizerBase, asked: Sequence[int], messages: Sequence[Message], sampling: Given
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The prompt with what the model has said before, and the tokens that spell ``sampling.given``, as ids.

    ``asked`` are the tokens of ``messages``. A token that reaches from the one into the other (as a blank and a word do) is scored
    as a whole. Raises ModelCallError ``not_spelled`` where the tokenizer does not give the text back, and as :func:`prompt_text`.
    """
    head = prompt_text(tokenizer, messages)
    before = _after(head, sampling.before)
    whole = token_ids(tokenizer, head + before + sampling.given)
    # Where a token reaches from the prompt into the answer the model was asked without it, as in training.
    said = whole[len(asked) :] if whole[: len(asked)] == list(asked) else token_ids(tokenizer, before + sampling.given)
    spelled = pieces(tokenizer, said)
    begin = "".join(spelled).rfind(sampling.given)
    if begin < 0 or not "".join(spelled).endswith(sampling.given):
        raise ModelCallError("not_spelled", f"the tokenizer does not give back {sampling.given[:80]!r}")
    at = first = 0
    while at + len(spelled[first]) <= begin:
        at += len(spelled[first])
        first += 1
    return (*asked, *said[:first]), tuple(said[first:])


def _after(head: str, before: str) -> str:
    """Without the mark that opens thinking where the prompt has written it already."""
    opening = opens_thinking(head)
    if not opening or not before.startswith(opening):
        return before
    rest = before.removeprefix(opening)
    return rest.removeprefix("\n") if head.endswith("\n") else rest
