"""What of a task's contexts and documents was in the requests to the strong model: read from the ledger, where all of them are.

With ``context_for: weak`` nothing of them leaves but what a draft says. Here that is checked against what was really sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from cowest.assembly.build import build_task
from cowest.assembly.opened import ledger_of, sources_of
from cowest.collaboration.sight import Quotations, sees
from cowest.errors import ConfigError
from cowest.ledger.summary import export_ledger
from cowest.recipe.kept import kept_recipe
from cowest.tasks.base import SPLITS
from cowest.types import Record

_FENCED = re.compile(r"<(draft|prediction)>\n.*?\n</\1>", re.DOTALL)


class Sent(Record):
    """Requests to the strong model, and how many of them hold 40 or more characters in a row of a context or a document.

    ``by_draft``: nowhere but in a draft. ``beside``: elsewhere, too; ``example`` is such a piece. ``contexts`` were looked for, and
    ``hidden`` tells whether the recipe hides them from the strong model.
    """

    requests: int
    contexts: int
    by_draft: int
    beside: int
    hidden: bool
    example: str | None = None


def sent(run: Path) -> Sent:
    """Look through the ledger of a run directory, or of a table's. Raises ConfigError where nothing was sent to an endpoint."""
    config = kept_recipe(run)
    path, name = ledger_of(run)
    sources = sources_of(config)
    if not sources.strong.paid:
        raise ConfigError(f"{run}: the strong model is on this machine, so nothing was sent to it over the network")
    texts, sights = list[str](), list[bool]()
    for task_name, single in config.by_task().items():
        task = build_task(single, task_name)
        texts += [e.context for split in SPLITS for e in task.examples(split) if e.context]
        texts += getattr(task, "documents", ())
        sights.append(single.task is not None and not sees("strong", single.task.sight))
    secret, drafts = Quotations(texts), _drafts(run)
    requests = by_draft = beside = 0
    example = None
    for entry in export_ledger(path, name):
        if entry["entry"] != "answer" or entry["model"] != sources.strong.name:
            continue
        requests += 1
        said = _messages(entry["request"])
        if secret.quoted(said) is None:
            continue
        found = secret.quoted(_FENCED.sub(" ", said))
        if found is not None:  # frames of one's own fence in other ways
            found = secret.quoted(_without(said, drafts))
        by_draft, beside = by_draft + (found is None), beside + (found is not None)
        example = example or found
    return Sent(
        requests=requests,
        contexts=len(set(texts)),
        by_draft=by_draft,
        beside=beside,
        hidden=all(sights),
        example=example,
    )


def _messages(request: object) -> str:
    messages = request.get("messages", []) if isinstance(request, dict) else []
    return "\n".join(str(m.get("content", "")) for m in messages if isinstance(m, dict))


def _without(said: str, drafts: set[str]) -> str:
    for draft in sorted((d for d in drafts if d in said), key=len, reverse=True):
        said = said.replace(draft, " ")
    return said


def _drafts(run: Path) -> set[str]:
    """Every text of the weak model in the run's records."""
    return {text.strip() for file in run.rglob("*.jsonl") for text in _texts(file) if text.strip()}


def _texts(file: Path) -> Iterator[str]:
    field = "text" if re.fullmatch(r"drafts.*\.jsonl", file.name) else "draft"
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line) if line.strip() else None
            if isinstance(row, dict) and isinstance(row.get(field), str):
                yield row[field]
