"""Which extras are installed, whether their versions are in the declared ranges, and what each enables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Final

from cowest.doctor.findings import Finding

ENABLES: Final = {
    "local": "models on this machine",
    "train": "SFT and alignment of the weak model",
    "plots": "plots of report and table",
    "serve": "`cowest serve` with metrics",
    "retrieval": "rows and tasks that search passages",
    "llamacpp": "engine: llamacpp",
    "gepa": "the rows *_gepa",
    "structured": "schemas and tools of a served model on this machine",
    "data": "`cowest import` of Parquet files and Hugging Face datasets",
}
_NOT_SHOWN: Final = frozenset({"all", "dev", "docs"})
_LINE: Final = re.compile(
    r"([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?\s*([^;]*?)\s*(?:;.*extra\s*==\s*['\"]([\w-]+)['\"].*)?"
)
_BOUND: Final = re.compile(r"(>=|<=|==|!=|~=|<|>)\s*([\w.*+!]+)")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A requirement as the package's metadata declares it."""

    name: str
    extras: tuple[str, ...]
    bounds: str
    extra: str | None


def wanted(lines: list[str]) -> list[Wanted]:
    """The requirements of metadata lines such as ``torch>=2.8; extra == "local"``; a line of another form is left out."""
    found = []
    for line in lines:
        if (match := _LINE.fullmatch(line.strip())) is not None:
            named = tuple(part.strip() for part in (match[2] or "").split(",") if part.strip())
            found.append(Wanted(match[1], named, match[3].strip(" ()"), match[4]))
    return found


def fits(installed: str, bounds: str) -> bool:
    """Whether a version is within bounds such as ``<0.2,>=0.1.4``, by its numbers; what cannot be read is taken to fit."""
    have = _numbers(installed)
    for sign, bound in _BOUND.findall(bounds):
        limit = _numbers(bound)
        width = max(len(have), len(limit))
        a, b = have + (0,) * (width - len(have)), limit + (0,) * (width - len(limit))
        if sign == "==" and bound.endswith(".*"):
            a, b = have[: len(limit)], limit
        if not {">=": a >= b, "~=": a >= b, "<=": a <= b, "<": a < b, ">": a > b, "==": a == b, "!=": a != b}[sign]:
            return False
    return True


def _numbers(text: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, match[0].split("."))) if match else ()


def packages(distribution: str = "cowest") -> Iterator[Finding]:
    """One finding for the core and one for each extra."""
    try:
        lines = wanted(requires(distribution) or [])
    except PackageNotFoundError:
        yield Finding(
            section="packages",
            name="core",
            state="warning",
            said="cowest is not installed, only found on the path: what it needs cannot be told",
            todo="pip install -e .",
        )
        return
    by_extra: dict[str | None, list[Wanted]] = {}
    for line in lines:
        by_extra.setdefault(line.extra, []).append(line)
    for extra, needs in by_extra.items():
        if extra not in _NOT_SHOWN:
            yield _of(extra, [need for need in needs if need.name.lower() != distribution])


def _of(extra: str | None, needs: list[Wanted]) -> Finding:
    have: dict[str, str] = {}
    missing, outside = [], []
    for need in needs:
        try:
            have[need.name] = version(need.name)
        except PackageNotFoundError:
            missing.append(need.name)
            continue
        if not fits(have[need.name], need.bounds):
            outside.append(f"{need.name} {have[need.name]} is outside {need.bounds}")
    command = f"pip install '{'cowest' if extra is None else f'cowest[{extra}]'}'"
    what = "" if extra is None or extra not in ENABLES else f" ({ENABLES[extra]})"
    told = ", ".join(f"{name} {number}" for name, number in have.items())
    state, said = "ok", told
    if outside:
        state, said = "broken" if extra is None else "warning", "; ".join(outside)
    if missing:
        state = "broken" if extra is None else "note" if not outside else "warning"
        said = "; ".join([*outside, f"not installed: {', '.join(missing)}"])
    return Finding.model_validate(
        {
            "section": "packages",
            "name": "core" if extra is None else extra,
            "state": state,
            "said": said + what,
            "todo": command if missing or outside else None,
        }
    )
