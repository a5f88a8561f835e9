"""Datasets by name from the Hugging Face hub, or from a folder with a copy, through the ``datasets`` library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cowest.errors import DataError, MissingExtraError
from cowest.tasks.sources import Record


def hub_records(name: str, config: str | None, splits: Mapping[str, Sequence[str]]) -> dict[str, list[Record]]:
    """The rows of each split, found by the first of its names that the dataset has; a place is dataset, split and row.

    Raises:
        MissingExtraError: ``datasets`` is not installed.
        DataError: the dataset cannot be loaded, or lacks a split.
    """
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("a dataset by its hub name needs datasets: pip install 'cowest[train]'") from None
    try:
        found = datasets.load_dataset(name, config)
    except Exception as error:  # the library raises errors of five packages when a dataset cannot be had
        first = next(iter(str(error).splitlines()), "")[:200]
        raise DataError(
            f"{name}: cannot be loaded from the hub ({type(error).__name__}: {first}). "
            "Check the name and the network, or download the published files and give their folder as task.path, or put it into "
            "the folder that COWEST_DATA_DIR names."
        ) from None
    rows: dict[str, list[Record]] = {}
    for split, names in splits.items():
        own = next((n for n in names if n in found), None)
        if own is None:
            raise DataError(f"{name}: has no split {names[0]!r} (it has: {', '.join(found)}); give task.path instead")
        rows[split] = [Record(f"{name}: {own} row {i + 1}", dict(row)) for i, row in enumerate(found[own])]
    return rows
