"""Decoding many requests together on one model: the part of ``models/local.py`` that touches tensors.

What makes it quicker than ``model.generate`` on a fixed batch: rows that are finished leave and waiting ones take their place,
those that share a beginning together; what prompts share is read once and remembered for a while (:mod:`cowest.models.readers`),
nothing is spent on padding, and only the last position's logits are computed.

A row's text depends on its own request alone and not on what it shares a batch with - up to rounding: matrix products of another
shape may differ in the last bit, which matters only where two tokens are equally likely, or a uniform number falls within that
of the edge between two.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from threading import Event

import torch
from transformers import PreTrainedModel

from cowest.models.prefixes import together
from cowest.models.readers import Reader, reader_for
from cowest.models.sampler import Row, Sampler

JOIN = 8
"""Rows join when an eighth of the places is free: reading a few prompts at a time would hold up the others at every step."""

AHEAD = 4
"""So many times as many requests as may join are looked at for what they share: a request is overtaken only by those behind it
that share more with an older one, and the oldest always joins."""

STREAMING = 2048  # most prompt tokens that are read between two steps while somebody reads along


@dataclass(frozen=True, slots=True)
class TokenScore:
    """The natural-log probability of a chosen token at temperature 1 and top-p 1, and the likeliest tokens with theirs."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Decoded:
    """The new tokens of a row, end-of-sequence not included; ``stopped`` is False where ``max_tokens`` cut it.

    ``scores`` has one for each token; None where the row asked for none.
    """

    tokens: list[int]
    stopped: bool
    generated: int
    scores: list[TokenScore] | None = None


class Interrupted(Exception):
    """Decoding was told to stop."""


def _go_on(stop: Event) -> None:
    if stop.is_set():
        raise Interrupted


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A row, and who waits for it. All are called on the decoding thread."""

    row: Row
    done: Callable[[Decoded], None]
    failed: Callable[[Exception], None]
    """Gets Interrupted, torch.OutOfMemoryError (it alone does not fit), or whatever went wrong."""
    gone: Callable[[], bool] = lambda: False
    """Whether nobody waits any more: the row leaves unfinished. Asked before each of its tokens."""
    hear: Callable[[list[int]], None] | None = None
    """Gets the tokens so far after each one."""


@dataclass(slots=True, eq=False)
class _Live:
    request: Request
    tokens: list[int] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)

    def decoded(self, stopped: bool) -> Decoded:
        text = self.tokens[:-1] if stopped else self.tokens
        scores = self.scores[: len(text)] if self.request.row.logprobs is not None else None
        return Decoded(text, stopped, len(self.tokens), scores)


class Decoder:
    """Greedy and sampled decoding for one causal language model, of up to ``batch_size`` rows at a time."""

    def __init__(
        self,
        model: PreTrainedModel,
        eos_ids: Sequence[int],
        pad_id: int,
        batch_size: int = 64,
        reader: Reader | None = None,
    ) -> None:
        self._device = model.device
        self._eos = frozenset(eos_ids)
        self._most = batch_size
        self._reader = reader or reader_for(model, pad_id)
        self._live: list[_Live] = []
        self._sampler = Sampler(self._device)
        self._logits = torch.zeros(0, 0)

    def decode(self, rows: Sequence[Row], stop: Event | None = None) -> list[Decoded]:
        """Decode ``rows``, and return when all are done. Raises what went wrong, and Interrupted soon after ``stop`` is set."""
        found: dict[int, Decoded] = {}
        errors = list[Exception]()
        waiting = deque(
            Request(row, lambda done, i=i: found.update({i: done}), errors.append)  # type: ignore[misc]
            for i, row in enumerate(rows)
        )
        self.run(waiting, stop or Event())
        if errors:
            raise errors[0]
        return [found[i] for i in range(len(rows))]

    @torch.inference_mode()
    def run(self, waiting: deque[Request], stop: Event) -> None:
        """Decode what waits, and what comes in meanwhile, until there is nothing more. Every request is answered or failed."""
        try:
            while waiting or self._live:
                try:
                    _go_on(stop)
                    self._admit(waiting, stop)
                    if self._live:
                        self._step()
                except Interrupted as error:
                    while waiting:
                        waiting.popleft().failed(error)
                    self._fail(error)
                except torch.OutOfMemoryError as error:
                    self._retry(waiting, error)
                except Exception as error:  # whatever happens here, every caller must get an answer
                    self._fail(error)
        finally:
            self._reset()

    def _admit(self, waiting: deque[Request], stop: Event) -> None:
        """Let waiting requests join: the oldest, those that share what it reads, then the next oldest."""
        while waiting:
            free = self._most - len(self._live)
            if free == 0 or (self._live and free < len(waiting) and free * JOIN < self._most):
                return
            heard = any(live.request.hear is not None for live in self._live)
            some = self._next(waiting, free, STREAMING if heard else None)
            if not some:
                return
            rows, had = [request.row for request in some], len(self._live)
            self._live += [_Live(request) for request in some]  # before they are read: they fail with the others
            logits = self._reader.admit(rows, lambda: _go_on(stop))
            self._logits = torch.cat([self._logits, logits]) if had else logits
            self._sampler.add(rows)
            if heard:
                return

    def _next(self, waiting: deque[Request], free: int, most: int | None) -> list[Request]:
        """Take up to ``free`` requests, of ``most`` tokens, that the reader has room for. The others keep their places."""
        ahead, taken = list[Request](), set[int]()
        while waiting and len(ahead) < AHEAD * free:
            request = waiting.popleft()
            if not request.gone():
                ahead.append(request)
        try:
            order = together([request.row.prompt for request in ahead])[:free]
            if most is not None:
                so_far = list(accumulate(len(ahead[i].row.prompt) for i in order))
                order = order[: max(1, bisect_right(so_far, most))]
            order = order[: self._reader.room([ahead[i].row for i in order])] if order else []
            taken = set(order)
            return [ahead[i] for i in order]
        finally:
            waiting.extendleft(request for i, request in reversed(list(enumerate(ahead))) if i not in taken)

    def _step(self) -> None:
        """Choose a token for each row, let those that are finished leave, and read the chosen tokens of the others."""
        logits = self._logits.float()
        chosen = self._with_given(self._sampler.choose(logits))
        scores = self._scores(logits, chosen)
        keep = list[int]()
        for i, (live, token) in enumerate(zip(self._live, chosen.tolist(), strict=True)):
            request = live.request
            if request.gone():
                continue
            live.tokens.append(token)
            if i in scores:
                live.scores.append(scores[i])
            ended = token in self._eos and not request.row.given
            if request.hear is not None:
                request.hear(live.tokens[:-1] if ended else live.tokens[:])
            if ended or len(live.tokens) >= request.row.max_tokens:
                request.done(live.decoded(ended))
            else:
                keep.append(i)
        if len(keep) < len(self._live):
            chosen = self._leave(keep, chosen)
        if self._live:
            self._logits = self._reader.step(chosen)

    def _with_given(self, chosen: torch.Tensor) -> torch.Tensor:
        """The next tokens, where a row's are given, in place of what was chosen."""
        rows = [
            (i, live.request.row.given[len(live.tokens)]) for i, live in enumerate(self._live) if live.request.row.given
        ]
        if rows:
            index, tokens = torch.tensor(rows, device=self._device).T
            chosen[index] = tokens
        return chosen

    def _leave(self, keep: list[int], chosen: torch.Tensor) -> torch.Tensor:
        """Only these rows stay. Those at the end take the places of those that leave, so that little is copied."""
        if not keep:
            self._reset()
            return chosen
        staying = [i for i in keep if i < len(keep)]
        moving = iter(reversed(keep[len(staying) :]))
        stays = set(staying)
        order = [i if i in stays else next(moving) for i in range(len(keep))]
        index = torch.tensor(order, device=self._device)
        self._live = [self._live[i] for i in order]
        self._reader.select(order, index)
        self._sampler.select(order, index)
        return chosen[index]

    def _scores(self, logits: torch.Tensor, chosen: torch.Tensor) -> dict[int, TokenScore]:
        """How likely the chosen tokens are, of the rows that asked."""
        asking = [i for i, live in enumerate(self._live) if live.request.row.logprobs is not None]
        if not asking:
            return {}
        index = torch.tensor(asking, device=self._device)
        logprobs = torch.log_softmax(logits[index], -1)
        of_chosen = logprobs.gather(-1, chosen[index, None])[:, 0].tolist()
        wanted = [self._live[i].request.row.logprobs or 0 for i in asking]
        values, ids = (found.tolist() for found in logprobs.topk(min(max(wanted), logprobs.shape[-1]), -1))
        return {
            i: TokenScore(of_chosen[n], tuple(zip(ids[n], values[n], strict=True))[: wanted[n]])
            for n, i in enumerate(asking)
        }

    def _retry(self, waiting: deque[Request], error: Exception) -> None:
        """Memory ran out: begin again with half as many rows at a time, from now on."""
        if len(self._live) <= 1:
            self._fail(error)
            return
        waiting.extendleft(live.request for live in reversed(self._live))
        self._most = (len(self._live) + 1) // 2
        self._reset(everything=True)

    def _fail(self, error: Exception) -> None:
        for live in self._live:
            live.request.failed(error)
        self._reset()

    def _reset(self, everything: bool = False) -> None:
        self._live = []
        self._sampler = Sampler(self._device)
        self._reader.release(everything)
        self._logits = torch.zeros(0, 0)
