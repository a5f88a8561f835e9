"""Tasks of other packages: an entry point in the group ``cowest.tasks`` that names a loader.

In the package's ``pyproject.toml``, and in its module::

    [project.entry-points."cowest.tasks"]
    capitals = "cowest_capitals:load"

    def load(options: Mapping[str, JsonValue], folder: Path, seed: int) -> Task: ...

``options`` come from the recipe as they are; relative paths in them start at ``folder``; whatever is random follows ``seed``.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Final

from cowest.errors import ConfigError, CowestError
from cowest.protocols import Task
from cowest.recipe.config import PluginTaskConfig
from cowest.scoring.metrics import get_metric
from cowest.tasks.jsonl_rows import listed, suggestion

GROUP: Final = "cowest.tasks"
_PARTS: Final = ("name", "metrics", "labels", "instruction", "examples", "target", "extract")


def plugin_tasks() -> dict[str, list[EntryPoint]]:
    """The installed plug-ins by name; a name with more than one is claimed by several packages."""
    found: dict[str, list[EntryPoint]] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        found.setdefault(point.name, []).append(point)
    return found


def load_plugin_task(config: PluginTaskConfig, seed: int) -> Task:
    """The plug-in's task. Raises ConfigError when there is none of that name, or what it gives is no task."""
    point = _entry_point(config.name)
    try:
        task = point.load()(config.options, config.folder, seed)
    except CowestError:
        raise  # the plug-in says itself what is wrong with its data or options
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:300]
        raise ConfigError(f"task plug-in {config.name!r} ({point.value}) failed: {reason}") from error
    missing = [part for part in _PARTS if not hasattr(task, part)]
    if missing:
        raise ConfigError(f"task plug-in {config.name!r} ({point.value}) gave no Task: it has no {listed(missing)}")
    loaded: Task = task
    for metric in loaded.metrics:
        get_metric(metric, f"task plug-in {config.name!r}: metrics")
    return loaded


def _entry_point(name: str) -> EntryPoint:
    plugins = plugin_tasks()
    points = plugins.get(name, [])
    if not points:
        have = f"installed are {listed(list(plugins))}" if plugins else "none is installed"
        hint = suggestion(name, plugins)
        raise ConfigError(f"task.name: there is no task plug-in {name!r}{hint}; {have}. Install its package with pip.")
    if len({point.value for point in points}) > 1:
        who = ", ".join(point.value for point in points)
        raise ConfigError(f"task.name: several packages have a task plug-in {name!r} ({who}); uninstall all but one")
    return points[0]
