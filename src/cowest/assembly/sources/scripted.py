"""A model that follows a script."""

from __future__ import annotations

from dataclasses import dataclass

from cowest.assembly.sources.plain import PlainSource
from cowest.protocols import Budget, ChatModel
from cowest.recipe.models import ScriptedModelConfig
from cowest.recipe.outcome import settings_of
from cowest.run.freshness import Depends
from cowest.types import ModelRef


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedSource(PlainSource):
    """A deterministic model for tests and for trying a recipe."""

    config: ScriptedModelConfig
    name: str = "scripted"
    reads_given: bool = False

    def identity(self, prefix: str) -> Depends:
        """Its rules."""
        return settings_of(prefix, self.config)

    def check(self, where: str) -> None:
        """There is nothing to look for."""

    def open(self, ref: ModelRef | None = None, budget: Budget | None = None) -> ChatModel:
        """The model itself."""
        from cowest.models.scripted import ScriptedChatModel, ScriptRule

        rules = [ScriptRule(contains=r.contains, reply=r.reply) for r in self.config.rules]
        return ScriptedChatModel(rules, default=self.config.default)
