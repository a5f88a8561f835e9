"""Whether what a run directory holds is what its recipe says: asked by all that read a run without continuing it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cowest.assembly.context import Context
from cowest.errors import StageError
from cowest.run.freshness import review
from cowest.stages.base import Stage


def require_current(context: Context, stages: Sequence[Stage], names: Collection[str] | None = None) -> None:
    """Raise StageError for a finished stage (of ``names``) that was made with something else than the recipe says, or is damaged.

    To read it would put one model's numbers under another's name. Stages that are not there, and runs of versions of cowest
    that did not keep what a stage was made with, are passed over.
    """
    entries = context.run.manifest().stages
    if any(entry.fingerprint is not None for entry in entries.values()):
        return
    for name, verdict in review(context.run, stages, lambda stage: stage.depends(context)).items():
        if verdict.todo in ("again", "mend") and (names is None or name in names):
            raise StageError(
                f"{context.run.path}: stage {name} is not what recipe.yaml says: {verdict.why}. `cowest run` brings it up to date."
            )
