"""Keys and values of the rows under way, in slots of one preallocated buffer, and the attention that reads them.

Rows of different lengths are read *packed*: their tokens stand one after another in a single sequence, so that no product
is spent on padding, and each row attends to its own slot. A row's tokens stand in its slot from place 0 on, so that a row may
join or leave at any time, and what it shares with another is copied, not read again.

It works through transformers' attention interface, with any model whose attention goes through it and looks at all of the
text or at a sliding window of it. :meth:`Slots.fits` finds out by comparing with the model's own way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTION = "cowest_slots"
PLACES = 64  # a slot's length is a multiple of it; CUDA's kernels want masks that are
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
"""How far logits may be from the model's own, root mean square as a share of their spread: rounding, and not another text.

SmolLM2-135M in bfloat16: 0.01 to 0.03 (the farthest of 49,152 logits 0.13); with a token read at the place before its own 0.9.
"""

_MASKED = 2**25  # most elements of one attention's mask
_HARMLESS = frozenset(
    {"is_causal", "position_ids", "use_cache", "output_attentions", "output_hidden_states", "return_dict"}
)


class Unsupported(Exception):
    """The model's attention is not one that reads slots."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens to be read into a slot, after the ``past`` ones that are there."""

    slot: int
    tokens: tuple[int, ...]
    past: int = 0


@dataclass(slots=True)
class _Block:
    """Pieces whose attention is computed together, padded to the longest."""

    slots: torch.Tensor
    source: torch.Tensor  # (pieces, longest): where in the packed sequence
    real: torch.Tensor  # (pieces, longest): False for padding
    past: torch.Tensor
    fresh: bool  # nothing was read before
    alone: tuple[int, int, int] | None  # slot, and where in the packed sequence, of a single piece
    until: int  # places that are looked at
    masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)


@dataclass(slots=True)
class _Plan:
    """Of one forward pass: where each packed token goes, and what attends to what."""

    slot: torch.Tensor
    place: torch.Tensor
    blocks: list[_Block]
    until: int = 0  # of a step: places that are looked at; each row has one token
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)


class Slots:
    """The cache of so many rows of so many tokens; both can grow. One tensor: (layer, key or value, row, head, place, dim)."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._config = model, model.config.get_text_config()
        self._layers: int = self._config.num_hidden_layers
        self.shape = (0, 0)
        """Rows, and places of each, that there is room for."""
        self._kv: torch.Tensor | None = None
        self._plan: _Plan | None = None
        self._windows: dict[int, int | None] = {}
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)

    @property
    def token_bytes(self) -> int:
        """What one token of one row takes."""
        c = self._config
        heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
        dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        return int(2 * self._layers * heads * dim * self._model.dtype.itemsize)

    def reserve(self, rows: int, length: int, used: int) -> None:
        """Make room for ``rows`` rows of ``length`` tokens; the first ``used`` rows are kept."""
        length = -(-length // PLACES) * PLACES
        if rows <= self.shape[0] and length <= self.shape[1]:
            return
        old, places = self._kv, self.shape[1]
        self.shape = (max(rows, self.shape[0] if used else 0), max(length, places if used else 0))
        self._kv = None
        if old is not None and used:
            shape = old.shape
            self._kv = old.new_zeros((*shape[:2], self.shape[0], shape[3], self.shape[1], shape[5]))
            self._kv[:, :, :used, :, :places] = old[:, :, :used]

    def release(self) -> None:
        """Give the memory back."""
        self._kv, self.shape = None, (0, 0)

    def move(self, source: Sequence[int], target: Sequence[int], start: int, end: int) -> None:
        """Copy the places from ``start`` to ``end`` of some rows over those of others."""
        if self._kv is None or start >= end or not source:
            return
        if len(source) == 1:
            self._kv[:, :, target[0], :, start:end] = self._kv[:, :, source[0], :, start:end]
            return
        index = torch.tensor([list(source), list(target)], device=self._kv.device)
        self._kv[:, :, index[1], :, start:end] = self._kv[:, :, index[0], :, start:end]

    def copy(self, row: int, length: int) -> torch.Tensor | None:
        """A copy of a row's first places: (layer, key or value, head, place, dim)."""
        return None if self._kv is None else self._kv[:, :, row, :, :length].clone()

    def put(self, row: int, kept: torch.Tensor, start: int, end: int) -> None:
        """Write what :meth:`copy` gave, from place ``start`` to ``end``."""
        if self._kv is None:  # the first that is written since the start
            layers, two, heads, _, dim = kept.shape
            self._kv = kept.new_zeros((layers, two, self.shape[0], heads, self.shape[1], dim))
        self._kv[:, :, row, :, start:end] = kept[:, :, :, start:end]

    def read(self, pieces: Sequence[Piece]) -> torch.Tensor:
        """Read the pieces in one pass. Logits (pieces, vocabulary) after each one's last token."""
        device = self._model.device
        ids = torch.tensor([t for piece in pieces for t in piece.tokens], device=device)
        ends, at, slots, places = list[int](), 0, list[int](), list[int]()
        for piece in pieces:
            at += len(piece.tokens)
            ends.append(at - 1)
            slots += [piece.slot] * len(piece.tokens)
            places += range(piece.past, piece.past + len(piece.tokens))
        where = torch.tensor([slots, places], device=device)
        plan = _Plan(where[0], where[1], list(_blocks(pieces, device)))
        return self._forward(ids, plan, torch.tensor(ends, device=device))

    def step(self, tokens: torch.Tensor, lengths: torch.Tensor, longest: int) -> torch.Tensor:
        """Read one token more of each of the first rows. Logits (rows, vocabulary).

        ``lengths`` is what the rows hold before, ``longest`` the greatest of them.
        """
        rows = torch.arange(len(tokens), device=tokens.device)
        step = PLACES if tokens.device.type == "cuda" else 16
        until = min(-(-(longest + 1) // step) * step, self.shape[1])
        return self._forward(tokens, _Plan(rows, lengths, [], until), None)

    def _forward(self, ids: torch.Tensor, plan: _Plan, keep: torch.Tensor | None) -> torch.Tensor:
        usual = self._config._attn_implementation
        self._plan, self._config._attn_implementation = plan, ATTENTION
        extra = {} if keep is None else {"logits_to_keep": keep}
        try:
            output = self._model(
                input_ids=ids[None], position_ids=plan.place[None], use_cache=False, cowest_slots=self, **extra
            )
        finally:
            self._plan, self._config._attn_implementation = None, usual
        return cast(torch.Tensor, output.logits[0])

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Write keys and values (1, heads, tokens, dim) into the slots, and attend. Returns (1, tokens, heads, dim)."""
        plan = self._plan
        if plan is None or key.shape != value.shape or layer >= self._layers:
            raise Unsupported
        self._windows[layer] = window
        if self._kv is None:
            shape = (self._layers, 2, self.shape[0], key.shape[1], self.shape[1], key.shape[3])
            self._kv = torch.zeros(shape, dtype=key.dtype, device=key.device)
        kv = self._kv[layer]
        kv[0][plan.slot, :, plan.place] = key[0].transpose(0, 1)
        kv[1][plan.slot, :, plan.place] = value[0].transpose(0, 1)
        if not plan.blocks:
            return _step(plan, kv, query, scale, window)
        out = query.new_empty(query.shape[2], query.shape[1], query.shape[3])
        for block in plan.blocks:
            _read(block, kv, query[0], (key[0], value[0]), out, scale, window)
        return out[None]

    @torch.inference_mode()
    def fits(self) -> bool:
        """Whether this model reads slots and says the same as in its own way."""
        vocabulary = self._config.vocab_size
        texts = [tuple((7 * i * n + 3) % vocabulary for i in range(n)) for n in (5, 9)]
        try:
            self.reserve(3, 16, 0)
            got = [self.read([Piece(0, texts[0][:3]), Piece(1, texts[1][:8])])]
            self.move([0], [2], 0, 3)
            got.append(self.read([Piece(2, texts[0][3:4], 3)]))
            self.move([2], [0], 0, 4)
            tokens = torch.tensor([texts[0][4], texts[1][8]], device=self._model.device)
            got.append(self.step(tokens, torch.tensor([4, 8], device=tokens.device), 8))
            if not self._windows_as_told():
                return False
            for row, text in zip(got[2], texts, strict=True):
                own = self._model(input_ids=torch.tensor([text], device=tokens.device), use_cache=False).logits[0, -1]
                spread, gap = float(own.float().std()) or 1.0, (own - row).float()
                if float(gap.square().mean().sqrt()) > TOLERANCE.get(own.dtype, 0.0) * spread:
                    return False
        except Exception:  # whatever a model does that was written for other caches: it is read in its own way
            return False
        finally:
            self.release()
        return True

    def _windows_as_told(self) -> bool:
        """Whether each layer told its attention of the window that the configuration gives it."""
        kinds = getattr(self._config, "layer_types", None)
        if kinds is None:
            windowed = getattr(self._config, "sliding_window", None) is not None
            kinds = ["sliding_attention" if windowed else "full_attention"] * self._layers
        if not set(kinds) <= {"full_attention", "sliding_attention"} or len(self._windows) != self._layers:
            return False
        return all((self._windows[i] is not None) == (kind == "sliding_attention") for i, kind in enumerate(kinds))


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cowest_slots: Slots | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """As transformers' attention interface calls it."""
    if cowest_slots is None or any(value is not None for name, value in others.items() if name not in _HARMLESS):
        raise Unsupported
    return cowest_slots.attend(cast(int, module.layer_idx), query, key, value, scaling, sliding_window), None


def _step(plan: _Plan, kv: torch.Tensor, query: torch.Tensor, scale: float | None, window: int | None) -> torch.Tensor:
    """One token of each row: the heads that share keys stand where the tokens of a text do, so that no key is copied."""
    _, heads, rows, dim = query.shape
    keys, values = kv[0, :rows, :, : plan.until], kv[1, :rows, :, : plan.until]
    if window not in plan.masks:
        places, lengths = torch.arange(plan.until, device=query.device), plan.place[:, None]
        seen = places <= lengths
        if window is not None:
            seen &= places > lengths - window
        plan.masks[window] = torch.zeros(seen.shape, dtype=query.dtype, device=query.device).masked_fill_(
            ~seen, float("-inf")
        )[:, None, None]
    folded = query[0].transpose(0, 1).reshape(rows, keys.shape[1], -1, dim)
    mask = plan.masks[window].expand(-1, -1, folded.shape[2], -1)
    out = scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scale)
    return out.reshape(1, rows, heads, dim)


def _read(
    block: _Block,
    kv: torch.Tensor,
    query: torch.Tensor,
    fresh: tuple[torch.Tensor, torch.Tensor],
    out: torch.Tensor,
    scale: float | None,
    window: int | None,
) -> None:
    """Attention of a block's pieces; ``query`` is (heads, tokens, dim), ``out`` (tokens, heads, dim)."""
    if block.alone is not None:
        slot, start, end = block.alone
        q = query[None, :, start:end]
        k, v = (
            t[None, :, start:end] if block.fresh else kv[i, slot : slot + 1, :, : block.until]
            for i, t in enumerate(fresh)
        )
    else:
        q = query[:, block.source].transpose(0, 1)
        if block.fresh:
            k, v = (t[:, block.source].transpose(0, 1) for t in fresh)
        else:
            k, v = (kv[i, block.slots, :, : block.until] for i in range(2))
    shared = q.shape[1] // k.shape[1]
    if shared > 1:
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    mask = _mask(block, window)
    done = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale).transpose(1, 2)
    if block.alone is not None:
        out[start:end] = done[0]
    else:
        out[block.source[block.real]] = done[block.real]


def _mask(block: _Block, window: int | None) -> torch.Tensor | None:
    """None where a token sees all before it and no more, as kernels know by themselves."""
    if window not in block.masks:
        tokens = block.source.shape[1]
        if block.fresh and (window is None or tokens <= window):
            block.masks[window] = None
        else:
            device = block.source.device
            places = torch.arange(tokens if block.fresh else block.until, device=device)
            own = block.past[:, None] + torch.arange(tokens, device=device)
            seen = places <= own[:, :, None]
            if window is not None:
                seen &= places > own[:, :, None] - window
            block.masks[window] = seen[:, None]
    return block.masks[window]


def _blocks(pieces: Sequence[Piece], device: torch.device) -> list[_Block]:
    """Pieces of about the same length together."""
    starts, at = list[int](), 0
    for piece in pieces:
        starts.append(at)
        at += len(piece.tokens)
    order = sorted(range(len(pieces)), key=lambda i: (pieces[i].past > 0, len(pieces[i].tokens)))
    groups = list[list[int]]()
    for i in order:
        group, length = groups[-1] if groups else [], len(pieces[i].tokens)
        first = pieces[group[0]] if group else None
        alike = (
            first is not None
            and (first.past > 0) == (pieces[i].past > 0)
            and length <= max(1.25 * len(first.tokens), 32)
        )
        if alike and (len(group) + 1) * length * (length + pieces[i].past) <= _MASKED:
            group.append(i)
        else:
            groups.append([i])
    return [_block([pieces[i] for i in group], [starts[i] for i in group], device) for group in groups]


def _block(pieces: Sequence[Piece], starts: Sequence[int], device: torch.device) -> _Block:
    lengths = torch.tensor([len(p.tokens) for p in pieces])
    offsets = torch.arange(int(lengths.max()))
    real = offsets < lengths[:, None]
    source = torch.tensor(starts)[:, None] + torch.minimum(offsets, lengths[:, None] - 1)
    return _Block(
        slots=torch.tensor([p.slot for p in pieces], device=device),
        source=source.to(device),
        real=real.to(device),
        past=torch.tensor([p.past for p in pieces], device=device),
        fresh=not any(p.past for p in pieces),
        alone=(pieces[0].slot, starts[0], starts[0] + len(pieces[0].tokens)) if len(pieces) == 1 else None,
        until=max(p.past + len(p.tokens) for p in pieces),
    )
