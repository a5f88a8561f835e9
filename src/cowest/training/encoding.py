"""Conversations as the tokens that a model is trained on: the very prompt it will be asked with, the completion, its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from cowest.errors import ModelCallError, StageError
from cowest.models.chat import prompt_ids, prompt_text, token_ids
from cowest.models.window import without_earliest
from cowest.protocols import Reporter
from cowest.types import Message, Record


class Tokens(NamedTuple):
    """Token ids; the first ``start`` are the prompt's, the others the completion's with the end of its turn."""

    ids: list[int]
    start: int


class Cut(Record):
    """What ``max_length`` did to a training's items (rows, or pairs): no item is counted twice.

    ``shortened`` ones are trained on without the earliest turns of their conversation; ``cut`` ones without their end; ``lost``
    ones have no token of a completion left; of ``equal`` pairs both sides were the same after the cut, so that nothing tells
    them apart. The last two are not trained on.
    """

    items: int
    shortened: int = Field(default=0, exclude_if=lambda n: n == 0)
    cut: int = 0
    lost: int = 0
    equal: int = 0

    def tell(self, reporter: Reporter, stage: str, what: str, max_length: int) -> None:
        """One line about what is missing from the training, where anything is."""
        found = [
            (self.shortened, "without their earliest turns"),
            (self.cut, "cut"),
            (self.lost, "lost"),
            (self.equal, "equal after the cut and dropped"),
        ]
        told = ", ".join(f"{n:,} {how}" for n, how in found if n)
        if told:
            reporter.info(
                f"{stage}: of {self.items:,} {what}: {told}; {stage}.max_length is {max_length} tokens, raise it to train on all"
            )

    def counts(self, what: str) -> dict[str, int]:
        """For the stage's counts; ``what``: rows or pairs."""
        found = {f"{what}_cut": self.cut, f"{what}_lost": self.lost}
        found |= {f"{what}_shortened": self.shortened} if self.shortened else {}
        return found | ({f"{what}_equal_after_cut": self.equal} if what == "pairs" else {})


def shortened(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    replies: Sequence[Sequence[str]],
    max_length: int,
) -> list[Sequence[Message]]:
    """The prompts without their earliest turns, until each fits ``max_length`` with the longest of its replies and its end.

    By the rule of :mod:`cowest.models.window`: what cannot be made to fit so keeps the question alone. A prompt that a template
    refuses stays as it is, for :func:`encode` to say so.
    """
    found = list[Sequence[Message]]()
    for whole, texts in zip(prompts, replies, strict=True):
        prompt = whole
        if any(turn.role == "assistant" for turn in whole):
            room = max_length - 1 - max(len(token_ids(tokenizer, text)) for text in texts)
            try:
                while len(prompt_ids(tokenizer, prompt)) > room and (fewer := without_earliest(prompt)) is not None:
                    prompt = fewer
            except ModelCallError:
                prompt = whole
        found.append(prompt)
    return found


def fewer_turns(before: Sequence[Sequence[Message]], after: Sequence[Sequence[Message]]) -> int:
    """How many prompts lost turns."""
    return sum(len(one) > len(other) for one, other in zip(before, after, strict=True))


def encode(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    replies: Sequence[str],
    model: str,
    end: int,
) -> list[Tokens]:
    """The tokens of each prompt with its reply and ``end``, which ends the turn; ``model`` is its name, for errors.

    Raises StageError where ``model`` could not be asked as it was trained: its template refuses a prompt, or the tokenizer joins
    the prompt's end with the reply.
    """
    try:
        heads = [prompt_text(tokenizer, prompt) for prompt in prompts]
    except ModelCallError as error:
        raise StageError(f"{model}: {error}") from None
    if not heads:
        return []
    wholes = [head + reply for head, reply in zip(heads, replies, strict=True)]
    found = []
    for i, (asked, whole) in enumerate(zip(_many(tokenizer, heads), _many(tokenizer, wholes), strict=True)):
        if whole[: len(asked)] != asked:
            # A token reaches from the prompt into the reply, as one of a blank and a word does; the model is asked without it.
            whole = asked + _apart(tokenizer, replies[i], end, asked, whole, heads[i], model)
        found.append(Tokens([*whole, end], len(asked)))
    return found


def _apart(
    tokenizer: PreTrainedTokenizerBase, reply: str, end: int, asked: list[int], whole: list[int], head: str, model: str
) -> list[int]:
    """The reply's tokens where none reaches into it: those it has after a token of its own, or after a line's end."""
    for before in (cast(str, tokenizer.convert_ids_to_tokens(end)), "\n"):
        lead, ids = token_ids(tokenizer, before), token_ids(tokenizer, before + reply)
        said = ids[len(lead) :]
        if ids[: len(lead)] == lead and tokenizer.decode([*asked, *said]) == tokenizer.decode(whole):
            return said
    raise StageError(
        f"{model}: its tokenizer joins the end of the generation prompt ({head[-20:]!r}) with the answer, so the model would be "
        "asked with other tokens than it was trained on; end the prompt with a special token in the chat template"
    )


def _many(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
