"""``cowest import``: read, guess, split, write. Nothing is left behind by an import that is stopped."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Final, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from cowest.errors import ConfigError, DataError
from cowest.importing.fields import Columns, mapping_of
from cowest.importing.records import Part, Raw
from cowest.importing.rows import Reader
from cowest.importing.sources import parts_of
from cowest.importing.splitting import NOWHERE, assign, complete, parse_shares
from cowest.importing.staging import Staged
from cowest.importing.starting import write_recipe
from cowest.protocols import Reporter
from cowest.tasks.base import SPLITS
from cowest.tasks.row_errors import RowError, listed

SAMPLE: Final = 1000
"""Rows of a source that are looked at before its columns are guessed."""
SHOWN: Final = 5
FEW: Final = 100
"""Test questions, below which a note says so."""
DROPPED: Final = 254
"""The split of a row that is left out."""
MADE: Final = (*(f"{split}.jsonl" for split in SPLITS), "recipe.yaml", "import.json")
Answers = Literal["auto", "classes", "open", "none"]


class Imported(BaseModel):
    """What an import did; ``import.json`` keeps it."""

    model_config = ConfigDict(frozen=True)

    source: str
    out: Path
    columns: dict[str, tuple[str, ...]]
    unused: tuple[str, ...]
    rows: dict[str, int]
    labels: dict[str, dict[str, int]]
    """Rows of each class in each split; empty where answers are open."""
    skipped: dict[str, int]
    """Rows that could not be used, by why."""
    notes: tuple[str, ...]
    split: str
    seed: int


@dataclass
class _Skips:
    counts: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)

    def add(self, raw: Raw, error: RowError) -> None:
        text = str(error)
        self.counts[text if len(self.counts) < 20 or text in self.counts else "other reasons"] += 1
        if len(self.shown) < SHOWN:
            self.shown.append(f"{raw.place}: {text}")


@dataclass(frozen=True)
class Plan:
    """A source that was looked at: what its columns are taken for, and its first rows as they will be written."""

    source: str
    parts: tuple[Part, ...]
    columns: Columns
    first_index: int
    preview: tuple[dict[str, object], ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def reader(self, part: Part) -> Reader:
        """What makes rows of a part."""
        return Reader(self.columns, part.names, self.first_index)


def look_at(
    source: str,
    mapping: Sequence[str] = (),
    *,
    config: str | None = None,
    encoding: str | None = None,
    first_index: int | None = None,
) -> Plan:
    """Read the first rows of a source and guess what its columns are; nothing is written.

    Args:
        source: A file, a folder, or the name of a dataset of the hub.
        mapping: ``COLUMN=FIELD``, for what the guess should be.
        config: The configuration of a hub's dataset.
        encoding: Of a text file, where it is not UTF-8 and has no mark that says so.
        first_index: What the index of a first choice is, 0 or 1; found out unless given.

    Raises:
        DataError: the source cannot be read. ConfigError: the mapping does not fit. MissingExtraError: a library is missing.
    """
    parts, notes = parts_of(source, config, encoding), list[str]()
    if len({part.split for part in parts}) > 1 and any(part.split is None for part in parts):
        left = ", ".join(part.where for part in parts if part.split is None)
        notes.append(f"{left}: left out, since it is not named after a split")
        parts = [part for part in parts if part.split is not None]
    samples = [(part, list(islice(part.open(), SAMPLE))) for part in parts]
    rows = [dict(raw.values) for _, some in samples for raw in some]
    if not rows:
        raise DataError(f"{source}: has no rows; give at least three")
    columns = mapping_of(rows, mapping)
    first, counted = (first_index, False) if first_index is not None else _first_index(source, columns, samples)
    if counted:
        notes.append(
            f"answers are numbers of choices, counted from {first} as it seems (--first-index {1 - first} otherwise)"
        )
    preview: list[dict[str, object]] = []
    problems: list[str] = []
    for part, some in samples:
        reader = Reader(columns, part.names, first)
        for raw in some:
            if len(preview) >= 3 and len(problems) >= 3:
                break
            try:
                preview.append(reader.row(raw.values).values)
            except RowError as error:
                problems.append(f"{raw.place}: {error}")
    if not preview:
        raise DataError(
            "\n".join(
                [
                    *problems[:3],
                    f"{source}: none of the first {len(rows)} rows can be used; say what is what: --map COLUMN=FIELD",
                ]
            )
        )
    if not _answered(columns):
        notes.append("no column looks like the answer; say which one is: --map COLUMN=answer")
    return Plan(source, tuple(parts), columns, first, tuple(preview[:3]), tuple(problems[:3]), tuple(notes))


def _answered(columns: Columns) -> bool:
    return any(columns.of(field) for field in ("answer", "completion", "messages"))


def _first_index(source: str, columns: Columns, samples: Sequence[tuple[Part, Sequence[Raw]]]) -> tuple[int, bool]:
    """What the number of a first choice is, and whether answers are such numbers: the one by which more of the rows can be read.

    Raises ConfigError where both read all: each would name a choice, and one of them always the wrong one.
    """
    read = {
        first: [_answer_of(Reader(columns, p.names, first), raw) for p, some in samples for raw in some]
        for first in (0, 1)
    }
    if read[0] == read[1]:
        return 0, False
    unread = {first: answers.count(None) for first, answers in read.items()}
    if unread[0] == unread[1]:
        raise ConfigError(
            f"{source}: answers are numbers of choices, and neither a 0 nor the number of a last choice tells whether they are "
            "counted from 0 or from 1; say --first-index 0, or --first-index 1"
        )
    return min((0, 1), key=lambda first: unread[first]), True


def _answer_of(reader: Reader, raw: Raw) -> object:
    """The answer in a row; None where there is none that can be read."""
    try:
        return reader.row(raw.values).values.get("answer")
    except RowError:
        return None


def import_data(
    source: str | Path,
    out: str | Path,
    mapping: Sequence[str] = (),
    *,
    split: str = "80/10/10",
    seed: int = 0,
    answers: Answers = "auto",
    overwrite: bool = False,
    config: str | None = None,
    encoding: str | None = None,
    first_index: int | None = None,
    plan: Plan | None = None,
    reporter: Reporter | None = None,
) -> Imported:
    """Write ``train.jsonl``, ``validation.jsonl``, ``test.jsonl`` and ``recipe.yaml`` into ``out``, a new or empty folder.

    Args:
        source: As for :func:`look_at`, and so are ``mapping``, ``config``, ``encoding`` and ``first_index``.
        out: The folder.
        mapping: See above.
        split: Shares of train, validation and test, where the source has none. Its own are kept.
        seed: Of the split and of the rows' order.
        answers: ``classes`` or ``open``, found out unless given; ``none``: there are none, and models compare answers
            (``feedback.compare``).
        overwrite: Replace what an earlier import wrote there.
        config: See above.
        encoding: See above.
        first_index: See above.
        plan: What ``look_at`` returned, to look only once.
        reporter: Where progress goes.

    Raises:
        DataError: the source cannot be read, or has too few rows. ConfigError: an argument is wrong, or ``out`` is not empty.
    """
    shares, target = parse_shares(split), Path(out)
    _check_out(target, overwrite)
    plan = plan or look_at(str(source), mapping, config=config, encoding=encoding, first_index=first_index)
    if answers != "none" and not _answered(plan.columns):
        raise ConfigError(
            f"{plan.source}: no column looks like the answer (there are: {listed([*_all_columns(plan)])}); say which one is: "
            "--map COLUMN=answer. Without answers, models have to compare (feedback.compare): --answers none"
        )
    target.mkdir(parents=True, exist_ok=True)
    for stale in target.glob(".import-*"):  # of an import that was killed
        shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=".import-", dir=target))
    try:
        staged, skips = _stage(plan, work, reporter)
        done = _write(plan, staged, skips, target, work, shares, (split, seed), answers)
        for name in MADE:
            os.replace(work / name, target / name)
        return done
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _all_columns(plan: Plan) -> Iterator[str]:
    for names in plan.columns.columns.values():
        yield from names
    yield from plan.columns.unused


def as_answers(text: str) -> Answers:
    """What ``--answers`` says. Raises ConfigError."""
    for known in get_args(Answers):
        if text == known:
            return cast(Answers, known)
    raise ConfigError(f"--answers {text}: there are {', '.join(get_args(Answers))}")


def _check_out(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; give a folder with --out")
    found = {p.name for p in out.iterdir() if not p.name.startswith(".import-")} if out.is_dir() else set()
    if found - set(MADE) or (found and not overwrite):
        fix = "--overwrite replaces it" if found <= set(MADE) else "give a new folder"
        raise ConfigError(f"{out}: is not empty; {fix}, so that nothing of yours is lost")


def _stage(plan: Plan, work: Path, reporter: Reporter | None) -> tuple[Staged, _Skips]:
    staged, skips = Staged(work), _Skips()
    if reporter is not None:
        reporter.start("read rows", None)
    try:
        for part in plan.parts:
            reader, counted = plan.reader(part), 0
            for raw in part.open():
                counted += 1
                if reporter is not None and counted % 1000 == 0:
                    reporter.advance(1000)
                try:
                    row = reader.row(raw.values)
                    staged.add(row, row.split or part.split)
                except RowError as error:
                    skips.add(raw, error)
            if reporter is not None:
                reporter.advance(counted % 1000)
    finally:
        staged.close()
        if reporter is not None:
            reporter.finish()
    return staged, skips


def _write(
    plan: Plan,
    staged: Staged,
    skips: _Skips,
    out: Path,
    work: Path,
    shares: Sequence[float],
    how: tuple[str, int],
    answers: Answers,
) -> Imported:
    if not len(staged):
        raise DataError(
            "\n".join([*skips.shown, f"{plan.source}: no row can be used; say what is what: --map COLUMN=FIELD"])
        )
    notes = [*plan.notes, *skips.shown]
    classes = {} if answers in ("open", "none") else staged.classes()
    if answers == "classes" and not classes:
        raise ConfigError(
            f"--answers classes: {len(staged.label_of)} different answers, or longer texts, are no classes"
        )
    side, some = _sides(staged, shares, how[1])
    notes += some
    if classes and len(set(classes.values())) < len(classes):
        merged = [f"{a!r}" for a, b in classes.items() if a != b]
        notes.append(f"labels that differ in case or spaces are written alike: {', '.join(merged[:5])}")
        classes_written = classes
    else:
        classes_written = {}
    keep_ids = staged.ids_unique
    if not keep_ids:
        notes.append("ids are not unique over all rows, and are kept as metadata")
    rows, labels = _write_rows(staged, side, work, how[1], classes_written, keep_ids)
    if rows["test"] < FEW:
        notes.append(
            f"{rows['test']} test questions: only large differences will be certain; some hundreds are needed for others"
        )
    names = sorted(set(classes.values()))
    done = Imported(
        source=plan.source, out=out, columns=dict(plan.columns.columns), unused=plan.columns.unused, rows=rows,
        labels=labels if classes else {}, skipped=dict(skips.counts.most_common()), notes=tuple(notes), split=how[0], seed=how[1],
    )  # fmt: skip
    write_recipe(work / "recipe.yaml", out, plan.source, rows, () if staged.shared_choices else names, staged.sizes)
    (work / "import.json").write_text(done.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return done


def _sides(staged: Staged, shares: Sequence[float], seed: int) -> tuple[NDArray[np.uint8], list[str]]:
    """Each row's split, and what there is to say of it."""
    keys, labels, given = staged.arrays()
    group, alike, too_many = staged.together()
    notes: list[str] = []
    own = bool((given == NOWHERE).all())
    if alike and own:
        notes.append(f"{alike:,} rows are nearly equal to another, and are in one split with it")
    if too_many and own:
        notes.append(
            f"{too_many:,} rows share most of their words with very many others (a template?); of these only equal ones are kept "
            "in one split"
        )
    if own:
        return assign(group, labels, shares, seed), notes
    if (given == NOWHERE).any():
        raise DataError(
            "some rows say which split they are for, and others do not; leave the column out: --map COLUMN="
        )
    side = complete(given, group, labels, shares, seed)
    tested = np.unique(keys[side == 2])
    leaked = (side != 2) & np.isin(keys, tested)
    if leaked.any():
        side = side.copy()
        side[leaked] = DROPPED
        notes.append(
            f"{int(leaked.sum()):,} rows for training or validation ask what a test row asks, and are left out"
        )
    return side, notes


def _write_rows(
    staged: Staged, side: NDArray[np.uint8], work: Path, seed: int, spelled: Mapping[str, str], keep_ids: bool
) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """The files, each in an order of the seed (the first hundred of a file are then a fair part of it); rows and labels counted."""
    order = np.random.default_rng([seed, len(side)]).permutation(len(side)).astype(np.int32)
    counts = {split: int((side == s).sum()) for s, split in enumerate(SPLITS)}
    labels: dict[str, dict[str, int]] = {}
    by_number = list(staged.label_of)
    spelling = {a.casefold(): b for a, b in staged.classes().items()}
    _, label, _ = staged.arrays()
    for s, split in enumerate(SPLITS):
        found = np.bincount(label[(side == s) & (label >= 0)], minlength=len(by_number))
        labels[split] = {spelling.get(name, name): int(n) for name, n in zip(by_number, found, strict=True)}
        with (work / "rows").open("rb", buffering=0) as rows, (work / f"{split}.jsonl").open("wb") as file:
            for line in _lines(rows, staged, order[side[order] == s]):
                file.write(line if keep_ids and not spelled else _mended(line, spelled, keep_ids))
    return counts, labels


def _lines(file: IO[bytes], staged: Staged, at: NDArray[np.int32]) -> Iterator[bytes]:
    offsets = staged.offsets
    last = len(offsets) - 1
    for begin in range(0, len(at), 4096):
        for i in at[begin : begin + 4096].tolist():
            end = offsets[i + 1] if i < last else staged.size
            file.seek(offsets[i])
            yield file.read(end - offsets[i])


def _mended(line: bytes, spelled: Mapping[str, str], keep_ids: bool) -> bytes:
    row = json.loads(line)
    if isinstance(row.get("answer"), str) and spelled:
        row["answer"] = spelled[" ".join(row["answer"].split())]
    if not keep_ids and "id" in row:
        row["metadata"] = {**row.get("metadata", {}), "id": row.pop("id")}
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
