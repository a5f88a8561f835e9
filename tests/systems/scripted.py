"""Models and a retriever that follow a script, for the systems' tests."""

from __future__ import annotations

from collections.abc import Sequence

from cowest.errors import ModelCallError
from cowest.models.scripted import ScriptedChatModel
from cowest.types import Completion, Message, Passage, Sampling, TokenLogprob, Usage

DOWN = ModelCallError("http_500", "the endpoint failed")
FAILED = "http_500: the endpoint failed"


def saying(*replies: str, fail: Sequence[ModelCallError | None] = ()) -> ScriptedChatModel:
    """A model that gives these replies one after the other, and the last one for ever."""
    left = list(replies)
    return ScriptedChatModel(lambda messages, sampling: left.pop(0) if len(left) > 1 else left[0], fail=fail)


def asked(model: ScriptedChatModel) -> list[tuple[Message, ...]]:
    """The messages of all its requests."""
    return [request.messages for request in model.requests]


def words(*requests: tuple[Message, ...]) -> int:
    """Input tokens as a scripted model counts them."""
    return sum(len(message.content.split()) for messages in requests for message in messages)


def user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


class Timed(ScriptedChatModel):
    """Every answer took two seconds, and carries these log-probabilities; it may be cut off at max_tokens."""

    def __init__(
        self, reply: str, logprobs: Sequence[tuple[str, float]] | None = None, finish_reason: str = "stop"
    ) -> None:
        super().__init__(lambda messages, sampling: reply)
        self._logprobs, self._finish = logprobs, finish_reason

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        done = await super().generate(messages, sampling)
        found = None if self._logprobs is None else tuple(TokenLogprob(token=t, logprob=p) for t, p in self._logprobs)
        return done.model_copy(update={"latency_s": 2.0, "finish_reason": self._finish, "logprobs": found})


class Many:
    """A model that gives several samples in one request: the prompt is on the first one's bill."""

    name, many = "many", True

    def __init__(self, *replies: str, failure: ModelCallError | None = None) -> None:
        self._replies, self._failure = replies, failure
        self.requests: list[tuple[tuple[Message, ...], Sampling, int]] = []

    async def generate_many(self, messages: Sequence[Message], sampling: Sampling, n: int) -> Sequence[Completion]:
        self.requests.append((tuple(messages), sampling, n))
        if self._failure is not None:
            raise self._failure
        first = Usage(calls=1, input_tokens=10, output_tokens=1)
        return [
            Completion(text=text, usage=first if i == 0 else Usage(output_tokens=1), latency_s=3.0)
            for i, text in enumerate(self._replies[:n])
        ]

    async def generate(self, messages: Sequence[Message], sampling: Sampling) -> Completion:
        raise AssertionError("several samples are to be asked for together")

    async def aclose(self) -> None: ...


class Shelf:
    """A retriever that finds what is on it, whatever the query; ``queries`` holds (query, k)."""

    def __init__(self, *texts: str) -> None:
        self._found = [Passage(id=f"p{i}", text=text, score=9.0 - i) for i, text in enumerate(texts, 1)]
        self.queries: list[tuple[str, int]] = []

    def search(self, query: str, k: int) -> Sequence[Passage]:
        self.queries.append((query, k))
        return self._found[:k]
