"""What is wrong in a recipe, said with file, line, key and the nearest right key."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import yaml
from pydantic import BaseModel


def explain(
    root: type[BaseModel],
    loc: tuple[int | str, ...],
    message: str,
    kind: str,
    value: object,
    path: Path,
    node: yaml.Node | None,
) -> str:
    """One problem of a ``root`` model as ``file:line: key: what is wrong``, without pydantic's union tags in ``loc``."""
    keys, line = _locate(loc, node)
    where = f"{path}:{line}" if line else str(path)
    dotted = ".".join(keys) or "(recipe)"
    if kind == "extra_forbidden":
        known = _known_keys(root, loc[:-1])
        hint = did_you_mean(keys[-1], known) or f"known here: {', '.join(sorted(known))}"
        return f"{where}: {dotted}: unknown key; {hint}"
    if kind == "missing":
        return f"{where}: {dotted}: missing; add it"
    plain = isinstance(value, str | int | float | bool) and not _MAY_HOLD_A_KEY & {str(part) for part in loc}
    shown = f" (got {value!r})" if plain else ""
    return f"{where}: {dotted}: {message.removeprefix('Value error, ')}{shown}"


_MAY_HOLD_A_KEY = {"api_key_env", "base_url", "extra"}
"""Settings whose values are never repeated: a key in the wrong place would be in logs from then on."""
_TAGS = ("lab", "jsonl", "ifqa", "pubmedqa", "prosocial", "plugin", "local", "openai", "scripted")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question with the nearest known name; empty where none is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def _locate(loc: tuple[int | str, ...], node: yaml.Node | None) -> tuple[list[str], int | None]:
    keys, line = [], None
    previous = ""
    for part in loc:
        if part in _TAGS and previous in ("weak", "strong", "judge", "task", *_task_names(loc)):
            previous = ""
            continue
        keys.append(str(part))
        previous = str(part)
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if found is None:
                node = None
                continue
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            node = None
    return keys, line


def _task_names(loc: tuple[int | str, ...]) -> tuple[str, ...]:
    return (str(loc[1]),) if len(loc) > 1 and loc[0] == "tasks" else ()


def _known_keys(root: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at ``loc``, by walking the model's fields (tags choose within a union)."""
    models: list[type[BaseModel]] = [root]
    for part in loc:
        tagged = [m for m in models if part in _tag_of(m)]
        models = tagged or [m for model in models for m in _models_in(_field_type(model, str(part)))] or models
    return sorted({name for model in models for name in model.model_fields})


def _tag_of(model: type[BaseModel]) -> tuple[object, ...]:
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field else ()


def _field_type(model: type[BaseModel], name: str) -> object:
    field = model.model_fields.get(name)
    return field.annotation if field else None


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for arg in get_args(annotation) for model in _models_in(arg)]
