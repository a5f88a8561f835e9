"""A task of one's own, as a plug-in: the capitals of invented countries, from a CSV file.

One row: ``country,capital,note`` = ``Ostrel,Torvale,"Torvale became capital of Ostrel in 1871."``
"""

from __future__ import annotations

import csv
import random
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from cowest.errors import ConfigError, DataError
from cowest.tasks.base import OPEN_METRICS, SimpleTask, open_instruction
from cowest.types import Example

SHIPPED = Path(__file__).with_name("capitals.csv")


def load(options: Mapping[str, JsonValue], folder: Path, seed: int) -> SimpleTask:
    """The task; its one option is ``file``, a CSV of your own. A fifth each is for validation and test."""
    unknown = sorted(options.keys() - {"file"})
    if unknown:
        raise ConfigError(f"task.options.{unknown[0]}: unknown; capitals knows only 'file'")
    file = options.get("file")
    examples = read(folder / str(file) if file is not None else SHIPPED)
    random.Random(seed).shuffle(examples)
    fifth = len(examples) // 5
    return SimpleTask(
        name="capitals",
        metrics=OPEN_METRICS,
        labels=(),
        instruction=open_instruction(),
        splits={
            "train": tuple(examples[2 * fifth :]),
            "validation": tuple(examples[fifth : 2 * fifth]),
            "test": tuple(examples[:fifth]),
        },
    )


def read(path: Path) -> list[Example]:
    """The rows of a CSV file as examples. Raises DataError with file and line."""
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give the CSV file as task.options.file") from None
    examples = []
    for line, row in enumerate(rows, start=2):
        if not row.get("country") or not row.get("capital"):
            raise DataError(f"{path}:{line}: country and capital are needed; fill them in")
        question = f"What is the capital of {row['country']}?"
        note = row.get("note") or None
        examples.append(Example(id=row["country"], input=question, references=(row["capital"],), rationale=note))
    return examples
