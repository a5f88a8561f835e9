"""What a run's records know of calls that were paid for: where its ledger does not, they would be paid for again, and silently."""

from __future__ import annotations

import json
from pathlib import Path

from cowest.errors import StageError
from cowest.ledger.summary import has_calls


def check_ledger_is_there(out: Path, path: Path, weak_paid: bool, strong_paid: bool) -> None:
    """Raise StageError where records of the run in ``out`` were paid for and the ledger at ``path`` is missing or empty.

    ``weak_paid`` and ``strong_paid``: whether these models' calls cost something.
    """
    if not path.exists():
        state = "is not there"
    elif not has_calls(path):
        state = "is empty"
    else:
        return
    paid = _paid_records(out, weak_paid, strong_paid)
    if paid:
        raise StageError(
            f"{path}: {state}, but {paid:,} records in {out} were paid for, and what is asked again would be paid again. Put the "
            "ledger back (or set ledger: to where it is now); to pay again all the same, --set cache=refresh"
        )


def _paid_records(out: Path, weak_paid: bool, strong_paid: bool) -> int:
    """How many records tell of a call to a model that costs something."""
    names = [*(["drafts.jsonl"] if weak_paid else []), *(["solo.jsonl", "refinements.jsonl"] if strong_paid else [])]
    files = [file for name in names for file in out.rglob(name)]
    if strong_paid:
        files += [file for file in out.rglob("predictions/*.jsonl") if not file.stem.startswith("weak")]
    return sum(_was_asked(line) for file in files for line in file.read_bytes().splitlines())


def _was_asked(line: bytes) -> bool:
    try:
        return bool(json.loads(line)["usage"]["calls"])
    except (ValueError, KeyError, TypeError):  # a line that a kill tore, or another file of that name
        return False
