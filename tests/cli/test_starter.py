from __future__ import annotations

import json
from pathlib import Path

import pytest

from cowest.assembly.build import build_frames, build_task
from cowest.cli.starter import write_starter
from cowest.errors import ConfigError
from cowest.lab.frames import LabFrames
from cowest.recipe.config import load_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("start") / "mine"
    written = write_starter(target)
    assert sorted(written) == sorted(p for p in target.rglob("*") if p.is_file())
    return target


def test_what_is_written(folder: Path) -> None:
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert names == {"recipe.yaml", "real-pair.yaml", "data/train.jsonl", "data/validation.jsonl", "data/test.jsonl"}
    assert {
        len((folder / "data" / f"{s}.jsonl").read_text().splitlines()) for s in ("train", "validation", "test")
    } == {
        800,
        100,
        200,
    }


def test_the_data_is_what_the_recipe_asks_for(folder: Path) -> None:
    config = load_config(folder / "recipe.yaml")
    task = build_task(config)
    train, test = task.examples("train"), task.examples("test")
    assert len(train) == 800 and len(test) == 200
    assert not {e.input for e in train} & {e.input for e in test}
    assert any(e.rationale for e in train)
    rows = [json.loads(line) for line in (folder / "data" / "test.jsonl").read_text().splitlines()]
    for row, example in zip(rows, test, strict=True):
        assert example.references == (row["answer"],) and row["answer"] in row["choices"]
        assert task.extract(task.target(example), example) == row["answer"]


def test_the_lab_models_get_the_prompts_they_know(folder: Path) -> None:
    config = load_config(folder / "recipe.yaml")
    task = build_task(config)
    frames, example = build_frames(config, task), task.examples("test")[0]
    assert frames.draft(example) == LabFrames().draft(example)
    assert frames.solo(example) == LabFrames().solo(example)
    assert frames.refine(example, "A draft.") == LabFrames().refine(example, "A draft.")


def test_the_same_data_every_time(folder: Path, tmp_path: Path) -> None:
    write_starter(tmp_path / "other")
    for path in folder.rglob("*.jsonl"):
        assert (tmp_path / "other" / "data" / path.name).read_bytes() == path.read_bytes()


def test_nothing_of_yours_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        write_starter(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["recipe.yaml"]
    with pytest.raises(ConfigError, match="is not empty"):
        write_starter(tmp_path / "recipe.yaml")
    (tmp_path / "empty").mkdir()
    assert write_starter(tmp_path / "empty")
