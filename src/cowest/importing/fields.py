"""Which column is what: a guess from names, and what the user says instead (``--map COLUMN=FIELD``)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cowest.errors import ConfigError
from cowest.importing.records import SPLIT_NAMES
from cowest.tasks.row_errors import listed, suggestion

FIELDS: Final = (
    "input", "answer", "context", "rationale", "choices", "messages", "completion", "id", "group", "split", "metadata"
)  # fmt: skip
"""What a column can become. ``completion`` is a text that is learned as it is, and whose answer is read out of it."""
JOINED: Final = ("input", "context", "rationale", "choices", "metadata")
"""Several columns may be one of these."""
ALIASES: Final = {
    "question": "input",
    "prompt": "input",
    "references": "answer",
    "label": "answer",
    "options": "choices",
}
NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "messages": ("messages", "conversations", "conversation"),
    "choices": ("choices", "options", "candidates", "alternatives"),
    "rationale": (
        "rationale", "rationales", "explanation", "explanations", "long_answer", "reasoning", "chain_of_thought", "cot",
        "justification", "reason", "reasons", "rots", "exp", "explain",
    ),
    "context": (
        "context", "contexts", "passage", "passages", "document", "documents", "background", "paragraph", "article", "abstract",
        "evidence", "support", "premise", "history",
    ),
    "input": (
        "input", "question", "questions", "query", "prompt", "problem", "instruction", "utterance", "hypothesis", "claim",
        "statement", "sentence", "text", "user", "content", "message", "body", "review", "comment", "post", "tweet", "headline",
        "frage", "pregunta", "q", "title",
    ),
    "answer": (
        "answer", "answers", "references", "reference", "final_decision", "gold", "gold_answer", "label", "labels", "answer_key",
        "correct_answer", "correct", "ground_truth", "*_label", "target", "targets", "solution", "decision", "verdict",
        "outcome", "diagnosis",
        "category", "class", "sentiment",
        "intent", "output", "expected", "expected_output", "completion", "chosen", "response", "reply", "assistant", "antwort",
        "respuesta", "cop", "a",
    ),
    "id": ("id", "idx", "qid", "question_id", "example_id", "row_id", "uid", "guid", "uuid", "pmid"),
    "group": ("group", "group_id", "dialogue_id", "dialog_id", "conversation_id", "session_id", "document_id", "doc_id"),
    "split": ("split", "published_split", "subset", "partition", "set"),
}  # fmt: skip
_SPREAD: Final = re.compile(r"(?:opt|option|choice|op|ending|answer|candidate|sol)?_?([a-h]|[0-7])")
"""Columns that hold a choice each: A, B, C; option_a; opa; choice1; ending0."""


@dataclass(frozen=True)
class Columns:
    """Which columns make up each field, in order; ``unused`` are the columns that become nothing."""

    columns: Mapping[str, tuple[str, ...]]
    unused: tuple[str, ...]

    def of(self, field: str) -> tuple[str, ...]:
        """The columns of a field."""
        return self.columns.get(field, ())


def folded(name: str) -> str:
    """A column's name as it is compared: ``finalDecision``, ``Final Decision`` and ``FINAL_DECISION`` are one."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[^0-9a-z\u0080-\uffff]+", "_", apart.casefold()).strip("_")


def mapping_of(samples: Sequence[Mapping[str, object]], given: Sequence[str]) -> Columns:
    """The mapping for rows like these; ``given`` are the user's ``COLUMN=FIELD``, ``COLUMN=`` for a column that is not to be used.

    Raises ConfigError for a column or field that is not there, or where no question is found.
    """
    columns = list(dict.fromkeys(name for row in samples for name in row))
    said, dropped = _given(given, columns)
    found: dict[str, tuple[str, ...]] = {field: tuple(names) for field, names in said.items()}
    free = [c for c in columns if c not in dropped and not any(c in names for names in found.values())]
    for field in ("messages", "choices", "split", "rationale", "answer", "input", "context", "id", "group"):
        if field in found or (field == "context" and not free):
            continue
        names = _guess(field, free, samples)
        if names:
            found[field] = names
            free = [c for c in free if c not in names]
    _settle(found, free, samples, frozenset(said))
    if not found.get("input") and not found.get("messages"):
        raise ConfigError(
            f"no column looks like the question (there are: {listed(columns)}); say which one is: --map COLUMN=input. The first "
            "line of a table names its columns"
        )
    return Columns(found, tuple(c for c in columns if c in free or c in dropped))


def _given(given: Sequence[str], columns: Sequence[str]) -> tuple[dict[str, list[str]], set[str]]:
    said: dict[str, list[str]] = {}
    dropped: set[str] = set()
    for one in given:
        column, equals, field = (part.strip() for part in one.rpartition("="))
        if not equals:
            raise ConfigError(f"--map {one}: write COLUMN=FIELD, such as --map question=input")
        name = ALIASES.get(folded(field), folded(field))
        if column not in columns:
            turned = f"; the column comes first: --map {field}={column}" if field in columns else ""
            hint = turned or suggestion(column, columns)
            raise ConfigError(f"--map {one}: there is no column {column!r} (there are: {listed(columns)}){hint}")
        if not field:
            dropped.add(column)
            continue
        if name not in FIELDS:
            raise ConfigError(f"--map {one}: there is no field {field!r}; there are {', '.join(FIELDS)}")
        said.setdefault(name, []).append(column)
        if len(said[name]) > 1 and name not in JOINED:
            raise ConfigError(f"--map: {name} can be one column, and {' and '.join(said[name])} are said to be it")
    return said, dropped


def _guess(field: str, free: Sequence[str], samples: Sequence[Mapping[str, object]]) -> tuple[str, ...]:
    """The columns that a field is, by their names: the first name in the list that one has."""
    by_name = {folded(column): column for column in reversed(free)}
    for name in NAMES[field]:
        if name.startswith("*"):
            column = next((c for key, c in by_name.items() if key.endswith(name[1:])), None)
        else:
            column = by_name.get(name)
        if column is not None and _fits(field, column, samples):
            return (column,)
    return _spread(free) if field == "choices" else ()


def _fits(field: str, column: str, samples: Sequence[Mapping[str, object]]) -> bool:
    values = [row[column] for row in samples if row.get(column) not in (None, "", [], {})]
    if not values:
        return False
    if field == "messages":
        return all(isinstance(value, list) and isinstance(value[0], dict) for value in values)
    if field == "split":
        return all(isinstance(v, str) and v.strip().casefold() in SPLIT_NAMES for v in values)
    return True


def _spread(free: Sequence[str]) -> tuple[str, ...]:
    """Columns that are one choice each, such as A, B, C, D: at least two whose names differ in the last letter alone."""
    families: dict[str, list[str]] = {}
    for column in free:
        key = folded(column)
        if _SPREAD.fullmatch(key):
            families.setdefault(key[:-1] + ("#" if key[-1].isdigit() else "@"), []).append(column)
    found = max(families.values(), key=len, default=[])
    return tuple(sorted(found, key=lambda c: folded(c)[-1])) if len(found) > 1 else ()


def _settle(
    found: dict[str, tuple[str, ...]],
    free: list[str],
    samples: Sequence[Mapping[str, object]],
    said: frozenset[str],
) -> None:
    """What names alone do not tell: instruction with input, prompts that are conversations, a context that is the question."""
    if found.get("messages") and "input" not in said:
        free.extend(found.pop("input", ()))
    if not found.get("input") and not found.get("messages") and found.get("context"):
        found["input"] = found.pop("context")  # rows of a text and a label
    asked = found.get("input", ())
    by_name = {folded(c): c for c in free}
    if len(asked) == 1 and "input" not in said and "instruction" in by_name and folded(asked[0]) == "input":
        found["input"] = (by_name["instruction"], *asked)
        free.remove(by_name["instruction"])
    answer = found.get("answer", ())
    if len(asked) == 1 and len(answer) == 1 and "answer" not in said:
        pair = (folded(asked[0]), folded(answer[0]))
        if pair in (("prompt", "completion"), ("prompt", "chosen")) or _turns(samples, answer[0]):
            found["completion"] = found.pop("answer")


def _turns(samples: Sequence[Mapping[str, object]], column: str) -> bool:
    """Whether a column holds turns of a conversation."""
    value = next((row[column] for row in samples if row.get(column)), None)
    return isinstance(value, list) and isinstance(value[0], dict) and "content" in value[0]
