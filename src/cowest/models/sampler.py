"""How the next token of each row is chosen: greedy, or sampled with the row's own temperature, top-p and uniform numbers.

Sampling is by inverse CDF from a uniform stream of the row's own (PCG64 of its seed), so that a row's text depends on its own
request alone and not on what it shares a batch with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cowest.models.held import Grammar, Matcher

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
    given: tuple[int, ...] = ()
    """Nothing is chosen: these are the tokens (``max_tokens`` of them), which are only read."""
    grammar: Grammar | None = None
    """What the text is held to."""


class Sampler:
    """Chooses tokens for the rows of a batch, which may join and leave: row i is what :meth:`add` added i-th, until it moves."""

    def __init__(self, device: torch.device) -> None:
        self._rows: list[Row] = []
        self._matchers: list[Matcher | None] = []
        self._steps = torch.zeros(0, dtype=torch.long, device=device)
        self._temperature = torch.zeros(0, device=device)
        self._top_p = torch.zeros(0, device=device)
        self._uniforms = torch.zeros(0, 0, device=device)

    def add(self, rows: Sequence[Row]) -> None:
        """New rows, after those that are there."""
        device = self._steps.device
        sampled = [row.max_tokens for row in rows if row.temperature > 0]
        steps = max([*sampled, self._uniforms.shape[1]])
        drawn = np.zeros((len(rows), steps), dtype=np.float32)
        for i, row in enumerate(rows):
            if row.temperature > 0:
                stream = np.random.Generator(np.random.PCG64(row.seed)).random(row.max_tokens)
                drawn[i, : row.max_tokens] = np.minimum(stream, UNIFORM_MAX)
        longer = torch.nn.functional.pad(self._uniforms, (0, steps - self._uniforms.shape[1]))
        self._uniforms = torch.cat([longer, torch.from_numpy(drawn).to(device)])
        self._steps = torch.cat([self._steps, self._steps.new_zeros(len(rows))])
        told = torch.tensor([[row.temperature for row in rows], [row.top_p for row in rows]], device=device)
        self._temperature, self._top_p = torch.cat([self._temperature, told[0]]), torch.cat([self._top_p, told[1]])
        self._rows += rows
        self._matchers += [None if row.grammar is None else row.grammar.matcher() for row in rows]
        self._settle()

    def select(self, keep: Sequence[int], index: torch.Tensor) -> None:
        """Keep these rows, in this order; ``index`` is the same on the device."""
        self._rows = [self._rows[i] for i in keep]
        self._matchers = [self._matchers[i] for i in keep]
        self._steps, self._uniforms = self._steps[index], self._uniforms[index]
        self._temperature, self._top_p = self._temperature[index], self._top_p[index]
        self._settle()

    def _settle(self) -> None:
        greedy = [row.temperature == 0 for row in self._rows]
        self._all_greedy, self._any_greedy = all(greedy), any(greedy)
        self._nucleus = any(row.top_p < 1 and row.temperature > 0 for row in self._rows)
        self._greedy = self._temperature == 0
        self._held = [(i, matcher) for i, matcher in enumerate(self._matchers) if matcher is not None]
        self._divisor = self._temperature.masked_fill(self._greedy, 1.0)[:, None]

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """Token ids (rows,) for float32 ``logits`` (rows, vocabulary); each row's next uniform number is used.

        A row with a grammar chooses among what that allows next, and goes on in it.
        """
        if not self._held:
            return self._chosen(logits)
        logits = logits.clone()  # others read how likely a token was of all
        for i, matcher in self._held:
            forbidden = torch.from_numpy(matcher.forbidden(logits.shape[-1])).to(logits.device)
            logits[i].masked_fill_(forbidden, -torch.inf)
        chosen = self._chosen(logits)
        for (_, matcher), token in zip(self._held, chosen[[i for i, _ in self._held]].tolist(), strict=True):
            matcher.take(token)
        return chosen

    def _chosen(self, logits: torch.Tensor) -> torch.Tensor:
        if self._all_greedy:
            return logits.argmax(-1)
        probabilities = torch.softmax(logits / self._divisor, -1)
        if self._nucleus:
            probabilities = nucleus(probabilities, self._top_p[:, None])
        cumulative = probabilities.cumsum(-1)
        uniform = self._uniforms.gather(1, self._steps.clamp(max=self._uniforms.shape[1] - 1)[:, None])
        self._steps += 1
        # The first token whose cumulative probability exceeds the target; one of probability 0 never does.
        target = uniform * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
        return torch.where(self._greedy, logits.argmax(-1), chosen) if self._any_greedy else chosen


def nucleus(probabilities: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Zero all but the fewest most likely tokens that together have at least ``top_p``; not renormalised."""
    ordered, order = torch.sort(probabilities, dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    # At top_p 1 everything stays, whatever the cumulative sum has been rounded to.
    keep = (before < top_p) | (top_p >= 1)
    keep[:, 0] = True
    return torch.zeros_like(probabilities).scatter(-1, order, ordered * keep)
