"""Whether what a run directory holds is what its recipe says: asked by all that read a run without continuing it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cowest.assembly.context import Context
from cowest.errors import StageError
from cowest.run.freshness import inputs_of, judge
from cowest.stages.base import Stage
from cowest.stages.upgrade import follows


def require_current(
    context: Context, stages: Sequence[Stage], names: Collection[str] | None = None, mends: str = "cowest run"
) -> None:
    """Raise StageError for a finished stage (of ``names``) that is not what the recipe says.

    It was made with something else, is damaged, or what it was made from is being made anew. To read it would put one model's
    numbers under another's name. Stages that are not there are passed over. Of runs of versions of cowest that did not keep what a
    stage was made with, only the last of these can be told. ``mends`` is the command that brings it up to date.
    """
    entries = context.run.manifest().stages
    older = any(entry.fingerprint is not None for entry in entries.values())
    unsettled: dict[str, str] = {}  # what is still to be made, or made anew, and by which stage
    for stage in stages:
        entry = entries.get(stage.name)
        first = next((unsettled[name] for name in stage.reads if name in unsettled), None)
        if first is not None:
            why, anew = f"stage {first}, which it follows from, is to be run first", True
        elif entry is None or entry.status == "running":
            why, anew = "", True
        elif older:
            anew = not follows(entry, entries)
            why = "what it was made from was made anew" if anew else ""
        else:
            verdict = judge(context.run, stage, stage.depends(context), inputs_of(context.run, stage))
            anew = verdict.todo == "again"
            why = verdict.why if anew or verdict.todo == "mend" else ""
        if why and entry is not None and entry.status == "done" and (names is None or stage.name in names):
            raise StageError(
                f"{context.run.path}: stage {stage.name} is not what recipe.yaml says: {why}. `{mends}` brings it up to date."
            )
        if anew:
            unsettled |= dict.fromkeys(stage.writes, first or stage.name)
