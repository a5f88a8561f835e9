"""``cowest collect``: from exchanges with feedback to what the next run trains on, with a count for all that is left out.

Right answers become rows of questions. Verdicts become preference pairs where they make a contrast: two drafts of one query, of
which one helped and the other did not. Nothing else is made of them: no rationale is invented, and an answer that was called
helpful is not taken for a right one.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from cowest.assembly.opened import ledger_path
from cowest.errors import ConfigError, DataError
from cowest.ledger.exchanges import Deletion, Exchanged, Verdict, delete_exchanges, read_exchanges
from cowest.models.turns import spoken
from cowest.recipe.config import RunConfig, load_config
from cowest.recipe.kept import kept_recipe
from cowest.run.store import write_lines
from cowest.tasks.answers import label_key
from cowest.tasks.collected import pairs_file
from cowest.types import Message, PreferencePair, Record

MOST_PAIRS: Final = 4
"""Pairs of one query, as a run's ``pairs.max_per_query``."""
Judged = tuple[Exchanged, Verdict]


class TaskCollected(Record):
    """What came of one domain's exchanges. ``left_out`` counts feedback (and pairs, over the maximum) of which nothing was made."""

    exchanges: int
    with_feedback: int
    right_answers: int
    verdicts: int
    examples: int
    pairs: int
    left_out: dict[str, int]
    examples_file: str
    pairs_file: str


class CollectSummary(Record):
    """What ``cowest collect`` found and wrote."""

    ledger: str
    run: str
    tasks: dict[str, TaskCollected]


def source_of(target: Path) -> tuple[RunConfig, Path]:
    """The recipe of a run directory or of a recipe file, and the ledger file in which a server of it collects."""
    if target.is_dir():
        config = kept_recipe(target)
        return config, ledger_path(config, target)
    config = load_config(target)
    return config, ledger_path(config, Path("runs") / config.name)


def collect(target: Path, out: Path | None = None, only: str | None = None) -> CollectSummary:
    """Write a run's examples and pairs: to ``out`` (one domain), else to ``collected.jsonl`` in each domain's folder.

    Raises ConfigError where ``out`` is named for several domains, and DataError where nothing was collected.
    """
    config, ledger = source_of(target)
    folder = target if target.is_dir() else Path("runs") / config.name
    if only is not None and only not in config.tasks:
        raise ConfigError(f"--task {only!r}: the recipe's domains are {', '.join(config.tasks) or 'not named'}")
    counts, judged = Counter[str](), dict[str, list[Judged]]()
    for exchange, verdict in read_exchanges(ledger, config.name):
        if only in (None, exchange.task):
            counts[exchange.task] += 1
            if verdict is not None:
                judged.setdefault(exchange.task, []).append((exchange, verdict))
    if not counts:
        raise DataError(
            f"{ledger}: nothing was collected for {only or config.name} yet; `cowest serve --collect` does it"
        )
    if out is not None and len(counts) > 1:
        raise ConfigError(f"--out: there are exchanges of {', '.join(counts)}; add --task NAME, a file for each")
    tasks = {
        name: _collect(n, judged.get(name, []), out or folder / name / "collected.jsonl") for name, n in counts.items()
    }
    return CollectSummary(ledger=str(ledger), run=config.name, tasks=tasks)


def forget(target: Path, ids: Sequence[str], keep_days: float | None) -> Deletion:
    """Delete exchanges of a run, and the feedback on them: these, or ``all``; of these, those older than ``keep_days`` days.

    Raises DataError where nothing was collected. Files that were written of them stay.
    """
    config, ledger = source_of(target)
    before = None if keep_days is None else time.time() - keep_days * 86_400
    return delete_exchanges(ledger, config.name, None if not ids or "all" in ids else ids, before)


def _collect(exchanges: int, judged: Sequence[Judged], path: Path) -> TaskCollected:
    left_out: Counter[str] = Counter()
    rows, pairs = examples(judged, left_out), preferences(judged, left_out)
    write_lines(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_lines(pairs_file(path), (pair.model_dump_json() + "\n" for pair in pairs))
    return TaskCollected(
        exchanges=exchanges,
        with_feedback=len(judged),
        right_answers=sum(v.answer is not None for _, v in judged),
        verdicts=sum(v.helpful is not None for _, v in judged),
        examples=len(rows),
        pairs=len(pairs),
        left_out=dict(sorted(left_out.items())),
        examples_file=str(path),
        pairs_file=str(pairs_file(path)),
    )


def examples(judged: Sequence[Judged], left_out: Counter[str]) -> list[dict[str, JsonValue]]:
    """A row, as a ``jsonl`` task reads it, for each question with a right answer; several open answers are all right."""
    by_question: dict[tuple[tuple[Message, ...], str | None, tuple[str, ...]], list[tuple[Exchanged, str]]] = {}
    for exchange, verdict in judged:
        if verdict.answer is None:
            continue
        if exchange.turn < 0:
            left_out["answer_without_question"] += 1
        elif exchange.choices and verdict.answer not in exchange.choices:
            left_out["answer_not_among_choices"] += 1
        else:
            question = (_turns(exchange), exchange.context or None, tuple(sorted(exchange.choices)))
            by_question.setdefault(question, []).append((exchange, verdict.answer))
    rows: list[dict[str, JsonValue]] = []
    for (turns, context, choices), given in by_question.items():
        by_key: dict[str, str] = {}
        for _, answer in reversed(given):  # the latest first, and as it is written there
            by_key.setdefault(label_key(answer), answer)
        answers = list(by_key.values())
        if choices and len(answers) > 1:
            left_out["answers_contradict"] += len(given)
            continue
        left_out["answer_repeated"] += len(given) - len(answers)
        first = given[0][0]
        asked: dict[str, JsonValue] = {"input": turns[0].content}
        if len(turns) > 1:
            asked = {"messages": [{"role": turn.role, "content": turn.content} for turn in turns]}
        row: dict[str, JsonValue] = {"id": f"collected-{first.id}", **asked, "references": list[JsonValue](answers)}
        if context:
            row["context"] = context
        if choices:
            row["choices"] = list(first.choices)
        rows.append(row | {"metadata": {"exchanges": " ".join(exchange.id for exchange, _ in given)}})
    left_out += Counter()  # drops the zeros
    return rows


def _turns(exchange: Exchanged) -> tuple[Message, ...]:
    """The question and the turns before it, the system prompt among them: what the weak model is asked when it is served."""
    return spoken((turn.role, turn.text) for turn in exchange.messages[: exchange.turn + 1])


def preferences(judged: Sequence[Judged], left_out: Counter[str]) -> list[PreferencePair]:
    """Pairs of a draft that helped and one that did not, of the same query.

    The gains are the verdicts, 1 and 0: what the strong model does alone is the same for both and cancels in the margin.
    """
    by_query: dict[tuple[Message, ...], dict[str, list[tuple[Exchanged, bool]]]] = {}
    for exchange, verdict in judged:
        if verdict.helpful is None:
            continue
        if exchange.mode != "both" or exchange.draft is None:
            left_out["verdict_without_collaboration"] += 1
        else:
            drafts = by_query.setdefault(exchange.prompt, {})
            drafts.setdefault(exchange.draft.strip(), []).append((exchange, verdict.helpful))
    pairs: list[PreferencePair] = []
    for prompt, drafts in by_query.items():
        pairs += _of_query(prompt, drafts, left_out)
    left_out += Counter()
    return pairs


def _of_query(
    prompt: tuple[Message, ...], drafts: Mapping[str, Sequence[tuple[Exchanged, bool]]], left_out: Counter[str]
) -> list[PreferencePair]:
    helped, failed = list[Exchanged](), list[Exchanged]()
    for said in drafts.values():
        if len({helpful for _, helpful in said}) > 1:
            left_out["verdicts_contradict"] += len(said)
            continue
        left_out["verdict_repeated"] += len(said) - 1
        exchange, helpful = said[0]
        (helped if helpful else failed).append(exchange)
    if not (helped and failed):
        left_out["verdict_without_contrast"] += len(helped) + len(failed)
        return []
    found = [(better, worse) for better in helped for worse in failed]
    left_out["pairs_over_maximum"] += max(0, len(found) - MOST_PAIRS)
    return [
        PreferencePair(
            example_id=f"collected-{better.id}",
            prompt=prompt,
            chosen=(Message(role="assistant", content=better.draft or ""),),
            rejected=(Message(role="assistant", content=worse.draft or ""),),
            chosen_gain=1.0,
            rejected_gain=0.0,
        )
        for better, worse in found[:MOST_PAIRS]
    ]
