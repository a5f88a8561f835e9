"""One row of a source, by its columns -> one row of a ``jsonl`` task. What cannot be one raises RowError, which says why."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cowest.importing.fields import Columns, folded
from cowest.importing.records import SPLIT_NAMES
from cowest.tasks.answers import extract_answer
from cowest.tasks.messages import conversed
from cowest.tasks.row_errors import RowError, kind_of, listed

_LETTER: Final = re.compile(r"\(?([A-Ha-h])[).:]?")
_LETTERED: Final = re.compile(r"\(?([A-H])[).:]\s+")
_PARTS: Final = ("\n", "|", ";")
_SPEAKERS: Final = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
MISSING: Final = ("", "nan", "null", "none", "n/a", "na")
"""What stands for no value in a context, a rationale or an id; an answer may be "None"."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it will be written, and what it is split by."""

    values: dict[str, object]
    group: str | None
    split: str | None


@dataclass(frozen=True)
class Reader:
    """Makes rows. ``first`` is what the first choice's index is, ``names`` the class names behind a column's numbers."""

    columns: Columns
    names: Mapping[str, Sequence[str]]
    first: int

    def row(self, raw: Mapping[str, object]) -> Row:
        """The row. Raises RowError."""
        values: dict[str, object] = {}
        id_, group = self._word(raw, "id"), self._word(raw, "group")
        if id_ is not None:
            values["id"] = id_
        if self.columns.of("messages"):
            values["messages"] = _turns(self._one(raw, "messages"))
        else:
            values.update(self._asked(raw))
        choices = self._choices(raw)
        self._answer(raw, values, choices)
        if choices:
            values["choices"] = choices
        for field in ("context", "rationale"):
            text = "\n\n".join(filter(None, (_text(raw.get(c), field) for c in self.columns.of(field))))
            if text and not (field == "rationale" and _replied(values)):
                values[field] = text
        kept = {c: text for c in self.columns.of("metadata") if (text := _text(raw.get(c), c))}
        if kept:
            values["metadata"] = kept
        return Row(values, group, self._split(raw))

    def _one(self, raw: Mapping[str, object], field: str) -> object:
        names = self.columns.of(field)
        return raw.get(names[0]) if names else None

    def _word(self, raw: Mapping[str, object], field: str) -> str | None:
        value = self._one(raw, field)
        return None if value is None or isinstance(value, list | dict) else _text(value, field)

    def _split(self, raw: Mapping[str, object]) -> str | None:
        if not self.columns.of("split"):
            return None
        name = (self._word(raw, "split") or "").casefold()
        if name not in SPLIT_NAMES:
            raise RowError(f'"{self.columns.of("split")[0]}" is {name[:40]!r}; a split is train, validation or test')
        return SPLIT_NAMES[name]

    def _asked(self, raw: Mapping[str, object]) -> dict[str, object]:
        prompt, completion = self._one(raw, "input"), self._one(raw, "completion")
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
            said = [*prompt, *(completion if isinstance(completion, list) else [])]
            return {"messages": _turns(said)}
        text = "\n\n".join(filter(None, (_text(raw.get(c), "input") for c in self.columns.of("input"))))
        if not text:
            raise RowError(f'"{" + ".join(self.columns.of("input"))}" is empty: no question')
        reply = _text(completion, "completion")
        if reply and extract_answer(reply, ()) != reply.strip():  # more than an answer: a text to be learned
            return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": reply}]}
        return {"input": text} if not reply else {"input": text, "answer": reply}

    def _choices(self, raw: Mapping[str, object]) -> list[str]:
        names = self.columns.of("choices")
        if len(names) > 1:
            return [text for name in names if (text := _text(raw.get(name), name))]
        value = self._one(raw, "choices")
        if isinstance(value, dict):
            value = value.get("text") or list(value.values())  # ARC has text and label; others letters as keys
        if isinstance(value, str):
            value = _listed(value) or _parted(value)
        if value in (None, ""):
            return []
        if not isinstance(value, list):
            raise RowError(f'"{names[0]}" is {kind_of(value)}; choices are a list, or a text with | between them')
        found = [text for item in value if (text := _text(item, names[0]))]
        return [_LETTERED.sub("", text, count=1) for text in found] if all(map(_LETTERED.match, found)) else found

    def _answer(self, raw: Mapping[str, object], values: dict[str, object], choices: Sequence[str]) -> None:
        names = self.columns.of("answer")
        if not names:
            reply = _replied(values)
            if reply is not None and "answer" not in values and extract_answer(reply, tuple(choices)) is None:
                values["answer"] = reply
            return
        value = raw.get(names[0])
        if isinstance(value, str) and (parts := _listed(value)):
            value = parts
        if isinstance(value, dict):
            value = value.get("text", value.get("value", value))  # SQuAD's answers
        found = value if isinstance(value, list) else [value]
        texts = [text for item in found if (text := self._one_answer(item, names[0], choices, raw))]
        texts = list(dict.fromkeys(texts))
        if not texts:
            raise RowError(f'"{names[0]}" is empty: no answer')
        values.update({"answer": texts[0]} if len(texts) == 1 else {"references": texts})

    def _one_answer(self, value: object, name: str, choices: Sequence[str], raw: Mapping[str, object]) -> str:
        classes = self.names.get(name)
        if classes and isinstance(value, int) and not choices:
            if not 0 <= value < len(classes):
                raise RowError(f'"{name}" is {value}: no class, as in test sets whose labels are not published')
            return classes[value]
        text = _text(value, name)
        return _chosen(text, name, choices, self._letters(raw), self.first) if choices and text else text

    def _letters(self, raw: Mapping[str, object]) -> list[str]:
        """What the source calls its choices: ARC's labels, keys of an object, the names of columns."""
        value = self._one(raw, "choices")
        if len(self.columns.of("choices")) > 1:
            return [folded(name)[-1] for name in self.columns.of("choices")]
        if isinstance(value, dict):
            label = value.get("label")
            return [str(x).casefold() for x in (label if isinstance(label, list) else value)]
        return list("abcdefgh")


def _chosen(text: str, name: str, choices: Sequence[str], letters: Sequence[str], first: int) -> str:
    """The text of the choice that an answer names: by its text, its letter, or its index."""
    if text in choices:
        return text
    same = [choice for choice in choices if choice.casefold().strip() == text.casefold().strip()]
    if len(same) == 1:
        return same[0]
    if text.casefold() in letters[: len(choices)] and not text.isdigit():
        return choices[letters.index(text.casefold())]
    if (match := _LETTER.fullmatch(text)) and ord(match[1].lower()) - ord("a") < len(choices):
        return choices[ord(match[1].lower()) - ord("a")]
    if re.fullmatch(r"\d+", text):
        if text in letters and not set(letters) <= set("01234567"):
            return choices[letters.index(text)]
        if 0 <= int(text) - first < len(choices):
            return choices[int(text) - first]
        raise RowError(
            f'"{name}" is {text}, and there are {len(choices)} choices, counted from {first} (--first-index)'
        )
    raise RowError(f'"{name}" is {text[:60]!r}, which is none of the choices ({listed([c[:40] for c in choices], 6)})')


def _turns(value: object) -> list[dict[str, str]]:
    """A conversation, as TRL or ShareGPT write it. Raises RowError for one that a task would refuse."""
    if isinstance(value, str):
        value = _listed(value)
    if not isinstance(value, list) or not value:
        raise RowError(f'"messages" is {kind_of(value)}; give a list of turns')
    turns = []
    for turn in value:
        if not isinstance(turn, dict):
            raise RowError(f'"messages" holds {kind_of(turn)}; a turn is an object with "role" and "content"')
        role = str(turn.get("role", turn.get("from", "")))
        text = turn.get("content", turn.get("value"))
        if any(turn.get(key) for key in ("tool_calls", "function_call")):
            raise RowError('"messages" holds a call of a tool, which cannot be kept')
        turns.append({"role": _SPEAKERS.get(role, role), "content": text})
    asked = conversed(turns)  # raises for what cannot be a conversation
    said = [{"role": turn.role, "content": turn.content} for turn in asked.turns]
    reply = [] if asked.reply is None else [{"role": "assistant", "content": asked.reply}]
    return [*said, {"role": "user", "content": asked.question}, *reply]


def _replied(values: Mapping[str, object]) -> str | None:
    """The assistant's text at the end of a conversation."""
    turns = values.get("messages")
    last = turns[-1] if isinstance(turns, list) else None
    return last["content"] if last is not None and last["role"] == "assistant" else None


def _text(value: object, field: str) -> str:
    """A value as text; '' for none. A list of texts is put together by blank lines."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        text = value.strip()
        return "" if field in ("context", "rationale", "id", "group") and text.casefold() in MISSING else text
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, float):
        return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
    if isinstance(value, list):
        return "\n\n".join(filter(None, (_text(item, field) for item in value)))
    if isinstance(value, dict):
        inner = value.get("contexts", value.get("text", value.get("content")))  # PubMedQA's on the hub has parts
        if inner is None:
            raise RowError(
                f'"{field}" is an object; name its column otherwise, or write the part that matters as a column'
            )
        return _text(inner, field)
    return str(value)


def _listed(text: str) -> list[object] | None:
    """A list that is written as text, as JSON or as Python writes it; None for no list."""
    if not (text.lstrip().startswith("[") and text.rstrip().endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list):
            return found
    return None


def _parted(text: str) -> list[object]:
    for mark in _PARTS:
        if mark in text:
            return [part.strip() for part in text.split(mark) if part.strip()]
    if text.strip():
        raise RowError("choices are one text without |, ; or line ends between them")
    return []
