"""What a user names -> its parts: a file, a folder of them, a saved dataset, or one of the hub."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from cowest.errors import DataError
from cowest.importing.datasets_files import hub_parts, is_saved, parquet_names, parquet_rows, saved_parts
from cowest.importing.records import Part, split_of
from cowest.importing.text_files import bare_suffix, first_bytes, text_rows

SUFFIXES: Final = (".csv", ".tsv", ".tab", ".json", ".jsonl", ".ndjson", ".jsonlines", ".parquet")


def parts_of(source: str, config: str | None = None, encoding: str | None = None) -> list[Part]:
    """The parts of a source, each with its split where the source has more than one.

    Raises DataError for what is not there or is no data, MissingExtraError where a library is missing.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [_file(path, None, encoding)]
    if path.is_dir():
        return saved_parts(path) if is_saved(path) else _folder(path, encoding)
    looks_like_a_path = source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source
    if looks_like_a_path or bare_suffix(path) in SUFFIXES or not source.strip():
        raise DataError(f"{source or repr(source)}: no such file or folder; check the path")
    return hub_parts(source, config)


def _file(path: Path, split: str | None, encoding: str | None) -> Part:
    if bare_suffix(path) == ".parquet" or first_bytes(path, 4) == b"PAR1":
        return Part(str(path), split, partial(parquet_rows, path), parquet_names(path))
    return Part(str(path), split, partial(text_rows, path, encoding))


def _folder(folder: Path, encoding: str | None) -> list[Part]:
    """Files named after splits (train.csv, dev.json, test-00000-of-00002.parquet), or one file alone."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and bare_suffix(p) in SUFFIXES and p.name[0] != ".")
    named = [(path, split) for path in files if (split := split_of(path.name)) is not None]
    if not files:
        raise DataError(f"{folder}: holds no data file ({', '.join(SUFFIXES)}, or these with .gz); give a file")
    if len({split for _, split in named}) > 1:
        return [_file(path, split, encoding) for path, split in named]
    if len(files) == 1 or len(named) == len(files):
        return [_file(path, None, encoding) for path in files]
    listed = ", ".join(str(path.relative_to(folder)) for path in files[:8])
    raise DataError(
        f"{folder}: {len(files)} files ({listed}); give one of them, or name them after splits: train.csv, test.csv"
    )
