"""Engines: where a local model's weights answer.

``process`` is this one, ``vllm`` and ``llamacpp`` are servers that cowest starts (:mod:`cowest.engines`); packages add others
(entry points ``cowest.engines``).
"""

from __future__ import annotations

from cowest.engines.managed import PROGRAMS, Managed
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


_MANAGED: dict[str, Engine] = {name: Managed(program) for name, program in PROGRAMS.items()}

ENGINES: Registry[Engine] = Registry("engine", "cowest.engines", {"process": InProcess(), **_MANAGED}, ("open",))
