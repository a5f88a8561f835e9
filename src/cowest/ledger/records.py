"""What the ledger is told: a call and its key, a batch, a run's limits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Final, Literal

from pydantic import JsonValue

from cowest.ledger.prices import Price
from cowest.types import Message, Record, Sampling, Usage

_JSON: Final = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))
_SEED: Final = {"seed"}


@dataclass(frozen=True, slots=True)
class Limits:
    """A run's budget; None is no limit. Tokens are those of prompts and answers together."""

    usd: float | None = None
    calls: int | None = None
    tokens: int | None = None

    @property
    def any(self) -> bool:
        """Whether there is a limit at all."""
        return any(limit is not None for limit in (self.usd, self.calls, self.tokens))


NO_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked: the request's key, its content as JSON, and the most that one attempt can cost."""

    key: str
    model: str
    request: str
    most: Usage
    price: Price | None = None


def call_of(
    model: str,
    messages: Sequence[Message],
    sampling: Sampling,
    extra: Mapping[str, JsonValue],
    price: Price | None,
    index: int = 0,
    n: int = 1,
) -> Call:
    """Describe a request: the ``index``-th sample, or ``n`` samples bought together.

    The key is a hash of the model's name, the messages, the sampling parameters, the extra fields and the index; not of the
    address. Greedy decoding has no use for a seed, so there it is left out.
    """
    greedy = sampling.temperature == 0
    # Written by hand, as it is done for every call; the roles are of our own vocabulary.
    said = ",".join(f'{{"content":{encode_basestring(m.content)},"role":"{m.role}"}}' for m in messages)
    asked = sampling.model_dump_json(exclude_defaults=True, exclude=_SEED if greedy else None)
    more = _JSON.encode(dict(extra)) if extra else "{}"
    request = f'{{"messages":[{said}],"sampling":{asked},"extra":{more}}}'
    digest = hashlib.sha256(f"{model}\n{index}\n{request}".encode("utf-8", "surrogatepass")).hexdigest()
    request = request.encode("utf-8", "replace").decode()  # as it is sent: SQLite takes no lone surrogate either
    # The most that one attempt can take: no token is shorter than a byte, and a message's frame takes a few.
    prompt = sum(len(m.content.encode("utf-8", "surrogatepass")) + 16 for m in messages)
    return Call(
        key=digest[:32],
        model=model,
        request=request,
        most=Usage(calls=1, input_tokens=prompt, output_tokens=n * sampling.max_tokens),
        price=price,
    )


class BatchEntry(Record):
    """A job at a provider's batch API. ``id`` is ours, ``job`` the provider's; ``keys`` are the requests in it, in order.

    ``held`` are the budget's reservations for them, where there is a budget.
    """

    id: str
    model: str
    file_id: str
    job: str | None
    status: Literal["creating", "running", "collected", "lost"]
    keys: tuple[str, ...]
    held: tuple[int, ...] = ()
    created: float
