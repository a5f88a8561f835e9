"""Parquet files by pyarrow; datasets of the Hugging Face hub, or saved by ``datasets``, by that library. Read in batches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from cowest.errors import ConfigError, DataError, MissingExtraError
from cowest.importing.records import Part, Raw, split_of

BATCH: Final = 512
_EXTRA: Final = "pip install 'cowest[data]'"


def parquet_rows(path: Path) -> Iterator[Raw]:
    """The rows of a Parquet file. Raises DataError, MissingExtraError."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError(f"{path}: a Parquet file needs pyarrow: {_EXTRA}") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield Raw(str(path), number, row)
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0][:200]
        raise DataError(f"{path}: cannot be read as Parquet ({first}); write it again, or give CSV or JSONL") from None


def parquet_names(path: Path) -> dict[str, tuple[str, ...]]:
    """The class names behind numbers, which ``datasets`` writes into a Parquet file's schema. Raises MissingExtraError."""
    try:
        from pyarrow import parquet

        kept = (parquet.read_schema(path).metadata or {}).get(b"huggingface", b"{}")
        features = json.loads(kept)["info"]["features"]
        return {
            name: tuple(kind["names"])
            for name, kind in features.items()
            if isinstance(kind, dict) and kind.get("names")
        }
    except ImportError:
        raise MissingExtraError(f"{path}: a Parquet file needs pyarrow: {_EXTRA}") from None
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ):  # not there, or the file is broken: said when it is read
        return {}


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def saved_parts(folder: Path) -> list[Part]:
    """The splits of a dataset that ``datasets`` saved. Raises DataError, MissingExtraError."""
    datasets = _library(str(folder))
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises errors of five packages
        raise _unread(str(folder), error, "save it again (dataset.save_to_disk)") from None
    return _parts(str(folder), found)


def hub_parts(name: str, config: str | None) -> list[Part]:
    """The splits of a dataset of the hub, which is fetched once and read from disk. No code of it is run.

    Raises:
        DataError: it cannot be had. MissingExtraError: ``datasets`` is not there. ConfigError: it has several configurations.
    """
    datasets = _library(name)
    try:
        found = datasets.load_dataset(name, config)
    except ValueError as error:
        if "config name" in str(error).casefold() and config is None:
            raise ConfigError(f"{name}: {' '.join(str(error).split())[:400]}; say which: --config NAME") from None
        raise _unread(name, error, _HUB_FIX) from None
    except Exception as error:  # the library raises errors of five packages
        raise _unread(name, error, _HUB_FIX) from None
    return _parts(name, found)


_HUB_FIX: Final = "check name and network, or download the files and give their folder"


def _library(name: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError(f"{name}: a dataset of the hub, or a saved one, needs datasets: {_EXTRA}") from None
    return datasets


def _unread(name: str, error: Exception, fix: str) -> DataError:
    first = next(iter(str(error).splitlines()), "")[:200]
    return DataError(f"{name}: cannot be loaded ({type(error).__name__}: {first}); {fix}")


def _parts(name: str, found: Any) -> list[Part]:
    """One part a split; a dataset without splits is one part."""
    splits: Mapping[str, Any] = found if hasattr(found, "keys") else {"": found}
    return [
        Part(
            where=f"{name}/{split}" if split else name,
            split=split_of(split) if len(splits) > 1 else None,
            open=partial(_dataset_rows, f"{name}/{split}" if split else name, rows),
            names=_class_names(rows.features),
        )
        for split, rows in splits.items()
    ]


def _dataset_rows(where: str, rows: Any) -> Iterator[Raw]:
    number = 0
    for batch in rows.iter(batch_size=BATCH):
        names = list(batch)
        for values in zip(*(batch[name] for name in names), strict=True):
            number += 1
            yield Raw(where, number, dict(zip(names, values, strict=True)))


def _class_names(features: Any) -> dict[str, tuple[str, ...]]:
    return {name: tuple(kind.names) for name, kind in (features or {}).items() if getattr(kind, "names", None)}
