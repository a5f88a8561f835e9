"""Runs of versions of cowest whose manifest had fingerprints in place of names: what is finished in them stays finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cowest.assembly.context import Context
from cowest.assembly.prepare import prepare
from cowest.errors import CowestError, DataError
from cowest.recipe.kept import kept_recipe
from cowest.run.freshness import inputs_of, note_outputs
from cowest.run.identity import fingerprint
from cowest.run.manifest import StageEntry
from cowest.run.progress import QuietReporter
from cowest.run.store import write_atomic
from cowest.run.weights import Weights
from cowest.stages.base import Stage
from cowest.stages.choosing import Selection


def upgrade(context: Context, stages: Sequence[Stage], out: Path) -> None:
    """Note in the manifest what stages were made with, by the recipe that is kept in ``out``; the run's lock is held.

    The kept recipe has to be the one that they were made with: of a run with several domains all are upgraded before another
    recipe is kept. What was begun and is not finished goes on where it was.
    """
    entries = context.run.manifest().stages
    if not any(entry.fingerprint is not None for entry in entries.values()):
        return
    then = _as_it_was(context, out)
    if then is None:
        return  # the stages are made again, and say why
    for stage in stages:
        entry, inputs = entries.get(stage.name), inputs_of(context.run, stage)
        if entry is None or None in inputs.values() or not follows(entry, entries):
            return
        known = {name: identity for name, identity in inputs.items() if identity is not None}
        update = {"version": stage.version, "made_with": dict(stage.depends(then).values), "inputs": known}
        if entry.fingerprint is not None and entry.status == "running":
            context.run.record(stage.name, entry.model_copy(update=update | {"fingerprint": None}))
        if entry.status == "running" or any(not context.path(file).exists() for file in stage.writes):
            return
        if entry.fingerprint is not None:
            try:
                _upgrade_done(then, stage, entry.model_copy(update=update))
            except DataError:
                return  # its weights are gone


def follows(entry: StageEntry, entries: Mapping[str, StageEntry]) -> bool:
    """Whether what a stage of an older run read was made by the stages before it as they are now."""
    if entry.fingerprint is None:
        return True
    made = {
        f for e in entries.values() if e.fingerprint for f in (e.fingerprint, fingerprint(e.fingerprint, _failed(e)))
    }
    return made.issuperset(entry.inputs.values())


def _failed(entry: StageEntry) -> int:
    """Schema 1 had the number among the counts, under names of this form."""
    return sum(n for key, n in entry.counts.items() if key.endswith("failed"))


def _upgrade_done(then: Context, stage: Stage, entry: StageEntry) -> None:
    for name in stage.writes:
        _name_weights(then, then.path(name))
    update = {"outputs": note_outputs(then.run, stage), "failed": _failed(entry), "fingerprint": None}
    then.run.record(stage.name, entry.model_copy(update=update))


def _as_it_was(context: Context, out: Path) -> Context | None:
    """The run with the recipe that is kept in it: its models and data, and not those of a recipe that continues it."""
    try:
        contexts = prepare(kept_recipe(out), out, QuietReporter(), offline=True)
    except CowestError:
        return None
    return next((c for c in contexts if c.run.path == context.run.path), None)


def _name_weights(then: Context, folder: Path) -> None:
    """Name a training's weights such that the run can be moved, with their hashes."""
    file = folder / "model_ref.json"
    if file.is_file():
        weights = Weights.model_validate_json(file.read_bytes())
        write_atomic(file, _named(then, weights).model_dump_json(indent=2) + "\n")
    file = folder / "selection.json"
    if file.is_file():
        found = Selection.model_validate_json(file.read_bytes())
        scores = [c.model_copy(update={"model": _named(then, c.model)}) for c in found.checkpoints]
        write_atomic(file, found.model_copy(update={"checkpoints": scores}).model_dump_json(indent=2) + "\n")


def _named(then: Context, weights: Weights) -> Weights:
    """Raises DataError where the weights are gone."""
    return then.named(then.located(weights)) if weights.hashes is None else weights
