"""What a run can do without: checkpoints that were not chosen, a training's resumable states, leftovers of a crash.

The manifest names every file that a later stage, a report, a server or a merge may read. What it names stays, and so the run
stays done. Of a stage that is not done nothing is taken but what was set aside as damaged.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from cowest.errors import ConfigError, StageError
from cowest.run.live import working
from cowest.run.manifest import Manifest
from cowest.run.store import RunDir
from cowest.runs.found import manifests_in, runs_in
from cowest.types import Record


class Removable(Record):
    """A file or folder that can go. ``bytes``: what the disk gets back, none of it for a file that has other names."""

    path: str
    why: str
    bytes: int


def removable(run: Path) -> list[Removable]:
    """What can go of a run or a table. Raises ConfigError where ``run`` is neither, StageError where a process works in it."""
    if runs_in(run) != [run]:
        raise ConfigError(
            f"{run} is no run directory: it has no recipe.yaml with what it made beside it; `cowest runs` lists them"
        )
    found: dict[Path, str] = {}
    for file in manifests_in(run):
        if working(file.parent) or working(run):
            raise StageError(f"{run}: a process works in it; wait for it, or stop it")
        manifest = Manifest.model_validate_json(file.read_bytes())
        found |= {
            path: why for path, why in _of_task(file.parent, manifest) if not any(p in found for p in path.parents)
        }
    going = _inodes(found)
    return [Removable(path=str(path), why=why, bytes=_freed(path, going)) for path, why in sorted(found.items())]


def remove(run: Path, parts: Sequence[Removable]) -> int:
    """Delete what :func:`removable` found; the bytes that came free. Raises as that does, also where a run has begun since."""
    still, freed = {part.path: part for part in removable(run)}, 0
    with ExitStack() as locks:
        for file in manifests_in(run):
            locks.enter_context(RunDir(file.parent).locked(wait_s=0.0))
        for part in parts:
            if part.path in still:
                path = Path(part.path)
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                freed += part.bytes
    return freed


def _of_task(folder: Path, manifest: Manifest) -> Iterator[tuple[Path, str]]:
    needed = {
        folder / name for entry in manifest.stages.values() for note in entry.outputs.values() for name in note.files
    }
    open_ = {_stage_folder(folder, name) for name, entry in manifest.stages.items() if entry.status != "done"}
    for path in sorted(folder.rglob("*")):
        if path.name.endswith(".damaged"):
            yield path, "set aside as damaged, and made again since"
        elif any(top in (path, *path.parents) for top in open_) or path.is_symlink():
            continue
        elif path.name.endswith(".part"):
            yield path, "left by a crash in the middle of a file"
        elif path.is_dir() and path.name.startswith("checkpoint-") and not _holds(path, needed):
            yield path, "state of a training that is done"
        elif path.is_dir() and path.name.startswith("step-") and not _holds(path, needed) and _decided(path.parent):
            yield path, "checkpoint that was not chosen"


def _stage_folder(folder: Path, stage: str) -> Path:
    """Where a stage of this name trains: ``align (round 2)`` in round-2/align, ``sft`` in sft; rows and the like train nothing."""
    of_round = re.fullmatch(r"(.+) \(round (\d+)\)", stage)
    return folder / f"round-{of_round[2]}" / of_round[1] if of_round else folder / stage


def _holds(folder: Path, needed: set[Path]) -> bool:
    return any(folder in path.parents for path in needed)


def _decided(align: Path) -> bool:
    return (align / "selection.json").is_file()


def _files(path: Path) -> Iterator[os.stat_result]:
    for one in path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]:
        if one.is_file() and not one.is_symlink():
            yield one.stat()


def _inodes(found: Mapping[Path, str]) -> dict[tuple[int, int], int]:
    """How many names of each file go."""
    count: dict[tuple[int, int], int] = {}
    for path in found:
        for stat in _files(path):
            count[stat.st_dev, stat.st_ino] = count.get((stat.st_dev, stat.st_ino), 0) + 1
    return count


def _freed(path: Path, going: Mapping[tuple[int, int], int]) -> int:
    freed = 0
    for stat in _files(path):
        names = going[stat.st_dev, stat.st_ino]
        if names >= stat.st_nlink:  # the last name goes; each of them is told its share
            freed += stat.st_size // names
    return freed
