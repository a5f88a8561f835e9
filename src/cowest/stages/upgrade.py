"""Runs of versions of cowest whose manifest had fingerprints in place of names: what is finished in them stays finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cowest.assembly.build import build_frames
from cowest.assembly.context import Context
from cowest.errors import ConfigError
from cowest.recipe.kept import kept_recipe
from cowest.run.freshness import inputs_of, note_outputs
from cowest.stages.base import Stage


def upgrade(context: Context, stages: Sequence[Stage], out: Path) -> None:
    """Note in the manifest what finished stages were made with, by the recipe that is kept in ``out``; the run's lock is held."""
    entries = context.run.manifest().stages
    if not any(entry.fingerprint is not None for entry in entries.values()):
        return
    try:
        kept = kept_recipe(out).by_task()
    except ConfigError:
        return  # the stages are made again, and say why
    name = context.run.path.name if context.run.path != out else ""
    if name not in kept:
        return
    then = replace(context, config=kept[name], frames=build_frames(kept[name], context.task))
    for stage in stages:
        entry, inputs = entries.get(stage.name), inputs_of(context.run, stage)
        if entry is None or entry.status != "done" or None in inputs.values():
            return
        if any(not context.path(file).exists() for file in stage.writes):
            return
        update = {
            "version": stage.version,
            "made_with": dict(stage.depends(then).values),
            "inputs": {name: identity for name, identity in inputs.items() if identity is not None},
            "outputs": note_outputs(context.run, stage),
            # Schema 1 had the number among the counts, under names of this form.
            "failed": sum(n for key, n in entry.counts.items() if key.endswith("failed")),
            "fingerprint": None,
        }
        context.run.record(stage.name, entry.model_copy(update=update))
