"""The expected score of the strong model instead of that of one answer: how it would answer on average.

One greedy answer scored 0 or 1 cannot tell apart two drafts that move the model by a little. From log-probabilities (classes
only): the reader that extracts the answer finds where it stands, the probabilities of the tokens there are summed by class up to
the first token in which the classes differ, and normalised over the classes. From samples: the mean of some further answers.
Open answers have no classes: there a model that can read a given text tells how likely each reference is in the place of its own
answer, after its own reasoning, per token (as rewards without a verifier: RLPR, arXiv:2506.18254; VeriFree, arXiv:2505.21493).
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
from cowest.types import Classes, Completion, Example, Given, Message, Sampling, TokenLogprob

_WRAPPING: Final = " \t\n*_`\"'([{<"
_PROBE: Final = "Xq7zProbe"  # an answer that is in no text
_PLACES: Final = 32  # where the answer's word occurs, from the end, that are looked at


@dataclass(frozen=True, slots=True)
class Expect:
    """What is kept of an answer, or asked for beside it, so that its expected score can be told."""

    classes: Callable[[Completion, Example], Classes | None] | None = None
    samples: Sequence[Sampling] = ()
    readings: Callable[[Completion, Example], Sequence[Given]] | None = None


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


def readings(done: Completion, example: Example, read: Callable[[str], str | None]) -> list[Given]:
    """Each reference in the place of the answer, after what the model has said before it; none where there is no such place."""
    said = read(done.text)
    where = None if said is None else place(done.text, (said, _PROBE), read)
    if where is None:
        return []
    before = done.model_copy(update={"text": done.text[: where[0]]}).whole
    return [Given(before=before, given=text) for text in dict.fromkeys(r.strip() for r in example.references) if text]


def likelihood(done: Completion) -> float | None:
    """What is left of 1 by a token on average (exp of the mean log-probability), in (0, 1]; None without log-probabilities."""
    if not done.logprobs:
        return None
    return math.exp(min(0.0, sum(t.logprob for t in done.logprobs) / len(done.logprobs)))


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
    """The model, and a first request of each kind that goes alone: without log-probabilities in its answer no other follows.

    Kinds are answers with alternatives, and readings; what asks for neither is let through. ``first`` answers that one: where the
    model is a batch, the same one live. Implements :class:`cowest.protocols.ChatModel`.
    """

    def __init__(self, inner: ChatModel, first: ChatModel) -> None:
        self._inner, self._first, self._alone = inner, first, asyncio.Lock()
        self._told: dict[bool, bool] = {}  # whether it can, of readings and of answers

    @property
    def name(self) -> str:
        """The model's."""
        return self._inner.name

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        """Ask. Raises StageError ``no_logprobs`` where the first answer comes without what was asked for."""
        reading = isinstance(sampling, Given)
        plain = sampling.logprobs is None and not reading
        first = None if plain or self._told.get(reading) else await self._prove(messages, sampling, reading)
        return await self._inner.generate(messages, sampling) if first is None else first

    async def _prove(self, messages: Sequence[Message], sampling: Sampling, reading: bool) -> Completion | None:
        """The first answer; None where another request has shown meanwhile what the model can."""
        async with self._alone:
            if reading not in self._told:
                done = await self._first.generate(messages, sampling)
                self._told[reading] = any(reading or token.top for token in done.logprobs or ())
                if self._told[reading]:
                    return done
            if not self._told[reading]:  # those that have waited end as the first one did
                raise self._lacking(reading)
            return None

    def _lacking(self, reading: bool) -> StageError:
        what = "no log-probabilities of a text that it is given" if reading else "no log-probabilities of alternatives"
        return StageError(
            f"{self.name} gives {what} (seen after one answer), which feedback.expect: logprobs "
            f"needs{' for open answers' if reading else ''}: set feedback.expect: samples, or take "
            f"{'a local model in this process (engine: process)' if reading else 'an endpoint that gives them'}",
            "no_logprobs",
        )

    async def aclose(self) -> None:
        """The model's."""
        await self._inner.aclose()
