"""The expected score of the strong model instead of that of one answer: how it would answer on average.

One greedy answer scored 0 or 1 cannot tell apart two drafts that move the model by a little. From log-probabilities (classes
only): the reader that extracts the answer finds where it stands, the probabilities of the tokens there are summed by class up to
the first token in which the classes differ, and normalised over the classes. From samples: the mean of some further answers.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cowest.errors import StageError
from cowest.protocols import ChatModel
from cowest.types import Classes, Completion, Example, Message, Sampling, TokenLogprob

_WRAPPING: Final = " \t\n*_`\"'([{<"
_PLACES: Final = 32  # where the answer's word occurs, from the end, that are looked at


@dataclass(frozen=True, slots=True)
class Expect:
    """What is kept of an answer, or asked for beside it, so that its expected score can be told."""

    classes: Callable[[Completion, Example], Classes | None] | None = None
    samples: Sequence[Sampling] = ()


NOTHING: Final = Expect()


def class_probabilities(done: Completion, labels: Sequence[str], read: Callable[[str], str | None]) -> Classes | None:
    """How probable each class was where the answer stands. None where that cannot be found, or its tokens name no class."""
    if not done.logprobs or (where := place(done.text, labels, read)) is None:
        return None
    start, end = where
    # From the line's beginning: what stands before may be spelled otherwise by its tokens (half characters).
    line = done.text.rfind("\n", 0, start) + 1
    at = "".join(t.token for t in done.logprobs).rfind(done.text[line:])
    if at < 0:
        return None
    masses = _masses(done.logprobs, at + start - line, labels)
    total = sum(masses.values())
    if not total:
        return None
    return Classes(start=start, end=end, probabilities={label: masses[label] / total for label in labels})


def place(text: str, labels: Sequence[str], read: Callable[[str], str | None]) -> tuple[int, int] | None:
    """Where the answer stands: any class that is put there is the one that is then read. None where there is no such place."""
    now = read(text)
    if now is None or now not in labels:
        return None
    found = [m.span() for m in re.finditer(rf"(?<!\w){re.escape(now)}(?!\w)", text, re.IGNORECASE)]
    for start, end in reversed(found[-_PLACES:]):
        if all(read(text[:start] + label + text[end:]) == label for label in labels):
            return start, end
    return None


def _masses(tokens: Sequence[TokenLogprob], begin: int, labels: Sequence[str]) -> Mapping[str, float]:
    """The probability of each class from character ``begin`` of the tokens on. A beginning of several counts for each alike."""
    keys, masses = {label.casefold(): label for label in labels}, defaultdict[str, float](float)
    first, lead = _token_at(tokens, begin)
    if len(keys) < len(labels) or lead.strip(_WRAPPING):
        return {}
    reach, spelled = 1.0, ""
    for token in tokens[first:]:
        for text, logprob in _options(token):
            fits = _fits(spelled + (text if spelled else text.removeprefix(lead)), keys)
            if text == token.token and len(fits) > 1:
                continue  # the next token says which
            for key in fits:
                masses[keys[key]] += reach * math.exp(logprob) / len(fits)
        spelled += token.token if spelled else token.token.removeprefix(lead)
        reach *= math.exp(token.logprob)
        if len(_fits(spelled, keys)) < 2:
            return masses
    if (whole := spelled.strip().casefold()) in keys:  # the text ends with a class that begins another one
        masses[keys[whole]] += reach
    return masses


def _token_at(tokens: Sequence[TokenLogprob], begin: int) -> tuple[int, str]:
    """The token that holds this character of the text, and what of it stands before."""
    at = 0
    for index, token in enumerate(tokens):
        if begin < at + len(token.token):
            return index, token.token[: begin - at]
        at += len(token.token)
    return len(tokens), ""


def _options(token: TokenLogprob) -> Iterator[tuple[str, float]]:
    yield from token.top
    if all(text != token.token for text, _ in token.top):
        yield token.token, token.logprob


def _fits(spelled: str, keys: Mapping[str, str]) -> list[str]:
    """The classes that a text may become, or that it begins with."""
    said = spelled.lstrip(_WRAPPING).rstrip(" ").casefold()
    if not said:
        return []
    open_ = [key for key in keys if key.startswith(said)]
    return open_ or [key for key in keys if said.startswith(key) and not said[len(key)].isalnum()]


class Proving:
    """The model, and a first request that goes alone: without log-probabilities in its answer no other follows.

    ``first`` answers that one: where the model is a batch, the same one live. Implements :class:`cowest.protocols.ChatModel`.
    """

    def __init__(self, inner: ChatModel, first: ChatModel) -> None:
        self._inner, self._first, self._alone = inner, first, asyncio.Lock()
        self._proven, self._failed = False, False

    @property
    def name(self) -> str:
        """The model's."""
        return self._inner.name

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Ask. Raises StageError ``no_logprobs`` where the first answer comes without what was asked for."""
        first = None if self._proven else await self._prove(messages, sampling)
        return await self._inner.generate(messages, sampling) if first is None else first

    async def _prove(self, messages: Sequence[Message], sampling: Sampling) -> Completion | None:
        """The first answer; None where another request has shown meanwhile what the model can."""
        async with self._alone:
            if self._failed:  # those that have waited end as the first one did
                raise self._lacking()
            if self._proven:
                return None
            done = await self._first.generate(messages, sampling)
            self._proven = any(token.top for token in done.logprobs or ())
            self._failed = not self._proven
            if self._failed:
                raise self._lacking()
            return done

    def _lacking(self) -> StageError:
        return StageError(
            f"{self.name} gives no log-probabilities of alternatives (seen after one answer), which feedback.expect: logprobs "
            "needs: set feedback.expect: samples, or take an endpoint that gives them",
            "no_logprobs",
        )

    async def aclose(self) -> None:
        """The model's."""
        await self._inner.aclose()
