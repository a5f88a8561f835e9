"""What ``cowest import`` prints: the guess, a row as it will be written, and what was written."""

from __future__ import annotations

import json

from pydantic import JsonValue

from cowest.importing.importer import Imported, Plan

WIDTH = 160


def plan_as_json(plan: Plan) -> dict[str, JsonValue]:
    """The guess and the first rows."""
    return {
        "source": plan.source,
        "columns": {field: list(names) for field, names in plan.columns.columns.items()},
        "unused": list(plan.columns.unused),
        "preview": json.loads(json.dumps(plan.preview)),
        "notes": [*plan.notes, *plan.problems],
    }


def print_plan(plan: Plan) -> None:
    """What the columns are taken for, and the first rows as they will be written."""
    print(f"{_shown(plan.source)}: taken as (change it with --map COLUMN=FIELD)")
    for field, names in plan.columns.columns.items():
        print(f"  {field:<11} {' + '.join(map(_shown, names))}")
    if plan.columns.unused:
        print(f"  not used    {', '.join(map(_shown, plan.columns.unused))}")
    print("The first rows, as they will be written:")
    for row in plan.preview[:2]:
        print(f"  {_short(row)}")
    for line in (*plan.notes, *plan.problems):
        print(f"note: {_shown(line)}")


def print_done(done: Imported, plan: Plan) -> None:
    """Files, counts, what the plan did not say yet, and what to do next."""
    sizes = ", ".join(f"{n:,} {split}" for split, n in done.rows.items())
    print(f"{done.out}: {sizes}")
    if done.labels:
        names = sorted({name for counts in done.labels.values() for name in counts})
        for name in names:
            counts = " / ".join(f"{done.labels[split].get(name, 0):,}" for split in done.rows)
            print(f"  {_shown(name)}: {counts}")
    for reason, n in done.skipped.items():
        print(f"left out: {n:,} rows: {_shown(reason)}")
    for note in done.notes:
        if note in (*plan.notes, *plan.problems):
            continue
        print(f"note: {_shown(note)}")
    print(f"Next: cowest validate {done.out / 'recipe.yaml'}")


def _short(row: dict[str, object]) -> str:
    """A row in a line: long texts are cut in the middle of the row, not at its end, so that all fields are seen."""
    room = max(24, WIDTH // max(1, len(row)))
    parts = {name: _cut(value, room) for name, value in row.items()}
    return _shown(json.dumps(parts, ensure_ascii=False))


def _cut(value: object, room: int) -> object:
    if isinstance(value, str):
        return value if len(value) <= room else value[: room - 3] + "..."
    if isinstance(value, list):
        return [_cut(item, room) for item in value[:6]]
    return {k: _cut(v, room) for k, v in value.items()} if isinstance(value, dict) else value


def _shown(text: str) -> str:
    """Data is untrusted: a terminal must not read commands in it."""
    return "".join(c if c.isprintable() else " " for c in text)
