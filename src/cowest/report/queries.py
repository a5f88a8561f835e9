"""The browsable queries: what each says about collaboration, and the JSON that the page's script reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from cowest.report.data import AnswerView, QueryView
from cowest.report.naming import DESCRIPTIONS, colour_of, finite, order_systems, target_of, visible
from cowest.types import Record

Outcome = Literal["helped", "hurt", "same", "unscored"]
OUTCOMES: tuple[Outcome, ...] = ("helped", "hurt", "same", "unscored")
_EPSILON = 1e-9


class Baseline(Record):
    """What the target is compared with, and how many queries went which way (every outcome is a key)."""

    name: str
    label: str
    counts: dict[Outcome, int]


class QueryList(Record):
    """The list of one task, ready for the template; ``payload`` is safe inside a script element."""

    target: str | None
    baselines: list[Baseline]
    total: int
    payload: str


def outcome(query: QueryView, target: str, baseline: str) -> Outcome:
    """Return whether ``target`` scored above, below or the same as ``baseline`` on this query."""
    ours, theirs = _value(query, target), _value(query, baseline)
    if ours is None or theirs is None:
        return "unscored"
    if abs(ours - theirs) <= _EPSILON:
        return "same"
    return "helped" if ours > theirs else "hurt"


def query_list(queries: Sequence[QueryView]) -> QueryList:
    """Return the list with its counts: the target against the strong model first, then each other system."""
    names = order_systems(n for q in queries for n in q.answers)
    target = target_of(names)
    # The paper's gain is against the strong model alone: that one first (the sort is stable).
    others = sorted((n for n in names if target and n != target), key=lambda n: n != "strong")
    baselines = [_baseline(queries, target, name) for name in others if target]
    data = {
        "systems": [
            {"name": n, "label": visible(DESCRIPTIONS.get(n, n)), "colour": colour_of(n, names)} for n in names
        ],
        "queries": [_query(q, names, target, others) for q in queries],
    }
    return QueryList(target=target, baselines=baselines, total=len(queries), payload=script_json(data))


def script_json(data: object) -> str:
    """Return JSON that no HTML parser can leave: ASCII only, with ``<``, ``>`` and ``&`` escaped."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _baseline(queries: Sequence[QueryView], target: str, name: str) -> Baseline:
    seen = Counter(outcome(q, target, name) for q in queries)
    counts = {o: seen.get(o, 0) for o in OUTCOMES}
    return Baseline(name=name, label=visible(DESCRIPTIONS.get(name, name)), counts=counts)


def _query(query: QueryView, names: Sequence[str], target: str | None, others: Sequence[str]) -> dict[str, object]:
    return {
        "id": visible(query.example_id),
        "input": visible(query.input),
        "turns": [[turn.role, visible(turn.content)] for turn in query.turns],
        "context": _seen(query.context),
        "references": [visible(r) for r in query.references],
        "outcomes": {visible(o): outcome(query, target, o) for o in others} if target else {},
        "answers": [_answer(query.answers.get(n)) for n in names],
    }


def _answer(answer: AnswerView | None) -> dict[str, object] | None:
    if answer is None:
        return None
    return {
        "text": _seen(answer.text),
        "answer": _seen(answer.answer),
        "value": finite(answer.value),
        "draft": _seen(answer.draft),
        "error": _seen(answer.error),
    }


def _seen(text: str | None) -> str | None:
    return None if text is None else visible(text)


def _value(query: QueryView, system: str) -> float | None:
    answer = query.answers.get(system)
    return finite(answer.value) if answer else None
