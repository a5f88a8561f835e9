"""What the loaders of the published benchmarks share: finding the records, checking them, counting what is left out."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cowest.errors import ConfigError
from cowest.recipe.config import BenchmarkTaskConfig
from cowest.tasks.base import SPLITS
from cowest.tasks.hub import hub_records
from cowest.tasks.jsonl_rows import Place, Problems, overlap_key
from cowest.tasks.sources import Record, read_records
from cowest.types import Example

SAMPLES = Path(__file__).parent / "samples"
Splits = Mapping[str, tuple[Example, ...]]

_SENTENCE_END = re.compile(r"[.!?][\"')\]\u2019\u201d]*(?=\s|$)")


@dataclass(frozen=True)
class Published:
    """A benchmark as published: its name, and rows and digest of each split (no digest where we could not compute one)."""

    name: str
    rows: Mapping[str, int]
    digests: Mapping[str, str]

    def check(self, splits: Splits, where: Mapping[str, Place | str], problems: Problems) -> None:
        """Note every split that has not the published rows, or whose questions or answers are not the published ones."""
        for split, examples in splits.items():
            rows, wanted = self.rows[split], self.digests.get(split)
            if len(examples) != rows:
                what = f"{len(examples):,} rows, and {self.name} has {rows:,} here; fetch it again"
            elif wanted and digest(examples) != wanted:
                what = f"a question or an answer is not the one that {self.name} was published with; fetch it again"
            else:
                continue
            problems.add(where[split], f"{what}, or set official: false for data of your own in this layout")


def digest(examples: Iterable[Example]) -> str:
    """Identifies questions and their answers, whatever their order and spacing."""
    rows = sorted(" ".join("\x1f".join((e.input, *e.references)).split()) for e in examples)
    return hashlib.sha256("\x1e".join(rows).encode()).hexdigest()[:16]


DATA_DIR = "COWEST_DATA_DIR"
"""The environment variable that names a folder with one folder of data for each kind of benchmark."""


def folder_of(config: BenchmarkTaskConfig, name: str) -> Path | None:
    """The folder with the files; None where the data comes from the hub.

    Where the recipe names none, ``$COWEST_DATA_DIR/KIND`` goes before the hub. Raises ConfigError where there is neither.
    """
    if config.sample:
        return SAMPLES / name
    if config.path is not None or config.hub != type(config).model_fields["hub"].default:
        return config.path
    everyones = os.environ.get(DATA_DIR)
    if everyones and (Path(everyones).expanduser() / name).is_dir():
        return Path(everyones).expanduser().resolve() / name
    if config.hub is None:
        looked = f"{DATA_DIR}={everyones} has no folder {name!r}" if everyones else f"{DATA_DIR} is not set"
        raise ConfigError(
            f"task {name}: where is its data? Set {DATA_DIR} to a folder that holds {name}/ with the published files ({looked}), "
            "or give task.path, the folder with the files, or task.hub, a dataset on the hub with the same fields"
        )
    return None


def read_splits(
    config: BenchmarkTaskConfig, name: str, files: Mapping[str, tuple[str, ...]], problems: Problems
) -> tuple[dict[str, list[Record]], dict[str, Place | str]]:
    """The records of each split and where they come from.

    ``files`` has each split's published names, the one of the file (without ``.json``) first.
    """
    folder = folder_of(config, name)
    if folder is not None:
        paths = {split: folder / f"{names[0]}.json" for split, names in files.items()}
        return {s: read_records(p, problems) for s, p in paths.items()}, {s: Place(p) for s, p in paths.items()}
    hub = config.hub or ""
    return hub_records(hub, None, files), {s: f"{hub}: {s}" for s in files}


def finished(config: BenchmarkTaskConfig, splits: Splits) -> tuple[dict[str, tuple[Example, ...]], tuple[str, ...]]:
    """The splits with leaks dropped and rationales cut as the recipe asks, and a note on each of both."""
    notes: list[str] = []
    kept = {split: tuple(examples) for split, examples in splits.items()}
    for i, split in enumerate(SPLITS[:-1]):
        later = {overlap_key(e) for other in SPLITS[i + 1 :] for e in splits[other]}
        leaked = {e.id for e in splits[split] if overlap_key(e) in later}
        if leaked:
            what = (
                "left out (drop_leaked)"
                if config.drop_leaked
                else "kept as published (drop_leaked: true leaves them out)"
            )
            notes.append(f"{len(leaked):,} questions of {split} occur in a later split, too: {what}")
        if config.drop_leaked:
            kept[split] = tuple(e for e in splits[split] if e.id not in leaked)
    limit = config.max_rationale_chars
    if limit is not None:
        for split, examples in kept.items():
            kept[split] = tuple(_with_cut_rationale(e, limit) for e in examples)
            cut = sum("rationale_cut_from" in e.metadata for e in kept[split])
            if cut:
                notes.append(f"{cut:,} of {len(examples):,} rationales of {split} cut to at most {limit:,} characters")
    return kept, tuple(notes)


def _with_cut_rationale(example: Example, limit: int) -> Example:
    text = example.rationale
    if text is None or len(text) <= limit:
        return example
    metadata = {**example.metadata, "rationale_cut_from": str(len(text))}
    return example.model_copy(update={"rationale": cut_text(text, limit) or None, "metadata": metadata})


def cut_text(text: str, limit: int) -> str:
    """The start of ``text``: up to the last sentence that ends within ``limit`` characters, else up to the last word."""
    if len(text) <= limit:
        return text
    ends = [m.end() for m in _SENTENCE_END.finditer(text, 0, limit + 1) if m.end() <= limit]
    if ends:
        return text[: ends[-1]]
    head = text[: limit + 1].rsplit(None, 1)
    return head[0] if len(head) == 2 else text[:limit]


def joined(parts: Iterable[str], by: str = "\n") -> str | None:
    """The parts that are not blank, each once; None when there are none."""
    return by.join(dict.fromkeys(part.strip() for part in parts if part.strip())) or None
