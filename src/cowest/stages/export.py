"""A run's weak model as one ordinary checkpoint."""

from __future__ import annotations

from pathlib import Path

from cowest.assembly.context import Context
from cowest.errors import ConfigError
from cowest.stages.learn import sft_model
from cowest.stages.loop import selection
from cowest.systems.registry import COLLAB_ALIGNED, possible
from cowest.types import ModelRef

FILES = {"sft": "sft/model_ref.json", "aligned": "align/selection.json"}
"""What may be exported, and the file that names its weights."""


def merged(context: Context, which: str, target: Path) -> ModelRef:
    """Merge the SFT (``sft``) or chosen aligned (``aligned``) weak model of a task's run into one checkpoint.

    Raises ConfigError where the run has none, DataError where its weights are not those that were trained.
    """
    from cowest.training.merge import merge

    run, file = context.run.path, context.path(FILES[which])
    if not context.weak.trainable:
        raise ConfigError(f"{run}: its weak model is served elsewhere, so that there are no weights of it to export")
    why = possible(context.config, (COLLAB_ALIGNED,))[1].get(COLLAB_ALIGNED.name) if which == "aligned" else None
    if why is None and not file.exists():
        raise ConfigError(f"{file} is not there: the run has no such model (yet); `cowest run` continues it")
    if why is None and which == "aligned":
        why = selection(context).skipped
    if why is not None:
        raise ConfigError(f"{run}: it has no aligned weak model: {why}. `--which sft` exports the one before alignment")
    return merge(sft_model(context) if which == "sft" else context.located(selection(context).model), target)
