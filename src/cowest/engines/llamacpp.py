"""llama.cpp's server, as the package xllamacpp has it: GGUF files, on the least of machines.

A GGUF file is served as it is, quantised: a strong model, then, or a judge. What is trained here are safetensors, which llama.cpp
does not read.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from cowest.engines.program import MOST_WINDOW, Command, Wanted, installed, weights_gib
from cowest.errors import ConfigError
from cowest.models.gguf import is_gguf
from cowest.recipe.models import LocalModelConfig
from cowest.types import ModelRef

SERVER: Final = Path(__file__).with_name("llamacpp_server.py")
MOST_SLOTS: Final = 8
"""Requests at once: each slot has a window of key-value cache of its own."""


class LlamaCpp:
    """See :class:`cowest.engines.program.Program`."""

    name = "llamacpp"
    package = "xllamacpp"
    hot = False
    as_it_is = True

    def check(self, where: str, config: LocalModelConfig) -> None:
        """The model must be a GGUF file that is not trained here, and the package be there."""
        if not is_gguf(Path(config.model)):
            raise ConfigError(
                f"{where}.model: {config.model}: engine: llamacpp serves GGUF files (NAME.gguf) and nothing else; use engine: "
                "vllm or process for a folder or a hub name"
            )
        if where == "weak" or config.adapter is not None:
            what = "the weak model is trained" if where == "weak" else "an adapter is named"
            raise ConfigError(
                f"{where}.engine: llamacpp serves a GGUF file as it is, and {what}: what is trained here are safetensors, which "
                "llama.cpp does not read; use engine: vllm or process"
            )
        installed(where, config, ("xllamacpp",), "xllamacpp")

    def base(self, config: LocalModelConfig, ref: ModelRef) -> str:
        """The GGUF file."""
        if not is_gguf(Path(ref.base)) or ref.adapter is not None:
            raise ConfigError(
                f"{config.model}: engine: llamacpp serves GGUF files as they are, and no weights that were trained here"
            )
        return str(Path(ref.base).resolve())

    def command(self, wanted: Wanted, port: int, key: str, served: str) -> Command:
        """A small script that starts xllamacpp's server."""
        slots = min(wanted.at_once, MOST_SLOTS)
        settings: dict[str, JsonValue] = {
            "model": wanted.base,
            "alias": served,
            "port": port,
            "slots": slots,
            "context": slots * (wanted.window or MOST_WINDOW),
            "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "gpu_layers": 0 if wanted.device == "cpu" else -1,
        }
        return Command([wanted.python, str(SERVER), json.dumps(settings)], {"COWEST_ENGINE_KEY": key})

    def memory(self, wanted: Wanted) -> dict[str, float]:
        """The file, on a processor; its windows are not known from outside, and are small."""
        return {"weights": weights_gib(wanted.base), "the program": 0.5} if wanted.device == "cpu" else {}

    def can_also(self, running: Wanted, wanted: Wanted) -> bool:
        """It serves what it was started for."""
        return running == wanted

    def extra(self, wanted: Wanted) -> dict[str, JsonValue]:
        """The file has its template."""
        return {}
