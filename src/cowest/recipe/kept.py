"""``recipe.yaml``: the recipe that a run directory was last started with."""

from __future__ import annotations

from pathlib import Path

import yaml

from cowest.errors import ConfigError
from cowest.recipe.config import RunConfig, load_config
from cowest.run.store import write_atomic


def keep_recipe(config: RunConfig, out: Path) -> None:
    """Write the whole recipe into a run directory, whose lock is held."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "recipe.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def kept_recipe(out: Path) -> RunConfig:
    """The recipe of a run directory. Raises ConfigError where there is none."""
    recipe = out / "recipe.yaml"
    if not recipe.exists():
        raise ConfigError(
            f"{out} is no run directory: it has no recipe.yaml. `cowest run RECIPE --out {out}` makes one."
        )
    return load_config(recipe)


def kept_task(path: Path, task: str | None = None) -> tuple[RunConfig, Path, str]:
    """One task of a run: the whole recipe, the run directory and the task's name ('' is the only task of a recipe).

    ``path`` is the run's directory, or the folder of one of its tasks. Raises ConfigError where it is neither, or leaves open
    which task is meant.
    """
    here, above = path.absolute(), path.absolute().parent
    if not (here / "recipe.yaml").exists() and here.is_dir() and (above / "recipe.yaml").exists():
        path, task = above, task or here.name
    config = kept_recipe(path)
    names = list(config.by_task())
    name = task if task is not None else names[0]
    if name not in names or (task is None and len(names) > 1):
        raise ConfigError(f"{path}: which of its domains? Say --task with one of {', '.join(names)}")
    return config, path, name
