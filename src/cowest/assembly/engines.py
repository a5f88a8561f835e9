"""Engines: where a local model's weights answer. ``process`` is this one; packages add others (entry points ``cowest.engines``)."""

from __future__ import annotations

from cowest.errors import MissingExtraError
from cowest.protocols import ChatModel, Engine
from cowest.recipe.registry import Registry
from cowest.types import ModelRef


class InProcess:
    """In this process, through transformers: no server, and weights are never copied."""

    def open(self, ref: ModelRef, *, device: str, dtype: str, batch_size: int) -> ChatModel:
        """Raises MissingExtraError or ModelNotFoundError."""
        try:
            from cowest.models.local import LocalChatModel
        except ImportError as error:
            raise MissingExtraError(f"a local model needs {error.name}: pip install 'cowest[local]'") from None
        return LocalChatModel(ref, device=device, dtype=dtype, batch_size=batch_size)


ENGINES: Registry[Engine] = Registry("engine", "cowest.engines", {"process": InProcess()}, ("open",))
