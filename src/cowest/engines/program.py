"""What a managed server is to serve, and what is to be known of a kind of server."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Protocol

from pydantic import JsonValue

from cowest.errors import ConfigError, MissingExtraError
from cowest.recipe.models import EngineOptions, LocalModelConfig
from cowest.types import ModelRef

MOST_WINDOW: Final = 8192
"""The window of a server whose recipe names none: most models have more, and their key-value cache would not fit."""
_PROBE: Final = """
import importlib.metadata as m, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a server is to serve, and how. ``base``: a folder, a hub name or a GGUF file; ``window`` in tokens (None: its own)."""

    base: str
    adapter: str | None
    python: str
    device: str
    dtype: str
    at_once: int
    window: int | None
    options: EngineOptions

    @property
    def ref(self) -> ModelRef:
        """Its weights."""
        return ModelRef(base=self.base, adapter=self.adapter)


@dataclass(frozen=True, slots=True)
class Command:
    """How a server is started; ``names`` what it answers to at first."""

    arguments: Sequence[str]
    environment: Mapping[str, str]


class Program(Protocol):
    """A kind of server: an OpenAI-compatible one that is started by a command."""

    @property
    def name(self) -> str:
        """As a recipe calls it (``engine``)."""
        ...

    @property
    def package(self) -> str:
        """The Python package that has to be there."""
        ...

    @property
    def hot(self) -> bool:
        """Whether adapters are loaded while it runs (``/v1/load_lora_adapter``); else it is started with its one."""
        ...

    @property
    def as_it_is(self) -> bool:
        """Whether a GGUF file is served as it is, rather than the weights that were made of it."""
        ...

    def check(self, where: str, config: LocalModelConfig) -> None:
        """Raises ConfigError or MissingExtraError, before anything runs, for what it cannot serve or what is not installed."""
        ...

    def base(self, config: LocalModelConfig, ref: ModelRef) -> str:
        """What of these weights it loads. Raises ConfigError for weights that it cannot."""
        ...

    def command(self, wanted: Wanted, port: int, key: str, served: str) -> Command:
        """Serve on loopback at this port, to those who have the key, under the name ``served``."""
        ...

    def memory(self, wanted: Wanted) -> dict[str, float]:
        """What it will take of this machine's memory, in GiB by what for; nothing where that is not known, or is a GPU's."""
        ...

    def can_also(self, running: Wanted, wanted: Wanted) -> bool:
        """Whether a server that was started for ``running`` can serve ``wanted``, too."""
        ...

    def extra(self, wanted: Wanted) -> dict[str, JsonValue]:
        """More fields of each request, so that a model is asked as it was trained."""
        ...


def python_of(config: LocalModelConfig) -> str:
    """The Python that runs the server."""
    return sys.executable if config.engine_python is None else str(config.engine_python.expanduser())


def installed(where: str, config: LocalModelConfig, packages: Sequence[str], install: str) -> dict[str, str]:
    """The versions of those of the packages that the engine's Python has.

    Raises ConfigError where that is no Python, MissingExtraError with the command ``install`` where it has none of them.
    """
    python = python_of(config)
    program = shutil.which(python)
    if program is None:
        raise ConfigError(
            f"{where}.engine_python: {python}: there is no such program; name the Python that has {packages[0]}"
        )
    found = _versions(program, tuple(packages))
    if found is None:
        raise ConfigError(
            f"{where}.engine_python: {python}: this is no Python that works; name the one that has {packages[0]}"
        )
    if not found:
        own = f"python3 -m venv ~/{packages[0]} && ~/{packages[0]}/bin/pip install {install}"
        raise MissingExtraError(
            f"{where}.engine: {packages[0]} is not installed in {python}: {own}, then {where}.engine_python: "
            f"~/{packages[0]}/bin/python"
        )
    return found


@lru_cache(maxsize=16)
def _versions(program: str, packages: tuple[str, ...]) -> dict[str, str] | None:
    try:
        done = subprocess.run([program, "-c", _PROBE, *packages], capture_output=True, timeout=60, check=True)
        found: dict[str, str] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return found


def weights_gib(base: str) -> float:
    """What a folder's weights, or a GGUF file, take on disk, and about that in memory; 0 where it is not here."""
    path = Path(base)
    files = [path] if path.is_file() else path.glob("*.safetensors") if path.is_dir() else []
    return sum(file.stat().st_size for file in files) / 2**30


def free_gib() -> float | None:
    """Memory that can be had at this moment; None where the system does not tell."""
    try:
        told = Path("/proc/meminfo").read_text(encoding="ascii")
        return int(told.split("MemAvailable:")[1].split()[0]) / 2**20
    except (OSError, IndexError, ValueError):
        return None
