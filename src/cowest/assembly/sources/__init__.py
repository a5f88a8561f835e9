"""A model as a recipe or a script describes it: all that can be known and done before it is opened, whatever kind it is.

The one place that knows every kind of model. Elsewhere a source's capabilities are asked for (``trainable``, ``paid``, ``window``),
and never its kind.
"""

from __future__ import annotations

from pathlib import Path

from cowest.assembly.sources.endpoint import EndpointSource
from cowest.assembly.sources.local import LocalSource
from cowest.assembly.sources.objects import ObjectSource, PluginSource
from cowest.assembly.sources.protocol import Source
from cowest.assembly.sources.scripted import ScriptedSource
from cowest.engines.servers import Servers
from cowest.protocols import Budget, ChatModel
from cowest.recipe.models import LocalModelConfig, ModelConfig, ObjectModelConfig, OpenAIModelConfig, PluginModelConfig

__all__ = ["Source", "build_model", "source_of"]


def source_of(
    config: ModelConfig,
    folder: Path = Path(),
    given: ChatModel | None = None,
    servers: Servers | None = None,
    label: str = "model",
) -> Source:
    """The source of a section of the recipe; ``given`` is the object that it names, where it names one.

    ``servers`` are those of the run, and ``label`` what the run calls the model: for engines that are servers.
    """
    if isinstance(config, LocalModelConfig):
        return LocalSource(config, servers, label)
    if isinstance(config, OpenAIModelConfig):
        return EndpointSource(config, folder)
    if isinstance(config, ObjectModelConfig):
        return ObjectSource(name=config.name, model=given)
    if isinstance(config, PluginModelConfig):
        return PluginSource(name=config.name, config=config)
    return ScriptedSource(config=config)


def build_model(config: ModelConfig, folder: Path = Path(), budget: Budget | None = None) -> ChatModel:
    """A model of any kind. Raises ConfigError, ModelNotFoundError or MissingExtraError when it cannot be had."""
    return source_of(config, folder).open(budget=budget)
