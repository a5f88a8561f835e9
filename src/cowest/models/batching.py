"""Decoding many prompts together on one model: the part of ``models/local.py`` that touches tensors.

What makes it quicker than ``model.generate`` on a fixed batch: equal prompts (the K drafts of one query) are read once
and their cache is copied, finished rows leave the batch, and only the last position's logits are computed.

Sampling is by inverse CDF from a uniform stream of the row's own (PCG64 of its seed), so a row's text depends on its
own request alone and not on what it shares a batch with - up to rounding: matrix products of another shape may differ
in the last bit, which matters only where a uniform number falls within that of the edge between two tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

UNIFORM_MAX = 1 - 2**-23  # The largest uniform number that stays below 1 when multiplied in float32.


@dataclass(frozen=True, slots=True)
class Row:
    """One request: token ids of the prompt, and how to sample. ``temperature`` 0 is greedy; ``seed`` None is fresh."""

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int | None = None
    """How many alternatives are to be told of beside each chosen token's log-probability; None: nothing."""


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


class Decoder:
    """Greedy and sampled decoding for one causal language model."""

    def __init__(self, model: PreTrainedModel, eos_ids: Sequence[int], pad_id: int) -> None:
        self._model = model
        self._eos = torch.tensor(sorted(set(eos_ids)), dtype=torch.long, device=model.device)
        self._pad = pad_id
        known = inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self._positions = "position_ids" in known

    @torch.inference_mode()
    def decode(
        self,
        rows: Sequence[Row],
        stop: Event | None = None,
        gone: Callable[[int], bool] | None = None,
        said: Callable[[Callable[[int], list[int]]], None] | None = None,
    ) -> list[Decoded]:
        """Decode all ``rows`` in one batch. Raises :class:`Interrupted` soon after ``stop`` is set.

        ``gone`` tells of a row (by its index) whether nobody waits for it any more: it leaves the batch unfinished. ``said`` is
        called after each step, with a function that gives a row's tokens so far.
        """
        batch = _Batch(self, rows)
        while batch.alive:
            if stop is not None and stop.is_set():
                raise Interrupted
            if gone is not None:
                batch.drop(gone)
            batch.step()
            if said is not None:
                said(batch.spoken)
        return batch.results()

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor, cache: DynamicCache
    ) -> torch.Tensor:
        """Logits (batch, vocabulary) of the last position in float32; ``cache`` grows by ``ids``."""
        extra = {"position_ids": positions} if self._positions else {}
        output = self._model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra, **self._last_only
        )
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    @property
    def eos(self) -> torch.Tensor:
        """Ids that end a text, as a tensor on the model's device."""
        return self._eos

    def prefill(self, prompts: Sequence[tuple[int, ...]]) -> Prefilled:
        """Read ``prompts``, padded on the left to the longest."""
        width = max(len(p) for p in prompts)
        device = self._model.device
        ids = torch.tensor([[self._pad] * (width - len(p)) + list(p) for p in prompts], device=device)
        lengths = torch.tensor([len(p) for p in prompts], device=device)
        mask = (torch.arange(width, device=device) >= (width - lengths)[:, None]).long()
        cache = DynamicCache(config=self._model.config)
        padded = bool((lengths != width).any())
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits = self.forward(ids, mask if padded else None, positions, cache)
        return Prefilled(logits, mask if padded else None, lengths, cache)


@dataclass(slots=True)
class Prefilled:
    """What reading the prompts leaves: logits (prompts, vocabulary), mask (None without padding), lengths, cache."""

    logits: torch.Tensor
    mask: torch.Tensor | None
    lengths: torch.Tensor
    cache: DynamicCache


class _Batch:
    """The rows under way. ``alive`` maps the batch's rows to indices of the requests."""

    def __init__(self, decoder: Decoder, rows: Sequence[Row]) -> None:
        self._decoder, self._rows = decoder, rows
        unique = list(dict.fromkeys(row.prompt for row in rows))
        read = decoder.prefill(unique)
        device = read.logits.device
        where = {prompt: i for i, prompt in enumerate(unique)}
        index = torch.tensor([where[row.prompt] for row in rows], device=device)
        if len(unique) < len(rows):
            read.cache.batch_select_indices(index)
        self._logits, self._cache = read.logits[index], read.cache
        self._positions = read.lengths[index]
        longest = max(row.max_tokens for row in rows)
        self._mask = None
        if read.mask is not None:
            ones = torch.ones(len(rows), longest, dtype=torch.long, device=device)
            self._mask = torch.cat([read.mask[index], ones], dim=1)
        self._width = max(len(prompt) for prompt in unique)
        self._sampler = _Sampler(rows, longest, device)
        self._limits = torch.tensor([row.max_tokens for row in rows], device=device)
        self._tokens: list[list[int]] = [[] for _ in rows]
        self._stopped = [False] * len(rows)
        asked = [row.logprobs for row in rows if row.logprobs is not None]
        self._alternatives = max(asked, default=None)
        self._scores: list[list[TokenScore]] = [[] for _ in rows]
        self._done = torch.zeros(len(rows), dtype=torch.bool, device=device)
        self.alive = list(range(len(rows)))
        self._step = 0

    def drop(self, gone: Callable[[int], bool]) -> None:
        """End the rows for which nobody waits any more; the next step leaves them out."""
        ended = [gone(request) for request in self.alive]
        if any(ended):
            self._done |= torch.tensor(ended, device=self._done.device)

    def step(self) -> None:
        """Choose a token for each row, drop the rows that are finished, and read the chosen tokens."""
        chosen = self._sampler.choose(self._logits, self._step)
        if self._alternatives is not None:
            self._score(chosen, self._alternatives)
        self._step += 1
        ended = torch.isin(chosen, self._decoder.eos)
        finished = ended | (self._limits <= self._step)
        for request, token, end, done in zip(
            self.alive, chosen.tolist(), ended.tolist(), self._done.tolist(), strict=True
        ):
            if not done:
                self._stopped[request] = end
                self._tokens[request].append(token)
        self._done |= finished
        left = len(self.alive) - int(self._done.sum())
        if left == 0:
            self.alive = []
            return
        # Copying the cache costs about as much as a token for the dead rows: wait until a few have gathered.
        if (len(self.alive) - left) * 16 >= len(self.alive):
            chosen = self._compact(chosen)
        mask = None if self._mask is None else self._mask[:, : self._width + self._step]
        self._logits = self._decoder.forward(chosen[:, None], mask, self._positions[:, None], self._cache)
        self._positions = self._positions + 1

    def _score(self, chosen: torch.Tensor, most: int) -> None:
        """Note how likely the chosen tokens were, for the rows under way that asked."""
        ended = self._done.tolist()
        asking = [i for i, r in enumerate(self.alive) if self._rows[r].logprobs is not None and not ended[i]]
        if not asking:
            return
        index = torch.tensor(asking, device=chosen.device)
        logprobs = torch.log_softmax(self._logits[index], -1)
        of_chosen = logprobs.gather(-1, chosen[index, None])[:, 0].tolist()
        values, ids = logprobs.topk(min(most, logprobs.shape[-1]), -1)
        for i, logprob, near, tokens in zip(asking, of_chosen, values.tolist(), ids.tolist(), strict=True):
            count = self._rows[self.alive[i]].logprobs
            self._scores[self.alive[i]].append(TokenScore(logprob, tuple(zip(tokens, near, strict=True))[:count]))

    def _compact(self, chosen: torch.Tensor) -> torch.Tensor:
        keep = (~self._done).nonzero()[:, 0]
        self.alive = [self.alive[i] for i in keep.tolist()]
        self._cache.batch_select_indices(keep)
        self._sampler.select(keep)
        self._positions, self._limits, self._done = self._positions[keep], self._limits[keep], self._done[keep]
        if self._mask is not None:
            self._mask = self._mask[keep]
        return chosen[keep]

    def results(self) -> list[Decoded]:
        return [self._decoded(request) for request in range(len(self._rows))]

    def spoken(self, request: int) -> list[int]:
        """A row's tokens so far, end-of-sequence not included."""
        tokens = self._tokens[request]
        return tokens[:-1] if self._stopped[request] else tokens[:]

    def _decoded(self, request: int) -> Decoded:
        tokens, stopped, text = self._tokens[request], self._stopped[request], self.spoken(request)
        scores = self._scores[request][: len(text)] if self._rows[request].logprobs is not None else None
        return Decoded(text, stopped, len(tokens), scores)


class _Sampler:
    """Chooses each row's next token, with the row's own temperature, top-p and uniform stream."""

    def __init__(self, rows: Sequence[Row], steps: int, device: torch.device) -> None:
        uniforms = np.zeros((len(rows), steps), dtype=np.float32)
        for i, row in enumerate(rows):
            if row.temperature > 0:
                drawn = np.random.Generator(np.random.PCG64(row.seed)).random(row.max_tokens)
                uniforms[i, : row.max_tokens] = np.minimum(drawn, UNIFORM_MAX)
        self._uniforms = torch.from_numpy(uniforms).to(device)
        self._temperature = torch.tensor([row.temperature for row in rows], device=device)
        self._top_p = torch.tensor([row.top_p for row in rows], device=device)
        self._settle()

    def _settle(self) -> None:
        self._greedy = self._temperature == 0
        self._all_greedy = bool(self._greedy.all())
        self._any_greedy = bool(self._greedy.any())
        self._nucleus = bool((self._top_p < 1).any())

    def select(self, keep: torch.Tensor) -> None:
        """Keep these rows only."""
        self._uniforms = self._uniforms[keep]
        self._temperature, self._top_p = self._temperature[keep], self._top_p[keep]
        self._settle()

    def choose(self, logits: torch.Tensor, step: int) -> torch.Tensor:
        """Token ids (batch,) for ``logits`` (batch, vocabulary)."""
        if self._all_greedy:
            return logits.argmax(-1)
        temperature = self._temperature.masked_fill(self._greedy, 1.0)[:, None]
        probabilities = torch.softmax(logits / temperature, -1)
        if self._nucleus:
            probabilities = _nucleus(probabilities, self._top_p[:, None])
        cumulative = probabilities.cumsum(-1)
        # The first token whose cumulative probability exceeds the target; one of probability 0 never does.
        target = self._uniforms[:, step, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
        return torch.where(self._greedy, logits.argmax(-1), chosen) if self._any_greedy else chosen


def _nucleus(probabilities: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Zero all but the fewest most likely tokens that together have at least ``top_p``; not renormalised."""
    ordered, order = torch.sort(probabilities, dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    # At top_p 1 everything stays, whatever the cumulative sum has been rounded to.
    keep = (before < top_p) | (top_p >= 1)
    keep[:, 0] = True
    return torch.zeros_like(probabilities).scatter(-1, order, ordered * keep)
