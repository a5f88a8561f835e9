"""Which settings an outcome follows from: a section of the recipe as names and values, without what only says how it is done."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import BaseModel, JsonValue

from cowest.recipe.models import Section
from cowest.run.freshness import Depends


def settings_of(prefix: str, section: BaseModel, leave_out: Collection[str] = ()) -> Depends:
    """The section's settings by dotted name, with their defaults. ``Section.how`` and ``leave_out`` are not among them."""
    values, defaults = dict[str, JsonValue](), dict[str, JsonValue]()
    dumped = section.model_dump(mode="json")
    left_out = {*leave_out, *(section.how if isinstance(section, Section) else ())}
    for name, info in type(section).model_fields.items():
        if name in left_out:
            continue
        value, key = getattr(section, name), f"{prefix}.{name}"
        default = info.get_default(call_default_factory=True, validated_data={})
        if isinstance(value, BaseModel):
            inner = settings_of(key, value)
            values |= inner.values
            same = type(default) is type(value)
            defaults |= settings_of(key, default).values if same else inner.defaults
            continue
        values[key] = dumped[name]
        if not info.is_required():
            defaults[key] = _json(default)
    return Depends(values, defaults)


def _json(value: object) -> JsonValue:
    if isinstance(value, tuple | list):
        return [_json(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _json(v) for k, v in value.items()}
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
