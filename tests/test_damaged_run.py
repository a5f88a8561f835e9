"""A damaged or shortened file of a finished stage is noticed, told in one line, and made again; a report says so as well."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.helpers import Log, Oracle, run_tiny, save_tiny_model

from cowest.errors import StageError
from cowest.pipeline import report_again
from cowest.results import Results


def drop_a_line(file: Path) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2] + lines[3:]))


def edit(file: Path) -> None:
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(
        content[:middle] + (b"X" if content[middle : middle + 1] != b"X" else b"Y") + content[middle + 1 :]
    )


def cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def swap_lines(file: Path) -> None:
    first, second, *rest = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([second, first, *rest]))


RECORDS = (
    "drafts.jsonl", "solo.jsonl", "refinements.jsonl", "feedback.jsonl", "pairs.jsonl",
    "predictions/weak.jsonl", "predictions/strong.jsonl", "predictions/collab.jsonl",
)  # fmt: skip
OTHERS = (
    "results.json",
    "align/selection.json",
    "sft/model_ref.json",
    "sft/model/model.safetensors",
    "sft/model/config.json",
)
CASES = [(file, damage) for file in RECORDS for damage in (drop_a_line, edit, cut, empty, swap_lines, Path.unlink)]
CASES += [(file, damage) for file in OTHERS for damage in (edit, cut, Path.unlink)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Results]:
    weak = save_tiny_model(tmp_path_factory.mktemp("weak"))
    out = tmp_path_factory.mktemp("runs") / "tiny"
    return weak, out, run_tiny(weak, out, Oracle()).results[""]


@pytest.mark.parametrize(("name", "damage"), CASES, ids=[f"{file}-{damage.__name__}" for file, damage in CASES])
def test_damage_is_told_and_mended(
    finished: tuple[str, Path, Results], tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    weak, whole, results = finished
    copy = Path(shutil.copytree(whole, tmp_path / "run"))
    damage(copy / name)
    with pytest.raises(StageError, match=r"stage \w+ is not what recipe\.yaml says: .*`cowest run`") as told:
        asyncio.run(report_again(copy))
    assert name in str(told.value) and "\n" not in str(told.value)

    log, oracle = Log(), Oracle()
    mended = run_tiny(weak, copy, oracle, log).results[""]
    verdicts = [verdict for verdict in log.verdicts.values() if not verdict.startswith(("reused", "warning"))]
    assert len(verdicts) == 1 and verdicts[0].startswith(
        f"mended, because {name} "
    )  # and nothing after it is made again
    assert oracle.requests == []  # what was paid for is in the ledger
    assert mended.systems == results.systems and mended.comparisons == results.comparisons
    asyncio.run(report_again(copy))  # which is content now
