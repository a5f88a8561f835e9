"""What outcomes follow from, by name, as stages say it: questions, prompts, models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from cowest.assembly.build import model_path
from cowest.errors import ModelNotFoundError
from cowest.recipe.config import LocalModelConfig, ModelConfig
from cowest.recipe.outcome import settings_of
from cowest.run.freshness import UNKNOWN, Depends, content
from cowest.run.identity import fingerprint, hash_model
from cowest.types import Example, Message


def value(name: str, it: JsonValue) -> Depends:
    """One value by its name."""
    return Depends({name: it})


def questions(name: str, examples: Sequence[Example]) -> Depends:
    """Questions with their answers."""
    hash_ = fingerprint(*(e.model_dump(mode="json") for e in examples))
    return value(f"{name} questions", content(hash_, f"{len(examples)} questions"))


def prompt(name: str, *asked: Sequence[Message]) -> Depends:
    """How something is asked, by what it looks like for one query."""
    texts: list[JsonValue] = [m.content for messages in asked for m in messages]
    return value(f"the prompt of {name}", content(fingerprint(*texts), f"{sum(len(str(t)) for t in texts)} characters"))


def model(prefix: str, config: ModelConfig) -> Depends:
    """What a model's answers follow from: not its address, concurrency, price or device."""
    if not isinstance(config, LocalModelConfig):
        return settings_of(prefix, config)
    found = settings_of(prefix, config, leave_out=("model", "adapter"))
    parts = {f"{prefix}.model": config.model, f"{prefix}.adapter": config.adapter}
    return found | Depends({key: None if name is None else _weights(name) for key, name in parts.items()})


def _weights(name: str) -> JsonValue:
    try:
        place = model_path(name)
    except ModelNotFoundError:
        return UNKNOWN  # a finished run is read where its models are not
    return content(hash_model(place), Path(name).name)
