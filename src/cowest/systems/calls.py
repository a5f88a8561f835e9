"""What the systems share: calling models for one query, adding up what that took, and failing as data."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from cowest.errors import ModelCallError
from cowest.models.window import Window
from cowest.protocols import ChatModel, ManyChatModel
from cowest.run.identity import derive_seed
from cowest.types import Completion, Example, Message, Prediction, Sampling, Usage

Ask = Callable[[Example], Sequence[Message]]
"""How a query is put to a model."""


class CallFailed(Exception):
    """A call that the answer needs has failed; the message is the reason that goes into the Prediction."""


@dataclass(slots=True)
class Tally:
    """The calls made for one query: usage and seconds are sums over all that were answered.

    ``draft``: the weak model's text, where there is one. ``truncated_context``: something was left out of a prompt, since
    it did not fit the model's window.
    """

    usage: Usage = field(default_factory=Usage)
    latency_s: float = 0.0
    draft: str | None = None
    truncated_context: bool = False

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
            return _failure(error, step)
        self._add(done)
        return done

    async def sample(
        self,
        model: ChatModel,
        messages: Sequence[Message],
        sampling: Sampling,
        n: int,
        step: str,
        window: Window | None,
    ) -> list[Completion]:
        """Up to ``n`` samples, those that failed left out; ``sampling.seed`` is the series' own.

        One request where the model can give several samples (the prompt is then paid for once); a failure is then one of all.
        Raises CallFailed when there is none.
        """
        if isinstance(model, ManyChatModel):
            try:
                found = list(await model.generate_many(self._fitted(messages, window), sampling, n))
            except ModelCallError as error:
                raise _failure(error, step) from None
            for done in found:
                self._add(done)
            return found
        each = [sampling.model_copy(update={"seed": derive_seed(sampling.seed or 0, index)}) for index in range(n)]
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

    def _add(self, done: Completion) -> None:
        self.usage += done.usage
        if done.usage.calls:  # further samples of one request took no time of their own
            self.latency_s += done.latency_s


def _failure(error: ModelCallError, step: str) -> CallFailed:
    # The kind comes first: by it a stage tells whether calls keep failing in one way.
    return CallFailed(f"{error.kind}: {step}: {error}" if step else f"{error.kind}: {error}")


async def predict(
    example: Example, system: str, steps: Callable[[Example, Tally], Awaitable[Completion]]
) -> Prediction:
    """The prediction of a system whose ``steps`` end in the completion that holds the answer.

    When a step raises CallFailed, ``text`` is None and ``error`` says why; what the calls before it took is kept.
    """
    tally = Tally()
    text, truncated, failure = None, False, None
    try:
        final = await steps(example, tally)
        text, truncated = final.text, final.finish_reason == "length"
    except CallFailed as error:
        failure = str(error)
    return Prediction(
        example_id=example.id,
        system=system,
        text=text,
        truncated=truncated,
        truncated_context=tally.truncated_context,
        draft=tally.draft,
        error=failure,
        usage=tally.usage,
        latency_s=tally.latency_s,
    )
