"""Rows on their way: each is written down as it will be, and what a split needs of it is kept in numbers, some 60 bytes a row."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from cowest.importing.rows import Row
from cowest.importing.splitting import NOWHERE
from cowest.tasks.alike import BANDS, Ints, Words, bands, groups, hashes_of, key_of, links, numbers_key, words_of
from cowest.tasks.base import SPLITS
from cowest.tasks.row_errors import RowError

MOST_LABELS: Final = 20
"""More different answers than this are no classes."""
ROWS_A_LABEL: Final = 5
LONGEST_LABEL: Final = 40
_BATCH: Final = 4_000
_SAMPLE: Final = 10_000
"""Rows of which lengths are kept."""


@dataclass
class Staged:
    """All rows of a source, in its order, in ``folder``."""

    folder: Path
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    keys: array[int] = field(default_factory=lambda: array("Q"))
    ids: array[int] = field(default_factory=lambda: array("Q"))
    grouped: array[int] = field(default_factory=lambda: array("Q"))
    numbers: array[int] = field(default_factory=lambda: array("I"))
    lengths: array[int] = field(default_factory=lambda: array("H"))
    labels: array[int] = field(default_factory=lambda: array("i"))
    given: array[int] = field(default_factory=lambda: array("B"))
    answers: Counter[str] = field(default_factory=Counter)
    label_of: dict[str, int] = field(default_factory=dict)
    choices: set[frozenset[str]] = field(default_factory=set)
    without_choices: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Bytes of question with context, and of what is learned, of the first rows."""

    def __post_init__(self) -> None:
        """Open the files that rows go to."""
        self._rows = (self.folder / "rows").open("wb")
        self._hashes = (self.folder / "words").open("wb")
        self._words = Words()
        self.size = 0

    def __len__(self) -> int:
        return len(self.keys)

    def add(self, row: Row, split: str | None) -> None:
        """Keep a row, which is for ``split`` where the source says so. Raises RowError for a text that cannot be written."""
        try:
            line = json.dumps(row.values, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:
            raise RowError("holds half a surrogate pair; write the whole character") from None
        self._rows.write(line)
        self.offsets.append(self.size)
        self.size += len(line)
        asked = _asked(row.values)
        words = words_of(asked)
        self.keys.append(key_of(words))
        hashes = array("I", hashes_of(words))
        self._hashes.write(hashes)
        self.lengths.append(len(hashes))
        self.numbers.append(numbers_key(words))
        id_ = row.values.get("id")
        self.ids.append(_hash(str(id_)) if id_ is not None else 0)
        self.grouped.append(_hash(row.group) if row.group else 0)
        self.given.append(NOWHERE if split is None else SPLITS.index(split))
        self._answer(row.values)
        if len(self.sizes) < _SAMPLE:
            learned = str(row.values.get("rationale", "")) + str(row.values.get("answer", ""))
            replied = row.values.get("messages")
            learned += (
                replied[-1]["content"] if isinstance(replied, list) and replied[-1]["role"] == "assistant" else ""
            )
            self.sizes.append((len(asked.encode()), len(learned.encode())))

    def _answer(self, values: Mapping[str, object]) -> None:
        answer, choices = values.get("answer"), values.get("choices")
        if isinstance(choices, list):
            if len(self.choices) < 2:
                self.choices.add(frozenset(choices))
        else:
            self.without_choices += 1
        label = " ".join(answer.split()) if isinstance(answer, str) else None
        if label is None or len(label) > LONGEST_LABEL or len(self.label_of) > 1000:
            self.labels.append(-1)
            self.answers[""] += 1
            return
        self.answers[label] += 1
        self.labels.append(self.label_of.setdefault(label.casefold(), len(self.label_of)))

    def close(self) -> None:
        """No more rows come."""
        self._rows.close()
        self._hashes.close()

    @property
    def shared_choices(self) -> tuple[str, ...]:
        """The choices that all rows have, in the order of their names; none where they differ or are missing."""
        return tuple(sorted(next(iter(self.choices)))) if len(self.choices) == 1 and not self.without_choices else ()

    def classes(self) -> dict[str, str]:
        """How each answer is written, where the answers are a few classes: its commonest spelling. Empty where they are open."""
        if self.answers.get("") or not 2 <= len(self.label_of) <= min(MOST_LABELS, len(self) // ROWS_A_LABEL):
            return {}
        spelled: dict[str, str] = {}
        for answer, _ in self.answers.most_common():
            spelled.setdefault(answer.casefold(), answer)
        return {answer: spelled[answer.casefold()] for answer in self.answers}

    @property
    def ids_unique(self) -> bool:
        """Whether an id names one row, in all parts together."""
        return not any(True for _ in links(np.frombuffer(self.ids, dtype=np.uint64)))

    def arrays(self) -> tuple[Ints, NDArray[np.int32], NDArray[np.uint8]]:
        """Keys, labels, and the source's splits."""
        return (
            np.frombuffer(self.keys, dtype=np.uint64),
            np.frombuffer(self.labels, dtype=np.int32),
            np.frombuffer(self.given, dtype=np.uint8),
        )

    def together(self) -> tuple[NDArray[np.int32], int, int]:
        """The group of each row, how many rows are nearly equal to another, and how many were too many to be so.

        Equal questions and rows of one id or group are always in one group. Near-equal ones are, unless that would tie more than a
        twentieth of the rows to one another (and more than twenty): then the questions are of a kind rather than alike.
        """
        n = len(self)
        sure = [p for a in (self.keys, self.ids, self.grouped) for p in links(np.frombuffer(a, dtype=np.uint64))]
        certain = groups(n, sure)
        near = list(self._near())
        if not near:
            return certain, 0, 0
        found = groups(n, [*sure, *near])
        size, own = np.bincount(found), np.bincount(certain)
        big = (size[found] > max(20, n // 20)) & (own[certain] < size[found])
        if big.any():
            found = groups(n, [*sure, *((a[keep], b[keep]) for a, b in near for keep in [~big[a]])])
        alike = int((np.bincount(found)[found] > own[certain]).sum())
        return found, alike, int(big.sum())

    def _near(self) -> Sequence[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """Pairs that share a band. The bands lie in a file of a column each; one column is read at a time."""
        n, lengths = len(self), np.frombuffer(self.lengths, dtype=np.uint16).astype(np.int64)
        numbers = np.frombuffer(self.numbers, dtype=np.uint32)
        paths = [self.folder / f"band-{band}" for band in range(BANDS)]
        files = [path.open("wb") for path in paths]
        with (self.folder / "words").open("rb") as words:
            for at in range(0, n, _BATCH):
                some = lengths[at : at + _BATCH]
                self._words.count(np.frombuffer(words.read(4 * int(some.sum())), dtype=np.uint32), len(some))
            words.seek(0)
            for at in range(0, n, _BATCH):
                some = lengths[at : at + _BATCH]
                hashes = np.frombuffer(words.read(4 * int(some.sum())), dtype=np.uint32)
                found = bands(self._words, hashes, some, numbers[at : at + _BATCH])
                for file, column in zip(files, found.T, strict=True):
                    file.write(np.ascontiguousarray(column).tobytes())
        for file in files:
            file.close()
        return [pair for path in paths for pair in links(np.fromfile(path, dtype=np.uint64))]


def _asked(values: Mapping[str, object]) -> str:
    """What two rows must share to be one question: the question, its context and its earlier turns, without a system prompt."""
    turns = values.get("messages")
    if isinstance(turns, list):
        said = [f"{t['role']} {t['content']}" for t in turns if t["role"] != "system"]
        asked = said[:-1] if turns[-1]["role"] == "assistant" else said
        asked[-1] = asked[-1].removeprefix("user ")
    else:
        asked = [str(values["input"])]
    return "\n".join([*asked, str(values.get("context", ""))])


def _hash(text: str) -> int:
    return crc32(text.encode()) << 32 | crc32(text[::-1].encode()) or 1
