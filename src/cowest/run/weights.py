"""Weights that a run has made, named such that the run can be copied, moved and renamed, and known by their contents."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from cowest.errors import DataError
from cowest.run.identity import hash_model
from cowest.run.store import RunDir, write_atomic
from cowest.types import ModelRef, Record


class Weights(Record):
    """A model as a run's files name it: a base and, where one was trained, a PEFT adapter.

    ``base`` and ``adapter`` are folders of the run, written relative to it, or what the recipe calls a model elsewhere.
    ``hashes`` are of their contents; older runs have none, and paths from where the command was started.
    """

    base: str
    adapter: str | None = None
    hashes: dict[str, str] | None = None


def named(run: RunDir, ref: ModelRef, given: Mapping[str, str] | None = None) -> Weights:
    """How the run's files name a model; ``given``: the recipe's names of models elsewhere, by their folders."""

    def name(path: str) -> str:
        inside = Path(path).absolute().is_relative_to(run.path.absolute())
        return (
            Path(path).absolute().relative_to(run.path.absolute()).as_posix()
            if inside
            else (given or {}).get(path, path)
        )

    parts = [path for path in (ref.base, ref.adapter) if path is not None]
    return Weights(
        base=name(ref.base),
        adapter=ref.adapter and name(ref.adapter),
        hashes={name(path): hash_model(path) for path in parts},
    )


def located(run: RunDir, weights: Weights, given: Mapping[str, str] | None = None) -> ModelRef:
    """The model that ``weights`` name, in this run; ``given``: the folders of models elsewhere, by the recipe's names.

    Raises DataError where it is gone, or is not what the run has trained.
    """
    names = [name for name in (weights.base, weights.adapter) if name is not None]
    places = {name: _place(run, name, weights.hashes is None, given or {}) for name in names}
    for name, place in places.items():
        wanted = (weights.hashes or {}).get(name)
        if place is None or (wanted is not None and hash_model(place) != wanted):
            there = place is not None and Path(place).exists()
            what = "is not what it was when this run used it" if there else "is not there"
            raise DataError(f"{run.path}: the model {name!r} {what}; `cowest run` with its recipe makes it again")
    base, adapter = places[weights.base], weights.adapter and places[weights.adapter]
    assert base is not None
    return ModelRef(base=base, adapter=adapter)


def _place(run: RunDir, name: str, older: bool, given: Mapping[str, str]) -> str | None:
    """Where a named model is; None where it was made by this run and is gone.

    An ``older`` run's name of its own weights leads through the folder where it was made, which may be another run by now: what
    counts is its end, and it is looked for here only.
    """
    if older and name in given:
        return given[name]
    parts = Path(name).parts
    ends = [parts[i:] for i, part in enumerate(parts) if _OWN.fullmatch(part) and (older or i == 0)]
    for end in ends:
        if (found := run.path.joinpath(*end)).is_dir():
            return str(found)
    if name in given or ends:
        return given.get(name)
    # The recipe's weak model is the only one elsewhere; it may have moved, and what it is its hash will tell.
    return name if Path(name).exists() else next(iter(given.values()), name)


_OWN = re.compile(r"sft|align|round-\d+")
"""The folders of a run that have weights."""


def make_movable(run: RunDir, ref: ModelRef) -> None:
    """Let an adapter that was just trained name a base of its own run by the way from here to there.

    PEFT writes the base's full path, and an empty form that has it as well; after a move both would name another place.
    """
    if ref.adapter is None or not Path(ref.base).absolute().is_relative_to(run.path.absolute()):
        return
    file = Path(ref.adapter) / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    way = Path(os.path.relpath(ref.base, ref.adapter)).as_posix()
    write_atomic(file, json.dumps({**settings, "base_model_name_or_path": way}, indent=2, sort_keys=True) + "\n")
    (file.parent / "README.md").unlink(missing_ok=True)
