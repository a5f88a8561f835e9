"""What a stage works with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cowest.assembly.opened import OpenModels
from cowest.protocols import Frames, Reporter, Task
from cowest.recipe.config import RunConfig
from cowest.run.store import RunDir


@dataclass(frozen=True, slots=True)
class Context:
    """What a stage works with: one task of a recipe. ``models`` are opened on first use and shared by all tasks."""

    label: str
    config: RunConfig
    task: Task
    frames: Frames
    run: RunDir
    reporter: Reporter
    models: OpenModels

    def path(self, name: str) -> Path:
        """A file or folder of the run."""
        return self.run.path / name
