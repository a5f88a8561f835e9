"""How prompts and chosen tokens are read by a model: in slots that rows may join at any time, or in the model's own way."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, cast

import torch
from transformers import DynamicCache, PreTrainedModel

from cowest.models.prefixes import WORTH, Prefixes, Reading, waves
from cowest.models.room import available_bytes
from cowest.models.sampler import Row
from cowest.models.slots import PLACES, Piece, Slots

TOKENS = {"cpu": 2048, "cuda": 32768}
"""Most prompt tokens read in one pass: the widest layer's values for them must fit beside the weights, and who wants to stop
waits for the pass to end (8192 tokens are a minute for 1.5B parameters on one core)."""

CACHE_SHARE, PREFIX_SHARE = 0.5, 0.25  # of the memory that is available: for rows under way, and for recent prompts


class Reader(Protocol):
    """Rows under way: row i is the i-th that was admitted, until rows are selected."""

    def room(self, rows: Sequence[Row]) -> int:
        """How many of these may join now, in their order."""
        ...

    def admit(self, rows: Sequence[Row], between: Callable[[], None]) -> torch.Tensor:
        """Read the prompts of new rows, which come after those under way. Logits (new rows, vocabulary).

        ``between`` is called before each pass; what it raises ends the reading.
        """
        ...

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read one token (rows,) of each row. Logits (rows, vocabulary) for the next."""
        ...

    def select(self, keep: Sequence[int], index: torch.Tensor) -> None:
        """Keep these rows, in this order; ``index`` is the same on the device."""
        ...

    def release(self, everything: bool = False) -> None:
        """Forget the rows; with ``everything`` also what is remembered of earlier ones."""
        ...


def reader_for(model: PreTrainedModel, pad_id: int) -> Reader:
    """The best that ``model`` allows."""
    slots = Slots(model)
    return SlotReader(model, slots) if slots.fits() else PlainReader(model, pad_id)


class SlotReader:
    """Rows join and leave at any time; what prompts share with each other, or with recent ones, is read once."""

    def __init__(self, model: PreTrainedModel, slots: Slots, prefix_bytes: int | None = None) -> None:
        self._slots, self._device = slots, model.device
        self._tokens = TOKENS.get(model.device.type, TOKENS["cuda"])
        share = int(available_bytes(model.device) * PREFIX_SHARE)
        self.prefixes = Prefixes(share if prefix_bytes is None else prefix_bytes)
        self.read_tokens = 0
        """Prompt tokens that went through the model, of all that were asked."""
        self._longest: list[int] = []
        self._lengths = torch.zeros(0, dtype=torch.long, device=model.device)

    def room(self, rows: Sequence[Row]) -> int:
        """See Reader. Slots are made as many and as long as memory allows."""
        live, needs = len(self._longest), [len(row.prompt) + row.max_tokens for row in rows]
        have, places = self._slots.shape
        if live + len(rows) <= have and max(needs) <= places:
            return len(rows)
        if not live:
            self._slots.release()
            have = places = 0
        wanted = -(-max(*needs, places) // PLACES) * PLACES
        most = int(available_bytes(self._device) * CACHE_SHARE) // (wanted * self._slots.token_bytes)
        if most >= live + len(rows) or not live:
            count = min(live + len(rows), max(most, 1))
            # Twice as many as there were: else every one that joins would copy all that are there.
            self._slots.reserve(max(count, min(2 * have, most)), wanted, live)
            return count - live
        fitting = next((i for i, need in enumerate(needs) if need > places), len(needs))
        return min(fitting, have - live)

    def admit(self, rows: Sequence[Row], between: Callable[[], None]) -> torch.Tensor:
        """See Reader."""
        first, equal = len(self._longest), dict[tuple[int, ...], list[int]]()
        for i, row in enumerate(rows):
            equal.setdefault(row.prompt, []).append(first + i)
        prompts, places = list(equal), [slots[0] for slots in equal.values()]
        read, ended, parts = [0] * len(prompts), list[int](), list[torch.Tensor]()
        for wave in waves(prompts):
            for some in _by_tokens(wave, self._tokens):
                between()
                leaves, logits = self._read(some, prompts, places, read)
                ended += leaves
                if logits is not None:
                    parts.append(logits)
        for i, (prompt, slots) in enumerate(equal.items()):
            size = len(prompt) * self._slots.token_bytes
            if len(prompt) >= WORTH and 2 * read[i] >= len(prompt) and self.prefixes.wants(size):
                states = self._slots.copy(slots[0], len(prompt))
                if states is not None:
                    self.prefixes.keep(prompt, states)
            self._slots.move([slots[0]] * (len(slots) - 1), slots[1:], 0, len(prompt))
        lengths = torch.tensor([len(row.prompt) for row in rows], device=self._device)
        self._lengths = torch.cat([self._lengths, lengths])
        self._longest += [len(row.prompt) for row in rows]
        where = {prompts[i]: n for n, i in enumerate(ended)}
        return torch.cat(parts)[torch.tensor([where[row.prompt] for row in rows], device=self._device)]

    def _read(
        self, readings: Sequence[Reading], prompts: Sequence[tuple[int, ...]], places: Sequence[int], read: list[int]
    ) -> tuple[list[int], torch.Tensor | None]:
        """One pass. Which prompts it ended, and the logits after them."""
        pieces, ended, leaves = list[Piece](), list[int](), list[int]()
        for reading in readings:
            prompt, slot, start = prompts[reading.owner], places[reading.owner], reading.start
            ends = reading.end == len(prompt)
            found = self.prefixes.find(prompt, reading.end - ends)
            if found is not None and found[0] > start:
                self._slots.put(slot, found[1], start, found[0])
                start = found[0]
            if start < reading.end:
                if ends:
                    ended.append(reading.owner)
                    leaves.append(len(pieces))
                pieces.append(Piece(slot, prompt[start : reading.end], start))
                read[reading.owner] += reading.end - start
                self.read_tokens += reading.end - start
        logits = self._slots.read(pieces) if pieces else None
        for reading in readings:
            others = [places[i] for i in reading.others]
            self._slots.move([places[reading.owner]] * len(others), others, reading.start, reading.end)
        if logits is None or not leaves:
            return [], None
        return ended, logits if len(leaves) == len(pieces) else logits[torch.tensor(leaves, device=self._device)]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See Reader."""
        logits = self._slots.step(tokens, self._lengths, max(self._longest))
        self._lengths = self._lengths + 1
        self._longest = [length + 1 for length in self._longest]
        return logits

    def select(self, keep: Sequence[int], index: torch.Tensor) -> None:
        """See Reader. Only rows that stand elsewhere afterwards are copied: those before must not be kept."""
        moved = [(row, i) for i, row in enumerate(keep) if row != i]
        if moved:
            longest = max(self._longest[row] for row, _ in moved)
            self._slots.move([row for row, _ in moved], [i for _, i in moved], 0, longest)
        self._longest = [self._longest[i] for i in keep]
        self._lengths = self._lengths[index]

    def release(self, everything: bool = False) -> None:
        """See Reader."""
        self._slots.release()
        self._longest, self._lengths = [], self._lengths[:0]
        if everything:
            self.prefixes.clear()


class PlainReader:
    """The model's own cache: prompts padded on the left, rows that only leave, and only equal prompts read once."""

    def __init__(self, model: PreTrainedModel, pad_id: int) -> None:
        self._model, self._pad = model, pad_id
        known = inspect.signature(model.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self._places = "position_ids" in known
        self._tokens = TOKENS.get(model.device.type, TOKENS["cuda"])
        self._cache: DynamicCache | None = None
        self._mask: torch.Tensor | None = None
        self.release()

    def room(self, rows: Sequence[Row]) -> int:
        """See Reader. As many as are read in one pass, and only when no row is under way."""
        if len(self._lengths):
            return 0
        most = self._tokens // max(len(row.prompt) for row in rows)
        return min(len(rows), max(most, 1))

    def admit(self, rows: Sequence[Row], between: Callable[[], None]) -> torch.Tensor:
        """See Reader. One pass."""
        between()
        device, unique = self._model.device, list(dict.fromkeys(row.prompt for row in rows))
        width = max(len(p) for p in unique)
        ids = torch.tensor([[self._pad] * (width - len(p)) + list(p) for p in unique], device=device)
        lengths = torch.tensor([len(p) for p in unique], device=device)
        mask = (torch.arange(width, device=device) >= (width - lengths)[:, None]).long()
        padded = any(len(p) != width for p in unique)
        self._cache = DynamicCache(config=self._model.config)
        logits = self._forward(ids, mask if padded else None, (mask.cumsum(-1) - 1).clamp(min=0))
        where = {prompt: i for i, prompt in enumerate(unique)}
        index = torch.tensor([where[row.prompt] for row in rows], device=device)
        if len(unique) < len(rows):
            self._cache.batch_select_indices(index)
        self._lengths = lengths[index]
        if padded:
            ones = torch.ones(len(rows), max(row.max_tokens for row in rows), dtype=torch.long, device=device)
            self._mask = torch.cat([mask[index], ones], dim=1)
        self._width = width
        return logits[index]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See Reader."""
        self._width += 1
        mask = None if self._mask is None else self._mask[:, : self._width]
        logits = self._forward(tokens[:, None], mask, self._lengths[:, None])
        self._lengths = self._lengths + 1
        return logits

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor | None, places: torch.Tensor) -> torch.Tensor:
        extra = {"position_ids": places} if self._places else {}
        output = self._model(
            input_ids=ids, attention_mask=mask, past_key_values=self._cache, use_cache=True, **extra, **self._last_only
        )
        return cast(torch.Tensor, output.logits[:, -1])

    def select(self, keep: Sequence[int], index: torch.Tensor) -> None:
        """See Reader."""
        assert self._cache is not None
        self._cache.batch_select_indices(index)
        self._lengths = self._lengths[index]
        self._mask = None if self._mask is None else self._mask[index]

    def release(self, everything: bool = False) -> None:
        """See Reader."""
        self._cache = self._mask = None
        self._lengths = torch.zeros(0, dtype=torch.long, device=self._model.device)
        self._width = 0


def _by_tokens(wave: Sequence[Reading], most: int) -> Iterator[list[Reading]]:
    some, tokens = list[Reading](), 0
    for reading in wave:
        length = reading.end - reading.start
        if some and tokens + length > most:
            yield some
            some, tokens = [], 0
        some.append(reading)
        tokens += length
    if some:
        yield some
