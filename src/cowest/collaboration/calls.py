"""Calling models for one query: what they took is added up, samples have seeds of their own, and failing is data.

``draft.py``, ``refine.py`` and every system are made of these, so that a stage's draft and a system's are one and the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from cowest.errors import ModelCallError
from cowest.models.answer import CUT_OFF, HiddenAnswerError, visible
from cowest.models.thinking import shown_so_far
from cowest.models.window import Window
from cowest.protocols import ChatModel, ManyChatModel, StreamingChatModel
from cowest.run.identity import derive_seed
from cowest.types import Completion, Message, Sampling, Usage


class CallFailed(Exception):
    """A call that the answer needs has failed; the message is the reason that goes into the record.

    ``cut``: the text was cut off at max_tokens before anything of it was visible. ``thinking`` is what was hidden.
    """

    def __init__(self, reason: str, *, cut: bool = False, thinking: str | None = None) -> None:
        super().__init__(reason)
        self.cut, self.thinking = cut, thinking

    @property
    def error(self) -> str | None:
        """The record's ``error``: none where it was cut, which is told by ``truncated`` and is not tried again."""
        return None if self.cut else str(self)


class Series:
    """The samples of one query for one purpose, named by ``parts``: the recipe's seed, the purpose, the query's id.

    What a sample is depends on them and its index alone: it is the same whichever others are drawn with it, now or in a run that is
    continued, and whatever wraps the model.
    """

    def __init__(self, *parts: str | int) -> None:
        self._parts = parts

    def nth(self, sampling: Sampling, index: int) -> Sampling:
        """How the ``index``-th sample is drawn by a request of its own."""
        return sampling.model_copy(update={"seed": derive_seed(*self._parts, index)})

    def together(self, sampling: Sampling) -> Sampling:
        """How all of them are drawn from a model of which one request gives several: that has one seed."""
        return sampling.model_copy(update={"seed": derive_seed(*self._parts)})


def many_at_once(model: ChatModel) -> ManyChatModel | None:
    """The model, where one of its requests gives several samples; a wrapper says what the model inside it can."""
    return model if isinstance(model, ManyChatModel) and model.many else None


@dataclass(slots=True)
class Tally:
    """The calls made for one query: usage and seconds are sums over all that were answered.

    ``draft``: the weak model's text, where there is one, and what it thought before. ``truncated_context``: something was left
    out of a prompt, since it did not fit the model's window. ``hear`` gets the answer's text in pieces while it is written, where
    someone listens, and ``told`` is what it has got.
    """

    usage: Usage = field(default_factory=Usage)
    latency_s: float = 0.0
    draft: str | None = None
    draft_thinking: str | None = None
    truncated_context: bool = False
    hear: Callable[[str], None] | None = None
    told: str = ""
    _thinks_aloud: bool = False

    async def ask(
        self,
        model: ChatModel,
        messages: Sequence[Message],
        sampling: Sampling,
        step: str = "",
        window: Window | None = None,
    ) -> Completion:
        """One call. Raises CallFailed; its reason names the ``step``, where there are several kinds of call."""
        done = await self.attempt(model, messages, sampling, step, window)
        if isinstance(done, CallFailed):
            raise done
        return done

    async def answer(
        self,
        model: ChatModel,
        messages: Sequence[Message],
        sampling: Sampling,
        step: str = "",
        window: Window | None = None,
        until: Callable[[str], bool] | None = None,
    ) -> Completion:
        """The call that gives the answer. Raises as ``ask``.

        Where someone listens and the model can tell, its visible text is told while it is written; as long as ``until`` says of
        what there is that it may not be the answer, nothing is. A model that has thought aloud in an earlier call is not listened
        to: what would be heard may be thinking.
        """
        hear = self.hear
        if hear is None or self._thinks_aloud or not isinstance(model, StreamingChatModel):
            return await self.ask(model, messages, sampling, step, window)
        said, done = "", None
        try:
            async with aclosing(model.stream(self._fitted(messages, window), sampling)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Completion):
                        done = piece
                        break
                    said += piece
                    shown = shown_so_far(said)
                    news = shown[len(self.told) :] if shown.startswith(self.told) else ""
                    if news and not (until is not None and not self.told and until(shown)):
                        self.told += news
                        hear(news)
        except ModelCallError as error:
            raise failed_call(error, step) from None
        assert done is not None  # a stream ends with the whole, or raises
        found = self._seen(done, model.name, step)
        if isinstance(found, CallFailed):
            raise found
        return found

    async def attempt(
        self,
        model: ChatModel,
        messages: Sequence[Message],
        sampling: Sampling,
        step: str = "",
        window: Window | None = None,
    ) -> Completion | CallFailed:
        """One call that the answer can do without."""
        try:
            done = await model.generate(self._fitted(messages, window), sampling)
        except ModelCallError as error:
            return failed_call(error, step)
        return self._seen(done, model.name, step)

    async def sample(
        self,
        model: ChatModel,
        messages: Sequence[Message],
        sampling: Sampling,
        series: Series,
        n: int,
        step: str = "",
        window: Window | None = None,
    ) -> list[Completion]:
        """Up to ``n`` samples, those that failed left out. Raises CallFailed when there is none.

        One request where the model can give several samples (the prompt is then paid for once); a failure is then one of all.
        """
        many = many_at_once(model)
        if many is not None:
            try:
                found = list(await many.generate_many(self._fitted(messages, window), series.together(sampling), n))
            except ModelCallError as error:
                raise failed_call(error, step) from None
            tried: Sequence[Completion | CallFailed] = [self._seen(done, model.name, step) for done in found]
        else:
            each = [series.nth(sampling, index) for index in range(n)]
            tried = await asyncio.gather(*(self.attempt(model, messages, one, step, window) for one in each))
        answered = [done for done in tried if isinstance(done, Completion)]
        if not answered:
            raise next(done for done in tried if isinstance(done, CallFailed))
        return answered

    def _fitted(self, messages: Sequence[Message], window: Window | None) -> Sequence[Message]:
        if window is None:
            return messages
        fitted = window.fit_turns(messages)
        self.truncated_context |= fitted.cut
        return fitted.messages

    def _seen(self, done: Completion, name: str, step: str) -> Completion | CallFailed:
        """What is visible of an answer; what it took counts in any case."""
        self.usage += done.usage
        if done.usage.calls:  # further samples of one request took no time of their own
            self.latency_s += done.latency_s
        try:
            found = visible(done, name)
            self._thinks_aloud |= found.text != done.text
            return found
        except HiddenAnswerError as error:
            return failed_call(error, step)


def failed_call(error: ModelCallError, step: str = "") -> CallFailed:
    """A model's failure as the record will have it; the ``step`` is named where there are several kinds of call."""
    # The kind comes first: by it a stage tells whether calls keep failing in one way.
    reason = f"{error.kind}: {step}: {error}" if step else f"{error.kind}: {error}"
    thinking = error.done.thinking if isinstance(error, HiddenAnswerError) else None
    return CallFailed(reason, cut=error.kind == CUT_OFF, thinking=thinking)
