"""Names in a recipe that stand for code: what ships with cowest, and what installed packages add by an entry point.

In a package's ``pyproject.toml``, for a signal (each registry has a group of its own)::

    [project.entry-points."cowest.signals"]
    outcome = "my_package:OUTCOME"

What is named is the thing itself, or a class that is made without arguments. A name that cowest has itself cannot be taken; a
name that two packages claim is an error when it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from cowest.errors import ConfigError, CowestError
from cowest.recipe.problems import did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Things of one kind by name. ``what`` is the kind in words, ``group`` its entry points'; ``parts`` is what each must have."""

    def __init__(self, what: str, group: str, own: Mapping[str, T], parts: tuple[str, ...] = ()) -> None:
        self._what, self._group, self._own, self._parts = what, group, own, parts

    def names(self) -> list[str]:
        """All that there are, cowest's own first; nothing is loaded."""
        return list(dict.fromkeys([*self._own, *sorted(point.name for point in entry_points(group=self._group))]))

    def find(self, name: str, where: str) -> T:
        """The thing of this name. Raises ConfigError, which names the setting (``where``), for one that cannot be had."""
        if name in self._own:
            return self._own[name]
        points = {point.value: point for point in entry_points(group=self._group, name=name)}
        if not points:
            names = self.names()
            hint = did_you_mean(name, names) or (f"there are: {', '.join(names)}" if names else "none is installed")
            raise ConfigError(f"{where}: there is no {self._what} {name!r}; {hint}")
        if len(points) > 1:
            who = ", ".join(sorted(points))
            raise ConfigError(f"{where}: several packages have a {self._what} {name!r} ({who}); uninstall all but one")
        return self._loaded(next(iter(points.values())), where)

    def _loaded(self, point: EntryPoint, where: str) -> T:
        try:
            found = point.load()
            if isinstance(found, type):
                found = found()
        except CowestError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"[:300]
            raise ConfigError(f"{where}: the {self._what} {point.name!r} ({point.value}) failed: {reason}") from error
        missing = [part for part in self._parts if not hasattr(found, part)]
        if missing:
            raise ConfigError(f"{where}: {point.value} is no {self._what}: it has no {', '.join(missing)}")
        made: T = found
        return made
