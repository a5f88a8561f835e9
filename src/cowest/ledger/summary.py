"""The bill, read out of a ledger: what was paid, for what, and what went wrong on the way."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pydantic import JsonValue

from cowest.ledger.reading import EmptyLedgerError, reading
from cowest.types import Record


class Line(Record):
    """One line of the bill: the answered calls of a model, or of a purpose."""

    calls: int
    input_tokens: int
    output_tokens: int
    cost_usd: float | None


class PurposeLine(Line):
    """The answered calls of one model for one purpose."""

    purpose: str
    model: str


class SlowCall(Record):
    """An answered call that took long."""

    key: str
    model: str
    purpose: str
    latency_s: float
    attempts: int


class LedgerSummary(Record):
    """The bill. ``cost_usd`` is None where a model's price is unknown (then ``unpriced_models`` names it), never 0.

    ``cost_usd`` counts every answer that came, also those that were of no use (``paid_calls`` is their number; ``answered`` only
    the useful ones). ``at_most_usd`` adds what may have been paid for: requests that were sent and never answered, and
    ``under_way`` now.
    """

    path: str
    run: str | None
    answered: int
    paid_calls: int
    hits: int
    failed: int
    failures: dict[str, int]
    retries: dict[str, int]
    input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    estimated_calls: int
    cost_usd: float | None
    at_most_usd: float | None
    maybe_paid: int
    under_way: int
    unpriced_models: list[str]
    models: dict[str, Line]
    purposes: dict[str, Line]
    by_both: list[PurposeLine]
    slowest: list[SlowCall]
    first: float | None
    last: float | None

    def by_purpose_and_model(self) -> dict[tuple[str, str], Line]:
        """``by_both`` as a mapping."""
        return {(line.purpose, line.model): line for line in self.by_both}


def summarise_ledger(path: Path, run: str | None = None) -> LedgerSummary:
    """The bill in a ledger file. Raises DataError where there is none, or it is damaged."""
    with reading(path) as db:
        return summarise(db, path, run)


def answered_requests(path: Path) -> frozenset[str]:
    """The keys of all requests that have an answer in a ledger file. Raises DataError where there is none."""
    with reading(path) as db:
        return frozenset(key for (key,) in db.execute("SELECT key FROM answers WHERE current = 1"))


def has_calls(path: Path) -> bool:
    """Whether anything is entered in a ledger file. Raises DataError where there is none, or it is damaged."""
    counted = (
        "SELECT EXISTS (SELECT 1 FROM answers) OR EXISTS (SELECT 1 FROM failures) OR EXISTS (SELECT 1 FROM batches)"
    )
    try:
        with reading(path) as db:
            return bool(db.execute(counted).fetchone()[0])
    except EmptyLedgerError:
        return False


def summarise(db: sqlite3.Connection, path: Path, run: str | None) -> LedgerSummary:
    """The bill of one run, or (``run`` None) of all that share the file."""
    where, given = ("WHERE run = ?", (run,)) if run is not None else ("", ())
    spent = db.execute(
        "SELECT total(calls), total(tokens), total(micro_usd), total(unpriced_calls), total(maybe_calls), "
        f"total(maybe_micro_usd), total(maybe_unpriced_calls), total(hits) FROM spent {where}",
        given,
    ).fetchone()
    held = db.execute(
        f"SELECT count(*), total(micro_usd), count(*) - count(micro_usd) FROM reservations {where}", given
    ).fetchone()
    tokens = db.execute(
        "SELECT count(*), total(input_tokens), total(output_tokens), total(reasoning_tokens), total(estimated), min(created), "
        f"max(created) FROM answers {where}",
        given,
    ).fetchone()
    failures = Counter(dict(db.execute(f"SELECT kind, count(*) FROM failures {where} GROUP BY kind", given)))
    unpriced = [
        model
        for (model,) in db.execute(
            f"SELECT DISTINCT model FROM answers {where} {'AND' if where else 'WHERE'} micro_usd IS NULL ORDER BY model",
            given,
        )
    ]
    cost = None if spent[3] else spent[2] / 1e6
    unknown = spent[3] or spent[6] or held[2]
    return LedgerSummary(
        path=str(path),
        run=run,
        answered=tokens[0],
        paid_calls=int(spent[0]),
        hits=int(spent[7]),
        failed=failures.total(),
        failures=dict(failures.most_common()),
        retries=_retries(db, where, given),
        input_tokens=int(tokens[1]),
        output_tokens=int(tokens[2]),
        reasoning_tokens=int(tokens[3]),
        estimated_calls=int(tokens[4]),
        cost_usd=cost,
        at_most_usd=None if unknown else (spent[2] + spent[5] + held[1]) / 1e6,
        maybe_paid=int(spent[4]),
        under_way=held[0],
        unpriced_models=unpriced,
        models=_lines(db, "model", where, given),
        purposes=_lines(db, "purpose", where, given),
        by_both=_by_both(db, where, given),
        slowest=_slowest(db, where, given),
        first=tokens[5],
        last=tokens[6],
    )


def _retries(db: sqlite3.Connection, where: str, given: tuple[str, ...]) -> dict[str, int]:
    """How attempts before the last one ended, over answered and failed calls."""
    counted: Counter[str] = Counter()
    for table in ("answers", "failures"):
        for kind, n in db.execute(
            f"SELECT json_extract(a.value, '$.outcome'), count(*) FROM {table} t, json_each(t.attempts) a "
            f"{where.replace('run', 't.run')} {'AND' if where else 'WHERE'} a.key < json_array_length(t.attempts) - 1 GROUP BY 1",
            given,
        ):
            counted[kind] += n
    return dict(counted.most_common())


def _lines(db: sqlite3.Connection, column: str, where: str, given: tuple[str, ...]) -> dict[str, Line]:
    rows = db.execute(
        f"SELECT {column}, count(*), sum(input_tokens), sum(output_tokens), sum(micro_usd), count(micro_usd) FROM answers {where} "
        f"GROUP BY {column} ORDER BY min(id)",
        given,
    )
    return {
        name: Line(calls=n, input_tokens=i, output_tokens=o, cost_usd=micro / 1e6 if priced == n else None)
        for name, n, i, o, micro, priced in rows
    }


def _by_both(db: sqlite3.Connection, where: str, given: tuple[str, ...]) -> list[PurposeLine]:
    rows = db.execute(
        "SELECT purpose, model, count(*), sum(input_tokens), sum(output_tokens), sum(micro_usd), count(micro_usd) "
        f"FROM answers {where} GROUP BY purpose, model ORDER BY min(id)",
        given,
    )
    return [
        PurposeLine(
            purpose=p, model=m, calls=n, input_tokens=i, output_tokens=o, cost_usd=micro / 1e6 if priced == n else None
        )
        for p, m, n, i, o, micro, priced in rows
    ]


def _slowest(db: sqlite3.Connection, where: str, given: tuple[str, ...]) -> list[SlowCall]:
    rows = db.execute(
        f"SELECT key, model, purpose, latency_s, json_array_length(attempts) FROM answers {where} ORDER BY latency_s DESC LIMIT 10",
        given,
    )
    return [SlowCall(key=k, model=m, purpose=p, latency_s=s, attempts=a) for k, m, p, s, a in rows]


def export_ledger(path: Path, run: str | None = None) -> Iterator[dict[str, JsonValue]]:
    """Every answer and failure as one JSON object, in the order of time. Raises DataError where there is no ledger."""
    where, given = ("WHERE run = ?", (run,)) if run is not None else ("", ())
    with reading(path) as db:
        db.row_factory = sqlite3.Row
        entries = db.execute(
            f"SELECT 'answer' AS entry, id, created FROM answers {where} UNION ALL "
            f"SELECT 'failure', id, created FROM failures {where} ORDER BY created, id",
            given * 2,
        )
        for entry, number, _ in entries:
            row = db.execute(f"SELECT * FROM {entry}s WHERE id = ?", (number,)).fetchone()
            found: dict[str, JsonValue] = {"entry": entry, **{k: row[k] for k in row.keys() if k != "id"}}  # noqa: SIM118
            for name in ("request", "attempts", "logprobs"):
                if isinstance(found.get(name), str):
                    found[name] = json.loads(str(found[name]))
            micro = found.pop("micro_usd", None)
            if entry == "answer":
                found["cost_usd"] = micro / 1e6 if isinstance(micro, int) else None
                found["current"] = bool(found["current"])
            yield found
