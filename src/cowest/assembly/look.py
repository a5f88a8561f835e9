"""A look at the data of a recipe's tasks, before models and keys are asked for."""

from __future__ import annotations

from collections.abc import Callable

from cowest.assembly.build import build_task
from cowest.assembly.opened import sources_of
from cowest.errors import CowestError
from cowest.models.tokens import token_counter
from cowest.recipe.config import RunConfig
from cowest.tasks.health import Health, health


def look_at_data(config: RunConfig) -> dict[str, Health]:
    """What there is to say of each task's data, by its name. Raises DataError for what cannot be used.

    Lengths are in tokens of the weak model where its tokenizer is on this machine, else in words.
    """
    count, unit = _counter(config)
    found = {}
    for name, single in config.by_task().items():
        task = build_task(single, name)
        found[task.name] = health(task, count, unit, single.sft.max_length)
    return found


def _counter(config: RunConfig) -> tuple[Callable[[str], int] | None, str]:
    try:
        tokenizer = sources_of(config).weak.tokenizer
        if tokenizer is None:
            return None, "words"
        count, how = token_counter(tokenizer)
    except CowestError:  # said when models are looked for
        return None, "words"
    return (count, "tokens of the weak model") if how.startswith("the tokenizer of") else (None, "words")
