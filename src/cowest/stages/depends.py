"""What outcomes follow from, by name, as stages say it: values, questions, prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from cowest.assembly.context import Context
from cowest.assembly.places import model_source
from cowest.assembly.sources import Source
from cowest.assembly.sources.local import LocalSource
from cowest.collaboration.sight import Side, sees
from cowest.errors import CowestError
from cowest.models.shape import stored_in_16_bits
from cowest.recipe.config import TrainingSettings
from cowest.recipe.outcome import settings_of
from cowest.run.freshness import UNKNOWN, Depends, content
from cowest.run.identity import fingerprint
from cowest.types import Example, Message


def value(name: str, it: JsonValue) -> Depends:
    """One value by its name."""
    return Depends({name: it})


def seen(context: Context, *sides: Side) -> Depends:
    """Whether these models are shown the context, where there is one."""
    values: dict[str, JsonValue] = {f"the {side} model sees the context": sees(side, context.sight) for side in sides}
    shown: dict[str, JsonValue] = dict.fromkeys(values, True)
    # For nobody there is no context in the questions: whoever would see it makes no difference.
    return Depends(shown if context.sight == "none" else values, shown)


def questions(name: str, examples: Sequence[Example]) -> Depends:
    """Questions with their answers."""
    hash_ = fingerprint(*(e.model_dump(mode="json") for e in examples))
    return value(f"{name} questions", content(hash_, f"{len(examples)} questions"))


def prompt(name: str, *asked: Sequence[Message]) -> Depends:
    """How something is asked, by what it looks like for one query."""
    texts: list[JsonValue] = [m.content for messages in asked for m in messages]
    return value(f"the prompt of {name}", content(fingerprint(*texts), f"{sum(len(str(t)) for t in texts)} characters"))


def training(prefix: str, settings: TrainingSettings, weak: Source) -> Depends:
    """The settings of a training of ``weak``. ``dtype: auto`` is float32 where it can be nothing else, whatever the device."""
    found = settings_of(prefix, settings)
    if settings.dtype != "auto":
        return found
    return found | value(f"{prefix}.dtype", "float32" if settings.method == "full" else _automatic(weak))


def _automatic(weak: Source) -> JsonValue:
    try:
        place = model_source(weak.config.model) if isinstance(weak, LocalSource) else weak.name
    except CowestError:  # its folder is not here
        return UNKNOWN
    small = Path(place).is_file() or stored_in_16_bits(place)  # a GGUF file is dequantised to bfloat16
    return UNKNOWN if small is None else "auto" if small else "float32"
