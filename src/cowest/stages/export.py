"""A run's weak model as one ordinary checkpoint."""

from __future__ import annotations

from pathlib import Path

from cowest.assembly.prepare import prepare
from cowest.errors import ConfigError
from cowest.recipe.kept import kept_task
from cowest.run.progress import QuietReporter
from cowest.stages.learn import selection, sft_model
from cowest.types import ModelRef


def export_weak(run: Path, which: str, target: Path, task: str | None = None) -> ModelRef:
    """Merge the SFT (``sft``) or chosen aligned (``aligned``) weak model of a task's run into one checkpoint.

    Raises ConfigError where it is not there, DataError where its weights are not those that were trained.
    """
    from cowest.training.merge import merge

    file = {"sft": "sft/model_ref.json", "aligned": "align/selection.json"}.get(which)
    if file is None:
        raise ConfigError(f"--which {which!r}: say 'aligned' or 'sft'")
    config, out, name = kept_task(run, task)
    context = next(c for c in prepare(config, out, QuietReporter(), offline=True) if c.name == name)
    if not context.path(file).exists():
        raise ConfigError(
            f"{context.path(file)} is not there: the run has no such model (yet); `cowest run` continues it"
        )
    ref = sft_model(context) if which == "sft" else context.located(selection(context).model)
    return merge(ref, target)
