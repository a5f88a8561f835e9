"""Weights on this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from cowest.assembly.engines import ENGINES
from cowest.assembly.places import check_model, model_path, model_source, standing_in
from cowest.assembly.sources.protocol import no_batch, room_in
from cowest.engines.managed import Managed, window_of
from cowest.engines.servers import Servers
from cowest.errors import ModelNotFoundError
from cowest.ledger.ledger import Ledger
from cowest.ledger.prices import Price
from cowest.models.window import Window
from cowest.protocols import Budget, ChatModel
from cowest.recipe.models import LocalModelConfig
from cowest.recipe.outcome import settings_of
from cowest.run.freshness import UNKNOWN, Depends, content
from cowest.run.identity import hash_model
from cowest.types import ModelRef


@dataclass(frozen=True, slots=True)
class LocalSource:
    """Weights on this machine, which an engine lets answer.

    ``servers``: those of the run, for an engine that is one (unset: one of its own); ``label``: what the run calls the model.
    """

    config: LocalModelConfig
    servers: Servers | None = None
    label: str = "model"
    trainable: bool = True
    paid: bool = False
    many: int = 1
    price: Price | None = None
    batch_price: Price | None = None
    batch_requests: int | None = None
    per_minute: tuple[float | None, float | None] = (None, None)
    extra: dict[str, JsonValue] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's name, or the last part of a hub name."""
        return Path(self.config.model).name

    @property
    def concurrency(self) -> int:
        """As many as are generated together."""
        return self.config.batch_size

    @property
    def reads_given(self) -> bool:
        """In this process, or perhaps by a package's engine; servers score no text through their chat completions."""
        return not isinstance(ENGINES.find(self.config.engine, "engine"), Managed)

    @property
    def tokenizer(self) -> str | None:
        """Beside the weights; a GGUF file that is served as it is is not taken apart for it."""
        return None if self._as_it_is else model_path(self.config.model)

    def identity(self, prefix: str) -> Depends:
        """Settings, and the contents of the weights where they are here."""
        parts = {f"{prefix}.model": self.config.model, f"{prefix}.adapter": self.config.adapter}
        found = settings_of(prefix, self.config, leave_out=("model", "adapter"))
        return found | Depends({key: None if name is None else _weights(name) for key, name in parts.items()})

    def check(self, where: str) -> None:
        """Its folder or file must be there and fit for use, and its engine."""
        check_model(self.config.model)
        engine = ENGINES.find(self.config.engine, f"{where}.engine")
        if isinstance(engine, Managed):
            engine.check(where, self.config.model_copy(update={"model": model_source(self.config.model)}))

    def notes(self) -> list[str]:
        """What there is to say of it before it is opened: that it stands in for a hub name, that it has no chat template."""
        return check_model(self.config.model)

    def window(self, answer_tokens: int) -> Window | None:
        """From its config.json. Where that is not here the model says so itself when a prompt is too long."""
        try:
            tokens = self._positions()
            return room_in(self.config.model, tokens, self.tokenizer, answer_tokens)
        except ModelNotFoundError:  # it was trained as a whole, and the run was moved to another machine
            return None

    def base(self) -> ModelRef:
        """The weights that the recipe names."""
        return ModelRef(base=model_path(self.config.model), adapter=self.config.adapter)

    def open(self, ref: ModelRef | None = None, budget: Budget | None = None) -> ChatModel:
        """Through the engine that the recipe names. Raises MissingExtraError or ModelNotFoundError."""
        c, engine = self.config, ENGINES.find(self.config.engine, "engine")
        if isinstance(engine, Managed) and engine.program.as_it_is and ref is None:
            found = ModelRef(base=model_source(c.model), adapter=c.adapter)
            return engine.serve(c, found, self.servers, self.label, self._positions())
        found = ref or self.base()
        placed = found.model_copy(update={"base": model_path(found.base)})
        if isinstance(engine, Managed):
            return engine.serve(c, placed, self.servers, self.label, self._positions())
        return engine.open(placed, device=c.device, dtype=c.dtype, batch_size=c.batch_size)

    def open_batch(self, ledger: Ledger) -> ChatModel:
        """There is no such API."""
        raise no_batch(self.name)

    @property
    def _as_it_is(self) -> bool:
        engine = ENGINES.find(self.config.engine, "engine")
        return isinstance(engine, Managed) and engine.program.as_it_is

    def _positions(self) -> int | None:
        """Its window in tokens, as it is served; None where nothing tells."""
        engine = ENGINES.find(self.config.engine, "engine")
        own = None if self._as_it_is else _positions(model_path(self.config.model))
        return window_of(self.config.engine_options, own) if isinstance(engine, Managed) else own


def _weights(name: str) -> JsonValue:
    try:
        place = model_source(name)
    except ModelNotFoundError:
        return UNKNOWN  # a finished run is read where its models are not
    shown = f"{Path(place).name} for {Path(name).name}" if standing_in(name) else Path(name).name
    return content(hash_model(place), shown)


def _positions(folder: str) -> int | None:
    file = Path(folder) / "config.json"
    if not file.exists():
        return None
    described = json.loads(file.read_text(encoding="utf-8"))
    inner = described.get("text_config", described)
    found = inner.get("max_position_embeddings")
    return found if isinstance(found, int) else None
