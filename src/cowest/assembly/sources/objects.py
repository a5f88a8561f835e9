"""Models of others' making: one that a script hands over, and one of an installed package (entry points ``cowest.models``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from cowest.assembly.sources.plain import PlainSource
from cowest.errors import ConfigError, CowestError
from cowest.protocols import Budget, ChatModel
from cowest.recipe.models import PluginModelConfig
from cowest.recipe.outcome import settings_of
from cowest.recipe.registry import Registry
from cowest.run.freshness import Depends
from cowest.types import ModelRef

MODELS: Registry[Callable[[Mapping[str, JsonValue]], ChatModel]] = Registry("model", "cowest.models", {})
"""What makes a package's model from the recipe's ``options``."""


class _Lasting:
    """A Python object of the caller's: it is not cowest's to close."""

    def __init__(self, model: ChatModel) -> None:
        self.name, self.generate = model.name, model.generate

    async def aclose(self) -> None:
        """Leave it open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectSource(PlainSource):
    """A :class:`cowest.protocols.ChatModel` that a script has handed over; it is known by its name. None: it was not given."""

    model: ChatModel | None = None

    def identity(self, prefix: str) -> Depends:
        """Its name."""
        return Depends({f"{prefix}.model": self.name})

    def check(self, where: str) -> None:
        """It must have been handed over."""
        if self.model is None:
            raise ConfigError(
                f"{where}: {self.name!r} was a Python object; hand it over again: "
                f"cowest.api.run(recipe, {where.rpartition('.')[2]}=...)"
            )

    def open(self, ref: ModelRef | None = None, budget: Budget | None = None) -> ChatModel:
        """The object; who made it closes it."""
        self.check("model")
        assert self.model is not None
        return _Lasting(self.model)


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSource(PlainSource):
    """A model of an installed package, known by its name and its options."""

    config: PluginModelConfig

    def identity(self, prefix: str) -> Depends:
        """Its name and options."""
        return settings_of(prefix, self.config)

    def check(self, where: str) -> None:
        """The package must be installed."""
        MODELS.find(self.name, f"{where}.name")

    def open(self, ref: ModelRef | None = None, budget: Budget | None = None) -> ChatModel:
        """As the package makes it. Raises ConfigError where that fails."""
        make = MODELS.find(self.name, "model")
        try:
            return make(self.config.options)
        except CowestError:
            raise
        except Exception as error:
            raise ConfigError(f"the model {self.name!r} failed: {type(error).__name__}: {error}"[:300]) from error
