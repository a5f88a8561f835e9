"""Token ids and their log-probabilities as text: what each token adds to what was written before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from cowest.models.batching import TokenScore
from cowest.models.thinking import is_thinking_mark
from cowest.types import TokenLogprob

_INCOMPLETE = "\ufffd"  # what a tokenizer writes for the first bytes of a character


def token_logprobs(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], scores: Sequence[TokenScore]
) -> tuple[TokenLogprob, ...]:
    """One record for each token; joined they spell the text, up to a character that was cut off at its end.

    A token that holds only a part of a character has no text: the one that completes the character has it. An alternative's
    text is the token decoded by itself; a special token has one there, and none where it was chosen, as in the text.
    """
    names = {i: _decode(tokenizer, [i], special=True) for i in {i for score in scores for i, _ in score.top}}
    return tuple(
        TokenLogprob(
            token=text,
            logprob=score.logprob,
            top=tuple((names[i], value) for i, value in score.top if math.isfinite(value)),
        )
        for text, score in zip(pieces(tokenizer, tokens), scores, strict=True)
    )


def answer_text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of a model's tokens, without special ones but for those that say where thinking begins and ends."""
    marks = _thinking_marks(tokenizer)
    if marks.isdisjoint(tokens):
        return _decode(tokenizer, tokens)
    special = frozenset(tokenizer.all_special_ids) - marks
    return _decode(tokenizer, [token for token in tokens if token not in special], special=True)


@lru_cache(maxsize=8)
def _thinking_marks(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    ids = [int(i) for i in tokenizer.all_special_ids]
    return frozenset(
        i for i, token in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True) if is_thinking_mark(token)
    )


def pieces(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> list[str]:
    """What each token adds. Decoded with the tokens of the last piece before it, since its text may depend on them (spaces)."""
    found: list[str] = []
    begin, read = 0, 0  # tokens[begin:read] is the piece that was last complete
    for end in range(1, len(tokens) + 1):
        before, now = _decode(tokenizer, tokens[begin:read]), _decode(tokenizer, tokens[begin:end])
        if len(now) <= len(before) or now.endswith(_INCOMPLETE):
            found.append("")
            continue
        found.append(now[len(before) :])
        begin, read = read, end
    return found


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], special: bool = False) -> str:
    text = tokenizer.decode(list(tokens), skip_special_tokens=not special, clean_up_tokenization_spaces=False)
    return text if isinstance(text, str) else "".join(text)
