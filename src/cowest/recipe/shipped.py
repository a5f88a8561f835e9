"""Where the recipes that ship with cowest are: inside the installed package, or at the root of a checkout."""

from __future__ import annotations

from pathlib import Path

from cowest.errors import ConfigError

_PLACES = (Path(__file__).parents[1] / "recipes", Path(__file__).parents[3] / "recipes")


def packaged_recipe(name: str) -> Path:
    """The path of ``NAME.yaml``. Raises ConfigError when it is nowhere."""
    for place in _PLACES:
        if (place / f"{name}.yaml").exists():
            return place / f"{name}.yaml"
    raise ConfigError(f"the recipe {name!r} was not installed with cowest")
