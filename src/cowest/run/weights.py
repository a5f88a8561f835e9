"""Weights that a run has made, named such that the run can be copied, moved and renamed, and known by their contents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cowest.errors import DataError
from cowest.run.identity import hash_model
from cowest.run.store import RunDir
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
    places = {name: _place(run, name, given or {}) for name in (weights.base, weights.adapter) if name is not None}
    for name, wanted in (weights.hashes or {}).items():
        if hash_model(places[name]) != wanted:
            what = "is not there" if not Path(places[name]).exists() else "is not what it was when this run used it"
            raise DataError(f"{run.path}: the model {name!r} {what}; `cowest run` with its recipe makes it again")
    return ModelRef(base=places[weights.base], adapter=weights.adapter and places[weights.adapter])


def _place(run: RunDir, name: str, given: Mapping[str, str]) -> str:
    if name in given:
        return given[name]
    inside = _inside(run, name)
    return name if inside is None else str(inside)


def _inside(run: RunDir, name: str) -> Path | None:
    """The folder of this run that a name means: ``sft/model``, or (older runs) the same behind another run's path."""
    parts = Path(name).parts
    for start in range(len(parts)):
        if parts[start] in ("sft", "align") or parts[start].startswith("round-"):
            found = run.path.joinpath(*parts[start:])
            if found.is_dir():
                return found
    return None
